"""Train and serve inpainting diffusion models on Ray.

From Python: a model from a folder of images, and a hole painted with it.

    import inpaint

    inpaint.set_seed(0)
    inpaint.train_inpainting("photos", "runs/mine", num_epochs=2000)
    inpaint.inpaint_image("a.png", "mask.png", "runs/mine", save_result="b.png")    # black in the mask = fill

Names below are looked up when they are first used, so that `import inpaint` costs nothing.
"""

import importlib

_HOMES = {
    "inpaint.recipes.inpainting": ("train_inpainting", "inpaint_image", "set_seed", "choose_device"),
    "inpaint.recipes.ddpm": ("TrainDdpm", "train_ddpm", "load_ddpm"),
    "inpaint.diffusion.blocks": ("TimeEmbedding", "ResidualBlock", "SelfAttention", "Level"),
    "inpaint.diffusion.unet": ("UNet", "MaskedUNet", "UNetSettings", "Known"),
    "inpaint.diffusion.ddpm": ("Noise", "NoiseSettings"),
    "inpaint.diffusion.repaint": ("PixelSampling", "PixelSampler", "fill"),
    "inpaint.diffusion.schedule": ("NoiseSchedule", "add_noise"),
    "inpaint.data.random_shapes": ("RandomShapes", "HoleKind"),
    "inpaint.paint.ddpm_painter": ("DdpmPainter", "ModelCard", "ReverseProcess"),
    "inpaint.paint.request": ("DdpmRequest",),
    "inpaint.errors": ("InpaintError",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'inpaint' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
