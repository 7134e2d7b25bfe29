"""What a panel LoRA is worth: the share of hidden panels that are painted with the visible panels' product.

    python -m benchmarks.panels

Trains on 96 toy composites, each one product in four views on one background, whose captions tell neither, and paints 1
and 2 hidden panels of 200 held-out composites with the adapter and, with the same prompts and seeds, without. What is
counted are painted panels that have both the colour and the shape (`agreement`), and those that have the background.
Bars: `agreement_min` >= 0.80, the lowest of all of these with the adapter; `base_agreement_max` near chance (1/64 for a
product, 1/8 for a background); `visible_pixels_changed` 0.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.harness import emit, progress
from inpaint.cluster import connect
from inpaint.diffusion.objective import LossSettings
from inpaint.models.base import load_base
from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.painter import Painter
from inpaint.paint.request import SamplingSettings
from inpaint.recipes.panel_lora import TrainPanelLora, train_panels
from inpaint.toy.measure_panels import PaintedPanels, held_out_composites, paint_hidden
from inpaint.toy.panel_detectors import PanelDetectors
from inpaint.toy.panels import SHEET_PROMPT, write_sheets
from inpaint.train.settings import Precision

COUNTED = ("product", "background")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    base: str = "toy-sdxl"
    composites: int = 96
    """Trained on."""
    held_out: int = 200
    """Painted, with each number of hidden panels."""
    epochs: float = 60
    learning_rate: float = 2e-3
    rank: int = 16
    guidance_scale: float = 6.0
    """Of painting, with the adapter and without."""
    seed: int = 0
    adapter: str | None = None
    """One that is there already; unset: it is trained."""
    output: str | None = None
    """Folder in which the training is kept, new or empty; unset: a temporary one."""


def trained(settings: Settings, output: Path) -> str:
    """The folder of an adapter, trained as `python -m ray_jobs.train_panel_lora` does it."""
    sheets = write_sheets(output / "sheets", seed=settings.seed + 1, count=settings.composites)
    connect()
    return train_panels(
        TrainPanelLora(
            data_dir=str(sheets),
            output_dir=str(output / "run"),
            model_id=settings.base,
            num_epochs=settings.epochs,
            batch_size=8,
            learning_rate=settings.learning_rate,
            lora_rank=settings.rank,
            lora_alpha=settings.rank,
            lora_dropout=0.0,
            image_size=128,
            mask_probability=0.9,
            max_masked_panels=3,
            mixed_precision=Precision.BF16,
            max_micro_batch=8,
            gradient_checkpointing=False,
            ema_halflife=400,
            # As its base was trained: what is shared is decided at the noisiest timesteps.
            loss=LossSettings(debiased=True, timestep_shift=4.0, kept_weight=0.1),
            card_samples=8,
            seed=settings.seed,
        )
    )


def measured(painter: Painter, detectors: PanelDetectors, settings: Settings, title: str) -> dict[int, PaintedPanels]:
    """By number of hidden panels."""
    sheets = held_out_composites(settings.held_out)
    prompts = [SHEET_PROMPT] * len(sheets)
    sampling = SamplingSettings(guidance_scale=settings.guidance_scale)
    return {
        hidden: paint_hidden(
            painter, detectors, sheets, prompts, hidden=hidden, sampling=sampling, title=f"{title}, {hidden} hidden"
        )
        for hidden in (1, 2)
    }


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        adapter = settings.adapter or trained(settings, Path(settings.output or temporary))
        detectors = PanelDetectors.fit()
        models = read_models(PaintSettings(base=settings.base, adapter=adapter))
        adapted = measured(models.painter("cpu", 16), detectors, settings, "adapter")
    plain = measured(Painter(load_base(settings.base), device="cpu", max_batch=16), detectors, settings, "base")
    of_adapter = {f"{what}, {hidden} hidden": one.right[what] for hidden, one in adapted.items() for what in COUNTED}
    of_base = {f"{what}, {hidden} hidden": one.right[what] for hidden, one in plain.items() for what in COUNTED}
    changed = sum(one.visible_pixels_changed for one in (*adapted.values(), *plain.values()))
    progress(f"adapter {of_adapter}\nbase {of_base}")
    emit(
        "panels",
        {
            "agreement_min": min(of_adapter.values()),
            "base_agreement_max": max(of_base.values()),
            "visible_pixels_changed": changed,
        },
        agreement=of_adapter,
        base_agreement=of_base,
        traits={hidden: one.right for hidden, one in adapted.items()},
        clear={"adapter": [one.clear for one in adapted.values()], "base": [one.clear for one in plain.values()]},
        detector_error=detectors.error(),
        settings=vars(replace(settings, output=None, adapter=None)),
    )


if __name__ == "__main__":
    main()
