"""DDPM inpainting as two Python functions: the same code as `python -m ray_jobs.train_ddpm` and `ray_jobs.paint`.

Mask files of this workload: white = keep, black = fill.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from inpaint.device import parse_device
from inpaint.diffusion.ddpm import PixelSampling
from inpaint.errors import InpaintError
from inpaint.paint.crop import resize_hole
from inpaint.paint.ddpm_painter import ReverseProcess
from inpaint.paint.photos import Fill, check_png_name, read_photo, write_pictures, write_png
from inpaint.paint.request import DdpmRequest
from inpaint.recipes.ddpm import load_ddpm, preset_of
from inpaint.train.run import run

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


def train_inpainting(
    dataset_path: str | Path,
    checkpoint_path: str | Path,
    num_epochs: float = 2000,
    batch_size: int = 32,
    lr: float = 1e-4,
    image_size: int = 128,
    save_every_n_epochs: float = 100,
    *,
    workers: int | tuple[int, int] = (1, 8),
    device: str | None = None,
    connect: bool = True,
) -> str:
    """Train an inpainting model from a folder of images; a run that is there already is continued.

    Args:
        dataset_path: folder of images; all folders below it are read.
        checkpoint_path: folder (or URL) of the run; `inpaint_image` takes it.
        num_epochs: passes over the images.
        batch_size: images per optimizer step.
        lr: learning rate.
        image_size: 32, 64, 128, 256 or 512 pixels.
        save_every_n_epochs: epochs between checkpoints.
        workers: Ray Train workers: exactly so many, or (fewest, most).
        device: `cpu`, `cuda`, or None: GPUs where the cluster has them.
        connect: join or start a Ray cluster (`inpaint.cluster.connect`); False where that is done.

    Returns the run's folder.

    Raises:
        InpaintError: no usable image, or settings out of range.
        ResumeMismatch: the run in `checkpoint_path` began with other images or settings.
    """
    if connect:
        from inpaint import cluster

        cluster.connect()
    defaults = preset_of(image_size, data=str(dataset_path), output=str(checkpoint_path))
    settings = replace(
        defaults.train,
        epochs=num_epochs,
        global_batch=batch_size,
        workers=workers,
        gpu=None if device is None else parse_device(device).type == "cuda",
        seed=_seed,
    )
    config = replace(
        defaults,
        train=settings,
        learning_rate=lr,
        checkpoint_epochs=save_every_n_epochs,
        resume=True,
        recheck=True,  # nobody was asked whether the images are the same
    )
    return run(config)[0]


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
    feather: int = 0,
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
        guidance_scale: classifier-free guidance towards the label; up to 1 there is none.
        feather: pixels inside the hole over which the image fades into the painting.
        seed: None: that of `set_seed`.
        device: `cpu`, `cuda`, or None: a GPU where there is one.
        display_reverse: a PNG with ten pictures of the reverse process.
        on_step: called with (network evaluations done, all of them).

    Returns the result, H x W x 3 uint8, as sRGB.

    Raises:
        InpaintError: a file that cannot be used (BadRow), no model there, or settings out of range.
    """
    for path in (save_result, display_reverse):
        if path is not None:
            check_png_name(str(path))
    photo, hole = read_photo(str(image_path), str(mask_path), Fill.BLACK)
    shape = _output_shape(hole.shape[0], hole.shape[1], output_size)
    photo, hole = photo.resized(shape), resize_hole(hole, shape)
    request = DdpmRequest(
        image=photo.image,
        hole=hole,
        seed=_seed if seed is None else seed,
        sampling=sampling or PixelSampling(steps=num_denoising_steps),
        label=label,
        guidance_scale=guidance_scale,
        feather=feather,
    )
    frames = ReverseProcess()

    def watch(done: int, total: int, pictures_BHW3: np.ndarray) -> None:
        frames(done, total, pictures_BHW3)
        if on_step is not None:
            on_step(done, total)

    painter = load_ddpm(str(checkpoint_path), device=device, max_batch=1)
    (result,) = painter.paint([request], watch if display_reverse or on_step else None)
    if display_reverse is not None:
        write_png(str(display_reverse), frames.strip())
    if save_result is not None:
        write_pictures(str(save_result), photo, hole, result)
    return result


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
