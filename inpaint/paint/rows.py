"""One row: its files -> a request -> a picture and a comparison; and the painter that a run's settings ask for."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from inpaint.data.decode import DEFAULT_LIMITS, PAINT, Limits, load_hole, load_rgb
from inpaint.data.files import read
from inpaint.data.holes import CentreKept
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Row
from inpaint.data.storage import open_root
from inpaint.errors import BadRow, InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.adapter import Adapter, apply_adapter
from inpaint.models.base import load_base
from inpaint.paint.painter import Painter
from inpaint.paint.paste import comparison
from inpaint.paint.request import PaintRequest
from inpaint.paint.results import write_atomically
from inpaint.paint.tasks import PaintSettings, format_prompt
from inpaint.randomness import generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def read_adapter(settings: PaintSettings) -> Adapter | None:
    """The run's adapter, if it has one. Raises InpaintError where the folder is none."""
    return None if settings.adapter is None else load_adapter(settings.adapter)


def load_painter(settings: PaintSettings, adapter: Adapter | None, *, device: str, max_batch: int) -> Painter:
    """A painter with the run's base, and its adapter applied."""
    revision = wanted_revision(settings, adapter)
    base = load_base(settings.base, revision=revision, dtype=DTYPES[settings.precision])
    if adapter is not None:
        apply_adapter(base, adapter)
    return Painter(base, device=device, max_batch=max_batch)


def wanted_revision(settings: PaintSettings, adapter: Adapter | None) -> str | None:
    """The base's revision that the run asks for, or else its adapter."""
    return settings.revision or (None if adapter is None else adapter.card.base_revision)


def read_row(row: Row, limits: Limits, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The photo to paint on (H x W x 3 uint8) and its hole (H x W bool). Raises BadRow.

    The photo is the row's `input`, or its image. Without a mask the hole is all but a random centre crop.
    """
    root = open_root(row.root)
    if row.input is not None:
        photo = _photo(read(root, row.input, "input", limits.max_bytes), "input", limits)
    else:
        photo = _photo(read(root, row.image, "output", limits.max_bytes), "output", limits)
    if row.hole is None:
        height, width = photo.shape[:2]
        return photo, CentreKept().draw(None, height, width, generator(seed, f"paint/{row.id}", 0)) >= PAINT
    return photo, _hole(read(root, row.hole, "mask", limits.max_bytes), photo, limits)


def request_of(photo: np.ndarray, hole: np.ndarray, prompt: str, seed: int, settings: PaintSettings) -> PaintRequest:
    """What the settings ask the painter."""
    return PaintRequest(
        image=photo,
        hole=hole,
        prompt=prompt,
        negative_prompt=settings.negative_prompt,
        seed=seed,
        sampling=settings.sampling,
    )


def paint_file(
    image: Path, mask: Path, prompt: str, output: Path, settings: PaintSettings, *, category: str | None = None
) -> Path:
    """Paints one photo where its mask is white, without Ray; the run's seed is the picture's.

    Returns:
        The comparison's path, `<output>_comparison.png`.

    Raises:
        InpaintError: a file that cannot be used (BadRow), an unknown category, or settings out of range.
    """
    if output.suffix.lower() != ".png":
        raise InpaintError(f"output {output}: give a name that ends in .png, which keeps pixels as they are")
    photo = _photo(read_bytes(image, "image"), "image", DEFAULT_LIMITS)
    hole = _hole(read_bytes(mask, "mask"), photo, DEFAULT_LIMITS)
    adapter = read_adapter(settings)
    prompt = format_prompt(prompt, category, None if adapter is None else adapter.card)
    request = request_of(photo, hole, prompt, settings.seed, settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (result,) = load_painter(settings, adapter, device=device, max_batch=1).paint([request])
    strip = output.with_name(f"{output.stem}_comparison.png")
    write_atomically(output, encode_png(result))
    write_atomically(strip, encode_png(comparison(photo, hole, result)))
    return strip


def encode_png(image: np.ndarray) -> bytes:
    """H x W x 3 uint8 -> PNG."""
    file = io.BytesIO()
    # Level 1 is several times faster than the default and costs a tenth in size.
    Image.fromarray(image).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _photo(data: bytes, field: str, limits: Limits) -> np.ndarray:
    return np.asarray(load_rgb(data, field, limits))


def _hole(data: bytes, photo: np.ndarray, limits: Limits) -> np.ndarray:
    hole = np.asarray(load_hole(data, "mask", limits)) >= PAINT
    if hole.shape != photo.shape[:2]:
        height, width = photo.shape[:2]
        detail = f"{hole.shape[1]} x {hole.shape[0]}, the photo is {width} x {height}: make them the same size"
        raise BadRow("mask", Reason.OTHER_SIZE, detail)
    if not hole.any():
        raise BadRow("mask", Reason.EMPTY_HOLE, "no pixel is white: white is what shall be painted; is it inverted?")
    return hole


def read_bytes(path: Path, field: str) -> bytes:
    """A file's bytes. Raises InpaintError naming `field` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InpaintError(f"{field} {path}: cannot be read: {error.strerror}") from error
