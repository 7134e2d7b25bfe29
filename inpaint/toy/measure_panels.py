"""What the SDXL toy base paints into hidden panels, and what an adapter makes it paint, judged by the detectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inpaint.data.panels import ChosenPanels
from inpaint.models.base import load_base
from inpaint.paint.painter import Painter
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.randomness import generator
from inpaint.toy.detectors import UNCLEAR
from inpaint.toy.measure import HELD_OUT_SEED, held_out, paint_all, reconstruction_db
from inpaint.toy.panel_detectors import PanelDetectors
from inpaint.toy.panels import PRODUCT, SHEET_PROMPT, TRAITS, Composite, compose
from inpaint.toy.textures import Array


@dataclass(frozen=True)
class PaintedPanels:
    """Hidden panels of held-out composites, painted, and what the detectors see in them."""

    images: Array
    """N H W 3, uint8: the whole composites."""
    right: dict[str, float]
    """Per trait, the share of painted panels that have the first visible panel's; `product`: shape and colour both."""
    clear: float
    """Share of painted panels of which every trait can be told."""
    visible_pixels_changed: int


def paint_hidden(
    painter: Painter,
    detectors: PanelDetectors,
    composites: Sequence[Composite],
    prompts: Sequence[str],
    *,
    hidden: int,
    sampling: SamplingSettings | None = None,
    seed: int = 0,
    title: str = "painting",
) -> PaintedPanels:
    """Hide so many panels of each composite, chosen at random, and paint them."""
    chosen = [
        ChosenPanels(tuple(generator(seed, "toy/hidden", number).permutation(4)[:hidden].tolist()))
        for number in range(len(composites))
    ]
    requests = [
        PaintRequest(
            image=one.image,
            hole=panels.hole(one.image),
            prompt=prompt,
            seed=seed + number,
            sampling=sampling or SamplingSettings(),
        )
        for number, (one, panels, prompt) in enumerate(zip(composites, chosen, prompts, strict=True))
    ]
    painted = paint_all(painter, requests, title)
    changed = sum(kept_pixels_changed(r.image, image, r.hole) for r, image in zip(requests, painted, strict=True))
    places = [(number, panel) for number, panels in enumerate(chosen) for panel in panels.numbers]
    seen = detectors.see(np.stack([_panel(painted[number], panel) for number, panel in places]))
    wanted = [
        next(scene for panel, scene in enumerate(composites[number].panels) if panel not in chosen[number].numbers)
        for number, _ in places
    ]
    hits = {
        trait: np.array([name == getattr(scene, trait) for name, scene in zip(seen[trait], wanted, strict=True)])
        for trait in TRAITS
    }
    hits["product"] = np.all([hits[trait] for trait in PRODUCT], axis=0)
    return PaintedPanels(
        images=painted,
        right={name: float(hit.mean()) for name, hit in hits.items()},
        clear=float(np.mean([UNCLEAR not in names for names in zip(*seen.values(), strict=True)])),
        visible_pixels_changed=changed,
    )


def _panel(image: Array, number: int) -> Array:
    side = len(image) // 2
    row, column = divmod(number, 2)
    return image[row * side : (row + 1) * side, column * side : (column + 1) * side]


def held_out_composites(count: int, common: tuple[str, ...] = TRAITS) -> list[Composite]:
    """Composites that no training saw; by default sheets."""
    return [compose(HELD_OUT_SEED, index, common=common) for index in range(count)]


def measure_panel_base(folder: str, *, samples: int = 100) -> dict[str, float]:
    """The figures of an SDXL toy base, on held-out composites with one hidden panel.

    Keys: `vae_db`; `clear_share`, of panels whose every trait can be told; `shared_product` (shape and colour) and
    `shared_background`, the share that has what the prompt says the panels share, and which only they show;
    `told_background`, what the prompt tells; `sheet_product` and `sheet_background`, the share that has a sheet's,
    which this base was never shown (chance: 1/64 and 1/8); `visible_pixels_changed`.
    """
    base, detectors = load_base(folder), PanelDetectors.fit()
    painter = Painter(base, device="cpu", max_batch=16)

    def painted(common: tuple[str, ...], prompt: str, title: str) -> PaintedPanels:
        composites = held_out_composites(samples, common)
        prompts = [prompt.format(**vars(one.panels[0])) for one in composites]
        return paint_hidden(painter, detectors, composites, prompts, hidden=1, title=title)

    product = painted(PRODUCT, "four photos of one shape and one colour", "one product")
    background = painted(("background",), "four photos of one background", "one background")
    told = painted(("background",), "four photos of {background}", "told background")
    sheets = painted(TRAITS, SHEET_PROMPT, "sheets")
    every = [product, background, told, sheets]
    return {
        "vae_db": reconstruction_db(base, held_out(512)),
        "clear_share": float(np.mean([one.clear for one in every])),
        "shared_product": product.right["product"],
        "shared_background": background.right["background"],
        "told_background": told.right["background"],
        "sheet_product": sheets.right["product"],
        "sheet_background": sheets.right["background"],
        "visible_pixels_changed": sum(one.visible_pixels_changed for one in every),
    }
