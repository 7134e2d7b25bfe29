"""What the HTTP side reads, refuses and waits for."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from inpaint.errors import InpaintError

BYTES_PER_PIXEL = 8
"""That a picture in work takes: the photo, its hole, and what goes out."""


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Limits hold before anything is decoded; each refusal names the limit that it hit."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    """Address that the server listens on. Without keys only a loopback address is allowed."""
    keys_file: str | None = None
    """API keys, one per line as `name:key` or `key`; `#` begins a comment. Read again whenever it has changed."""
    keys_variable: str = "INPAINT_API_KEYS"
    """Environment variable with more keys, separated by commas or lines, in the same form."""
    open_paths: tuple[str, ...] = ("/health", "/ready")
    """Paths answered without a key, exactly as written."""

    max_in_flight: int = 256
    """Requests handled at once; more are told to come back."""
    max_body_bytes: int = 96 * 2**20
    """Of one request: two images, in base64 a third larger."""
    max_held_bytes: int = 2 * 2**30
    """Bodies and decoded pictures of all requests together; more requests are told to come back."""
    body_timeout_s: float = 60.0
    """A body must have arrived within this time."""
    max_parts: int = 64
    """Parts of a form."""
    max_field_chars: int = 16_384
    """Of a form's text field or a JSON string that is neither picture nor prompt."""
    max_prompt_chars: int = 4_000
    """Of the prompt and of the negative prompt."""

    max_image_bytes: int = 50 * 2**20
    """Of one file, as for OpenAI."""
    max_pixels: int = 25_000_000
    """Width times height, as the file's header states them."""
    max_side: int = 16_383
    """Pixels; WEBP has no longer ones."""
    max_aspect: float = 16.0
    """Longer side over shorter side."""
    max_pictures: int = 10
    """Per request (`n`)."""
    max_answer_pixels: int = 100_000_000
    """Pictures times their pixels."""
    max_steps: int = 150
    max_feather: int = 64
    """Pixels."""
    max_padding: int = 4_096
    """Pixels."""
    max_adapters: int = 8
    """Per request."""
    max_weight: float = 4.0
    """Of an adapter, either sign."""

    timeout_s: float = 300.0
    """Of a request that states none."""
    max_timeout_s: float = 600.0
    """That a request may state."""
    threads: int = 4
    """Decoding and encoding at once."""
    png_compress_level: int = 1
    """0 to 9 as zlib's; 1 is a fifth of 6's time for a tenth more bytes."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and name != "png_compress_level" and not 0 < value < float("inf"):
                raise InpaintError(f"{name} {value}: give a positive number")
        if not 0 <= self.png_compress_level <= 9:
            raise InpaintError(f"png_compress_level {self.png_compress_level}: give 0 to 9")
        if self.timeout_s > self.max_timeout_s:
            raise InpaintError(f"timeout_s {self.timeout_s} is above max_timeout_s {self.max_timeout_s}: raise that")
        largest = self.max_body_bytes + BYTES_PER_PIXEL * self.max_answer_pixels
        if largest > self.max_held_bytes:
            raise InpaintError(f"max_held_bytes {self.max_held_bytes}: one request may need {largest}; raise it")
        if not self.host:
            raise InpaintError("host is empty: give the address that the server listens on")
