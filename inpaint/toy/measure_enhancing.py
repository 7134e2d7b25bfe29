"""What enhancing does to photos of the toy world: the product alone is repainted, in the colour that is asked for.

The shipped base knows backgrounds alone: products are the ControlNet's, which learned from recoloured ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inpaint.errors import InpaintError
from inpaint.models.base import load_base
from inpaint.models.controlnet import load_controlnet
from inpaint.paint.painter import Painter
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.recipes.enhancing import controlled
from inpaint.toy.catalogue import COLOUR_NAMES, Scene
from inpaint.toy.detectors import Detectors
from inpaint.toy.measure import paint_all
from inpaint.vision.control import edges
from inpaint.vision.finder import Findings

SAMPLING = SamplingSettings(guidance_scale=2.0)
"""What is named of a product takes guidance; the base's own backgrounds do without."""


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


def toy_painter(base: str = "toy", controlnet: str = "toy-edges", *, max_batch: int = 16) -> Painter:
    """With the shipped base and ControlNet, or others."""
    loaded = load_base(base)
    return Painter(loaded, controlnet=load_controlnet(controlnet, loaded), max_batch=max_batch)


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
    sampling: SamplingSettings = SAMPLING,
) -> Enhanced:
    """Repaint what was found in each scene, with a prompt that names the product and another colour, and look at it.

    A scene in which nothing was found has an empty hole. Judged are scenes in which what was found has the product's
    own class; what is outside of what was found is counted in all.
    """
    counted, colours, info = CountedUnet(painter), other_colours(scenes), painter.base.info
    requests = []
    for number, (scene, one, colour) in enumerate(zip(scenes, findings, colours, strict=True)):
        hole = np.zeros(scene.product.shape, bool) if one.mask is None else one.mask
        named = one.found[0].product if one.found else ""
        article = "an" if colour[:1] in "aeiou" and colour else "a"
        prompt = f"{article} {colour} {named}"
        requests.append(PaintRequest(image=scene.image, hole=hole, prompt=prompt, seed=number, sampling=sampling))
    found = [bool(one.found) for one in findings]
    repainted = [request for request, is_found in zip(requests, found, strict=True) if is_found]
    shown = iter(controlled(info, repainted, edges, 1.0))
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
