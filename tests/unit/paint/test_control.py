"""A ControlNet adds to the rows that have a picture for it, as diffusers', and to no others."""

from dataclasses import replace

import numpy as np
import pytest
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
)
from PIL import Image

from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError
from inpaint.paint.crop import seen
from inpaint.paint.painter import Painter
from inpaint.paint.request import Control
from tests.unit.paint.examples import TOLERANCE, control, controlnet_of, painted_by_diffusers, request


def controlled(pipeline: DiffusionPipeline, net: ControlNetModel, xl: bool) -> DiffusionPipeline:
    kind = StableDiffusionXLControlNetInpaintPipeline if xl else StableDiffusionControlNetInpaintPipeline
    rest = {"add_watermarker": False} if xl else {"requires_safety_checker": False}
    found = kind(**pipeline.components, controlnet=net, **rest)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("name", ["sd9", "sd4", "sdxl9"])
@pytest.mark.parametrize(
    "settings", [{"sampler": Sampler.EULER}, {"guidance_scale": 1.0, "strength": 0.6}], ids=["guided", "unguided"]
)
def test_same_seed_same_picture_as_diffusers(pipelines, tiny_bases, name, settings):
    net = controlnet_of(tiny_bases[name])
    wanted = request(3, control=control(scale=0.7), **settings)
    painter = Painter(tiny_bases[name], controlnet=net)
    ours, without = painter.paint_raw([wanted, request(3, **settings)])
    pipeline = controlled(pipelines[name], net, xl="xl" in name)
    picture = Image.fromarray(wanted.control.image)
    theirs = painted_by_diffusers(pipeline, wanted, control_image=picture, controlnet_conditioning_scale=0.7)
    assert np.abs(ours - theirs).max() <= TOLERANCE
    assert np.abs(ours - without).max() > 10 * TOLERANCE, "it adds nothing, so equality says nothing"


@pytest.mark.parametrize("name", ["sd9", "sdxl9"])
def test_rows_with_and_without_a_control_picture_share_a_batch(tiny_bases, name):
    requests = [
        request(1),
        request(2, control=control(2)),
        request(3, guidance_scale=1.0),
        request(4, guidance_scale=1.0, control=control(4, scale=0.5), steps=3),
        request(5, control=control(5, scale=0.0)),
    ]
    painter = Painter(tiny_bases[name], controlnet=controlnet_of(tiny_bases[name]))
    together = painter.paint_raw(requests)
    for one, shared in zip(requests, together, strict=True):
        (alone,) = painter.paint_raw([one])
        assert np.abs(alone - shared).max() <= TOLERANCE
    uncontrolled = Painter(tiny_bases[name])
    for index in (0, 2):
        assert np.abs(uncontrolled.paint_raw([requests[index]])[0] - together[index]).max() <= TOLERANCE
    assert np.abs(uncontrolled.paint_raw([request(5)])[0] - together[4]).max() <= TOLERANCE


def test_the_control_picture_is_cropped_as_the_photo_is(tiny_bases):
    painter = Painter(tiny_bases["sd9"], controlnet=controlnet_of(tiny_bases["sd9"]))
    one = control(height=80, width=90)
    outside, inside = one.image.copy(), one.image.copy()
    outside[:5, :5] = 0
    inside[35:45, 35:45] = 0
    controls = [one, Control(image=outside), Control(image=inside)]
    settings = {"height": 80, "width": 90, "padding": 0, "steps": 2}
    hole = np.zeros((80, 90), dtype=bool)
    hole[30:50, 30:50] = True
    first, same, other = painter.paint_raw([request(1, hole=hole, control=c, **settings) for c in controls])
    assert np.array_equal(first, same) and np.abs(first - other).max() > TOLERANCE


def test_what_does_not_fit_is_refused(tiny_bases):
    with pytest.raises(InpaintError, match="no ControlNet"):
        Painter(tiny_bases["sd9"]).paint_raw([request(1, control=control())])
    with pytest.raises(InpaintError, match=r"control: \(32, 31, 3\)"):
        request(1, control=control(width=31))
    with pytest.raises(InpaintError, match="control scale -1"):
        control(scale=-1)
    pooling = controlnet_of(tiny_bases["sd9"])
    pooling.register_to_config(global_pool_conditions=True)
    with pytest.raises(InpaintError, match="pools"):
        Painter(tiny_bases["sd9"], controlnet=pooling)


def test_a_control_picture_of_what_is_seen_is_taken_as_it_is(tiny_bases):
    base = tiny_bases["sd9"]
    painter = Painter(base, controlnet=controlnet_of(base))
    hole = np.zeros((80, 90), dtype=bool)
    hole[30:50, 30:50] = True
    settings = {"height": 80, "width": 90, "padding": 0, "steps": 2, "hole": hole}
    photo = request(1, **settings)
    part = seen(base.info, photo)
    assert part.shape == (32, 32, 3) and not np.array_equal(part, photo.image[30:50, 30:50].repeat(2, 0)[:32])
    picture = 255 - part
    of_seen = replace(photo, control=Control(image=picture, of_seen=True))
    whole = np.zeros_like(photo.image)
    whole[30:50, 30:50] = 255 - photo.image[30:50, 30:50]
    of_photo = replace(photo, control=Control(image=whole))
    first, second, third = painter.paint_raw([of_seen, of_photo, photo])
    # Lanczos of the inverse is the inverse of Lanczos, but where it is clipped.
    assert np.abs(first - second).max() < 0.1 * np.abs(first - third).max()
