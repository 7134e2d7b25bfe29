"""What the HTTP side reads, refuses and waits for."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from inpaint.errors import InpaintError

BYTES_PER_PIXEL = 12
"""That a picture in work takes: the photo, also as it came, its hole, and what goes out."""


class HttpSettings(BaseModel):
    """Limits hold before anything is decoded; each refusal names the limit that it hit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address that the server listens on; behind Serve that of its `http_options`. Without keys only a loopback address
    is allowed."""
    keys_file: str | None = None
    """API keys, one per line as `name:key` or `key`; `#` begins a comment. Read again whenever it has changed."""
    keys_variable: str = "INPAINT_API_KEYS"
    """Environment variable with more keys, separated by commas or lines, in the same form."""
    open_paths: tuple[str, ...] = ("/health", "/ready")
    """Paths answered without a key, exactly as written."""

    max_in_flight: PositiveInt = 256
    """Requests handled at once, shared evenly by the keys that ask; more are told to come back."""
    max_body_bytes: PositiveInt = 96 * 2**20
    """Of one request: two images, in base64 a third larger."""
    max_held_bytes: PositiveInt = 2 * 2**30
    """Bodies and decoded pictures of all requests together; more requests are told to come back."""
    body_timeout_s: PositiveFloat = 60.0
    """A body must have arrived within this time."""
    max_parts: PositiveInt = 64
    """Parts of a form."""
    max_field_chars: PositiveInt = 16_384
    """Of a form's text field or a JSON string that is neither picture nor prompt."""
    max_prompt_chars: PositiveInt = 4_000
    """Of the prompt and of the negative prompt."""

    max_image_bytes: PositiveInt = 50 * 2**20
    """Of one file, as for OpenAI."""
    max_pixels: PositiveInt = 25_000_000
    """Width times height, as the file's header states them."""
    max_side: PositiveInt = 16_383
    """Pixels; WEBP has no longer ones."""
    max_aspect: PositiveFloat = 16.0
    """Longer side over shorter side."""
    max_pictures: PositiveInt = 10
    """Per request (`n`)."""
    max_answer_pixels: PositiveInt = 100_000_000
    """Pictures times their pixels."""
    max_steps: PositiveInt = 150
    max_feather: PositiveInt = 64
    """Pixels."""
    max_padding: PositiveInt = 4_096
    """Pixels."""
    max_adapters: PositiveInt = 8
    """Per request."""
    max_weight: PositiveFloat = 4.0
    """Of an adapter, either sign."""

    timeout_s: PositiveFloat = 300.0
    """Of a request that states none."""
    max_timeout_s: PositiveFloat = 600.0
    """That a request may state."""
    threads: PositiveInt = 4
    """Decoding and encoding at once."""
    png_compress_level: int = Field(default=1, ge=0, le=9)
    """As zlib's; 1 is a fifth of 6's time for a tenth more bytes."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.timeout_s > self.max_timeout_s:
            raise InpaintError(f"timeout_s {self.timeout_s} is above max_timeout_s {self.max_timeout_s}: raise that")
        largest = self.max_body_bytes + BYTES_PER_PIXEL * self.max_answer_pixels
        if largest > self.max_held_bytes:
            raise InpaintError(f"max_held_bytes {self.max_held_bytes}: one request may need {largest}; raise it")
        return self
