"""DDPM inpainting as two Python functions: the same code as `python -m ray_jobs.train_ddpm` and `ray_jobs.paint`.

Mask files of this workload: white = keep, black = fill.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from inpaint.data.decode import DEFAULT_LIMITS, PAINT, load_hole, load_rgb
from inpaint.data.quarantine import Reason
from inpaint.diffusion.repaint import PixelSampling
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.crop import resize_hole, resize_image
from inpaint.paint.ddpm_painter import OnFrame, ReverseProcess
from inpaint.paint.paste import comparison
from inpaint.paint.request import DdpmRequest
from inpaint.paint.results import write_atomically
from inpaint.paint.rows import encode_png, read_bytes
from inpaint.progress import ProgressBar
from inpaint.recipes.ddpm import load_ddpm, preset, train_ddpm
from inpaint.train.checkpoint import Progress

_seed = 0


def set_seed(seed: int) -> None:
    """The seed of later calls of the functions below, and of Python's, numpy's and torch's own generators.

    Raises:
        InpaintError: not in 0 .. 2^32 - 1, which is what numpy takes.
    """
    global _seed
    if not 0 <= seed < 2**32:
        raise InpaintError(f"seed {seed}: give 0 to 2^32 - 1")
    _seed = seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or else a GPU where there is one. Raises InpaintError for a GPU that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InpaintError(f"device {device!r}: give cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InpaintError(f"device {device}: torch finds no GPU here; leave the device out")
    return chosen


def train_inpainting(
    dataset_path: str | Path,
    checkpoint_path: str | Path,
    num_epochs: float = 2000,
    batch_size: int = 32,
    lr: float = 1e-4,
    image_size: int = 128,
    save_every_n_epochs: float = 100,
    *,
    workers: int = 1,
    device: str | None = None,
    connect: bool = True,
) -> Progress:
    """Train an inpainting model from a folder of images; a run that is there already is continued.

    Args:
        dataset_path: folder of images; all folders below it are read.
        checkpoint_path: folder (or URL) of the run; `inpaint_image` takes it.
        num_epochs: passes over the images.
        batch_size: images per optimizer step; a multiple of `workers`.
        lr: learning rate.
        image_size: 32, 64, 128, 256 or 512 pixels.
        save_every_n_epochs: epochs between checkpoints.
        workers: Ray Train workers.
        device: `cpu`, `cuda`, or None: GPUs where the cluster has them.
        connect: join or start a Ray cluster (`inpaint.cluster.connect`); False where that is done.

    Returns where it ended.

    Raises:
        InpaintError: no usable image, or settings out of range.
        ResumeMismatch: the run in `checkpoint_path` began with other images or settings.
    """
    if connect:
        from inpaint import cluster

        cluster.connect()
    if batch_size < 1 or workers < 1 or batch_size % workers:
        raise InpaintError(f"batch_size {batch_size} must be a multiple of workers {workers}")
    defaults = preset(image_size, data=str(dataset_path), output=str(checkpoint_path))
    share = batch_size // workers
    settings = replace(
        defaults.train,
        epochs=num_epochs,
        global_batch=batch_size,
        micro_batch=max(m for m in range(1, share + 1) if share % m == 0 and m <= defaults.train.micro_batch),
        workers=workers,
        gpu=None if device is None else choose_device(device).type == "cuda",
        seed=_seed,
    )
    return train_ddpm(
        replace(defaults, train=settings, learning_rate=lr, checkpoint_epochs=save_every_n_epochs, resume=True)
    )


def inpaint_image(
    image_path: str | Path,
    mask_path: str | Path,
    checkpoint_path: str | Path,
    num_denoising_steps: int = 50,
    save_result: str | Path | None = None,
    output_size: int | tuple[int, int] | None = None,
    *,
    sampling: PixelSampling | None = None,
    label: str = "",
    guidance_scale: float = 1.0,
    seed: int | None = None,
    device: str | None = None,
    display_reverse: str | Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Fill the black region of a mask; what is white in it comes back bit for bit. Needs no Ray.

    Args:
        mask_path: of the image's size; white = keep, black = fill.
        checkpoint_path: the run of `train_inpainting`, finished or not.
        num_denoising_steps: of DDIM; `sampling` replaces it.
        save_result: a PNG; a comparison goes beside it, to `NAME_comparison.png`.
        output_size: of the result: longer side in pixels, or (height, width); None: the image's own. The image is
            scaled to it first, and kept pixels are then the scaled image's.
        sampling: sampler, steps and RePaint's resampling.
        label: name of a class, where the model has classes.
        seed: None: that of `set_seed`.
        device: `cpu`, `cuda`, or None: a GPU where there is one.
        display_reverse: a PNG with ten pictures of the reverse process.
        on_step: called with (network evaluations done, all of them).

    Returns the result, H x W x 3 uint8.

    Raises:
        InpaintError: a file that cannot be used (BadRow), no model there, or settings out of range.
    """
    for path in (save_result, display_reverse):
        if path is not None and Path(path).suffix.lower() != ".png":
            raise InpaintError(f"{path}: give a name that ends in .png, which keeps pixels as they are")
    image, hole = read_image_and_mask(Path(image_path), Path(mask_path))
    shape = _output_shape(image.shape[0], image.shape[1], output_size)
    image, hole = resize_image(image, shape), resize_hole(hole, shape)
    request = DdpmRequest(
        image=image,
        hole=hole,
        seed=_seed if seed is None else seed,
        sampling=sampling or PixelSampling(steps=num_denoising_steps),
        label=label,
        guidance_scale=guidance_scale,
    )
    frames = ReverseProcess()
    painter = load_ddpm(str(checkpoint_path), device=choose_device(device), max_batch=1)
    (result,) = painter.paint([request], _watcher(frames if display_reverse else None, on_step))
    if display_reverse is not None:
        write_atomically(Path(display_reverse), encode_png(frames.strip()))
    if save_result is not None:
        path = Path(save_result)
        write_atomically(path, encode_png(result))
        write_atomically(comparison_path(path), encode_png(comparison(image, hole, result)))
    return result


def paint_with_model(
    model: str,
    image: Path,
    mask: Path,
    output: Path,
    sampling: PixelSampling,
    label: str = "",
    guidance_scale: float = 1.0,
    seed: int = 0,
    output_size: int | None = None,
    display_reverse: Path | None = None,
) -> Path:
    """`python -m ray_jobs.paint --model RUN`: `inpaint_image` under a progress bar.

    Args:
        model: the output of `python -m ray_jobs.train_ddpm`.
        mask: white = keep, black = fill.
        output: a PNG; its comparison goes beside it.
        label: name of the class that shall be painted, where the model has classes.
        guidance_scale: classifier-free guidance towards the label; up to 1 there is none.
        output_size: longer side of the result in pixels; unset: the image's own.
        display_reverse: a PNG for ten pictures of the reverse process.

    Returns the comparison's path.
    """
    with ProgressBar("painting") as bar:
        inpaint_image(
            image,
            mask,
            model,
            save_result=output,
            output_size=output_size,
            sampling=sampling,
            label=label,
            guidance_scale=guidance_scale,
            seed=seed,
            display_reverse=display_reverse,
            on_step=bar.show,
        )
    return comparison_path(output)


def comparison_path(result: Path) -> Path:
    """Where the comparison of a result goes."""
    return result.with_name(f"{result.stem}_comparison.png")


def read_image_and_mask(image_path: Path, mask_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """H x W x 3 uint8 and the hole, H x W bool: black in the mask file. Raises InpaintError (BadRow)."""
    image = np.asarray(load_rgb(read_bytes(image_path, "image"), "image", DEFAULT_LIMITS))
    mask: Image.Image = load_hole(read_bytes(mask_path, "mask"), "mask", DEFAULT_LIMITS)
    hole = np.asarray(mask) < PAINT
    if hole.shape != image.shape[:2]:
        height, width = image.shape[:2]
        detail = f"{hole.shape[1]} x {hole.shape[0]}, the image is {width} x {height}: make them the same size"
        raise BadRow("mask", Reason.OTHER_SIZE, detail)
    if not hole.any():
        raise BadRow("mask", Reason.EMPTY_HOLE, "no pixel is black: black is what shall be filled; is it inverted?")
    return image, hole


def _watcher(frames: ReverseProcess | None, on_step: Callable[[int, int], None] | None) -> OnFrame | None:
    if frames is None and on_step is None:
        return None

    def watch(done: int, total: int, pictures_BHW3: np.ndarray) -> None:
        if frames is not None:
            frames(done, total, pictures_BHW3)
        if on_step is not None:
            on_step(done, total)

    return watch


def _output_shape(height: int, width: int, size: int | tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        return height, width
    if isinstance(size, tuple):
        shape = size
    else:
        scale = size / max(height, width)
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    if min(shape) < 1 or size == 0:
        raise InpaintError(f"output_size {size}: give pixels, at least 1")
    return shape
