"""Train and serve inpainting diffusion models on Ray.

Each command is a configuration and a function, and both are here: what `python -m ray_jobs.train_category_lora` does is

    import inpaint

    inpaint.connect()    # joins a Ray cluster, or starts one on this machine
    inpaint.run(inpaint.CategoryLora(data="catalogue.csv", output="runs/catalogue"))

A model of one's own from a folder of images, and a hole painted with it:

    inpaint.train_inpainting("photos", "runs/mine", num_epochs=2000)
    inpaint.inpaint_image("a.png", "mask.png", "runs/mine", save_result="b.png")    # black in the mask = fill

Names below are looked up when they are first used, so that `import inpaint` costs nothing.
"""

import importlib

_HOMES = {
    "inpaint.cluster": ("connect",),
    "inpaint.errors": ("InpaintError",),
    "inpaint.stopping": ("StopToken", "stop_on_signals"),
    # Commands
    "inpaint.recipes.captioning": ("CaptionPhotos", "caption_photos"),
    "inpaint.recipes.category_lora": ("CategoryLora",),
    "inpaint.recipes.controlnet": ("TrainControlNet",),
    "inpaint.recipes.ddpm": ("TrainDdpm", "load_ddpm"),
    "inpaint.recipes.demo": ("Demo", "run_demo"),
    "inpaint.recipes.dreambooth": ("DreamboothLora",),
    "inpaint.recipes.dreambooth_training": ("TrainDreambooth", "train_dreambooth"),
    "inpaint.recipes.evaluate": ("EvaluatePictures", "evaluate_pictures"),
    "inpaint.recipes.exporting": ("ExportAdapter", "export_adapter"),
    "inpaint.recipes.finding": ("FindProducts", "find_products"),
    "inpaint.recipes.fleet": ("Fleet", "train_fleet"),
    "inpaint.recipes.generate": ("GeneratePictures", "generate_pictures"),
    "inpaint.recipes.inpainting": ("train_inpainting", "inpaint_image", "set_seed"),
    "inpaint.recipes.composites": ("MakeComposites", "make_composites"),
    "inpaint.recipes.painting": ("PaintPhotos", "paint_photos"),
    "inpaint.recipes.panel_lora": ("PanelLora", "TrainPanelLora", "train_panels"),
    "inpaint.recipes.panel_painting": ("PaintPanels", "paint_panels"),
    "inpaint.recipes.photoshoot_lora": ("PhotoshootLora", "TrainPhotoshootLora", "train_photoshoot"),
    "inpaint.paint.batch": ("PaintSettings",),
    "inpaint.recipes.sweep": ("Sweep", "sweep"),
    "inpaint.recipes.toy_base": ("PretrainToy", "pretrain_toy"),
    "inpaint.recipes.toy_vision": ("PretrainToyVision", "pretrain_toy_vision"),
    "inpaint.serve.local": ("ServeHere", "serve_here"),
    # A workload of one's own
    "inpaint.recipes.photoshoot": ("EnhancePhotos", "Photoshoot", "enhance_photos"),
    "inpaint.recipes.lora": ("LoraRecipe",),
    "inpaint.train.recipe": ("Recipe", "Trained"),
    "inpaint.train.run": ("run",),
    "inpaint.train.settings": ("TrainSettings", "ValidationSettings", "may_change"),
    # Painting in this process
    "inpaint.models.base": ("load_base",),
    "inpaint.models.adapter": ("apply_adapter",),
    "inpaint.export.adapter_folder": ("load_adapter",),
    "inpaint.device": ("choose_device",),
    "inpaint.paint.painter": ("Painter",),
    "inpaint.paint.request": ("PaintRequest", "SamplingSettings", "DdpmRequest"),
    "inpaint.paint.ddpm_painter": ("DdpmPainter", "ModelCard", "ReverseProcess"),
    # The DDPM's parts
    "inpaint.data.holes": ("RandomShapes", "HoleKind"),
    "inpaint.diffusion.blocks": ("TimeEmbedding", "ResidualBlock", "SelfAttention", "Level"),
    "inpaint.diffusion.unet": ("UNet", "MaskedUNet", "UNetSettings", "Known"),
    "inpaint.diffusion.ddpm": ("Noise", "NoiseSettings", "PixelSampling", "PixelSampler", "fill"),
    "inpaint.diffusion.schedule": ("NoiseSchedule", "add_noise"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'inpaint' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
