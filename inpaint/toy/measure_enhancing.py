"""What enhancing does to photos of the toy world: the product alone is repainted, in the colour that is asked for.

The shipped base knows backgrounds alone. What products look like is the shipped adapter's `products`, and their shape
in a photo the ControlNet's, which learned beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.adapter import AdapterCard, apply_adapter
from inpaint.models.base import load_base
from inpaint.models.controlnet import load_controlnet
from inpaint.models.locate import TOY_BASE
from inpaint.paint.painter import Painter
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.recipes.enhancing import controlled
from inpaint.toy.catalogue import COLOUR_NAMES, Scene
from inpaint.toy.detectors import Detectors
from inpaint.toy.measure import paint_all
from inpaint.vision.control import edges
from inpaint.vision.finder import Findings

PRODUCTS = TOY_BASE.parent / "adapters" / "products"
"""The shipped adapter's folder."""
SAMPLING = SamplingSettings(guidance_scale=5.0)
"""Guidance as LoRAs of Stable Diffusion need it, too; the base's own backgrounds do without."""


@dataclass(frozen=True, kw_only=True)
class Enhanced:
    """What was seen of enhanced photos."""

    class_kept: float
    """Share of those enhanced whose product is still of its class, by the truth's silhouette."""
    attribute_applied: float
    """Share of them whose product has the colour that was asked for."""
    scene_pixels_changed: int
    """Pixels of the scenes, outside what was found, that differ; all photos together."""
    unet_forwards_for_skipped: int
    """Pictures that the U-Net was called for, beyond the steps of those enhanced."""
    skipped_changed: int
    """Photos without a finding of which a pixel differs."""


class CountedUnet:
    """A U-Net that counts the rows which it is called for."""

    def __init__(self, painter: Painter) -> None:
        self.rows = 0
        painter.base.unet.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: object, inputs: tuple[np.ndarray, ...], kwargs: dict[str, object]) -> None:
        self.rows += len(inputs[0])


def toy_painter(
    base: str = "toy", controlnet: str = "toy-edges", adapter: str | Path | None = PRODUCTS, *, max_batch: int = 16
) -> tuple[Painter, AdapterCard | None]:
    """With the shipped base, ControlNet and adapter, or others; and the adapter's card."""
    loaded = load_base(base)
    net = load_controlnet(controlnet, loaded)
    if adapter is None:
        return Painter(loaded, controlnet=net, max_batch=max_batch), None
    known = load_adapter(adapter)
    apply_adapter(loaded, known)
    return Painter(loaded, controlnet=net, max_batch=max_batch), known.card


def other_colours(scenes: Sequence[Scene]) -> list[str]:
    """A colour for each scene that its product does not have; all come equally often."""
    return [
        COLOUR_NAMES[(COLOUR_NAMES.index(s.colour) + 1 + i % 7) % 8] if s.shape else "" for i, s in enumerate(scenes)
    ]


def enhance_scenes(
    painter: Painter,
    detectors: Detectors,
    scenes: Sequence[Scene],
    findings: Sequence[Findings],
    *,
    card: AdapterCard | None = None,
    sampling: SamplingSettings = SAMPLING,
    conditioning_scale: float = 1.0,
) -> Enhanced:
    """Repaint what was found in each scene, with a prompt that names the product and another colour, and look at it.

    A scene in which nothing was found has an empty hole. Judged are scenes in which what was found has the product's
    own class; what is outside of what was found is counted in all.

    Args:
        card: of the painter's adapter, whose first category's token goes into the prompts.
        conditioning_scale: weight of what the ControlNet adds.
    """
    category = next(iter(card.tokens), None) if card is not None else None
    counted, colours, info = CountedUnet(painter), other_colours(scenes), painter.base.info
    requests = []
    for number, (scene, one, colour) in enumerate(zip(scenes, findings, colours, strict=True)):
        hole = np.zeros(scene.product.shape, bool) if one.mask is None else one.mask
        named = one.found[0].product if one.found else ""
        article = "an" if colour[:1] in "aeiou" and colour else "a"
        prompt = f"{article} {colour} {named}"
        prompt = prompt if card is None else card.prompt(prompt, category)
        requests.append(PaintRequest(image=scene.image, hole=hole, prompt=prompt, seed=number, sampling=sampling))
    found = [bool(one.found) for one in findings]
    repainted = [request for request, is_found in zip(requests, found, strict=True) if is_found]
    shown = iter(controlled(info, repainted, edges, conditioning_scale))
    requests = [next(shown) if is_found else request for request, is_found in zip(requests, found, strict=True)]
    images = paint_all(painter, requests, "enhancing")
    resolved = sampling.resolved(info)
    rows = sum(found) * resolved.steps_taken * (2 if resolved.is_guided else 1)
    right = [i for i, one in enumerate(findings) if one.found and one.found[0].product == scenes[i].shape]
    if not right:
        raise InpaintError("no product was found as what it is: there is nothing to judge; give another finder")
    products = np.stack([scenes[i].product for i in right])
    shapes, seen = detectors.shape(images[right], products), detectors.colour(images[right], products)
    changed = [
        kept_pixels_changed(request.image, image, request.hole) for request, image in zip(requests, images, strict=True)
    ]
    return Enhanced(
        class_kept=float(np.mean([shape == scenes[i].shape for shape, i in zip(shapes, right, strict=True)])),
        attribute_applied=float(np.mean([colour == colours[i] for colour, i in zip(seen, right, strict=True)])),
        scene_pixels_changed=sum(changed),
        unet_forwards_for_skipped=counted.rows - rows,
        skipped_changed=sum(count > 0 for count, is_found in zip(changed, found, strict=True) if not is_found),
    )
