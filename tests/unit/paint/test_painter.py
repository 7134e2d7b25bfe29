"""The painter paints what diffusers paints, whatever shares the batch, and never touches a kept pixel."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError
from inpaint.models.prompts import encode_prompts
from inpaint.paint.crop import filled, working_image, working_shape_of
from inpaint.paint.denoise import start_rows
from inpaint.paint.painter import Painter
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import Start
from tests.tiny import SIZE
from tests.unit.paint.examples import TOLERANCE, painted_by_diffusers, request, request_with


@pytest.mark.parametrize("name", ["sd9", "sd4", "sdxl9"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"guidance_scale": 1.0}, {"negative_prompt": "the wood", "guidance_scale": 7.5, "steps": 7}],
    ids=["guided", "unguided", "negative"],
)
def test_same_seed_same_picture_as_diffusers(pipelines, tiny_bases, name, settings):
    wanted = request(3, **settings)
    (ours,) = Painter(tiny_bases[name]).paint_raw([wanted])
    theirs = painted_by_diffusers(pipelines[name], wanted)
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("name", ["sd9", "sd4", "sdxl9"])
def test_every_sampler_and_strength_paints_as_diffusers(pipelines, tiny_bases, name, sampler, strength):
    wanted = request(4, sampler=sampler, strength=strength, steps=6)
    (ours,) = Painter(tiny_bases[name]).paint_raw([wanted])
    theirs = painted_by_diffusers(pipelines[name], wanted)
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (Sampler.DPMPP_2M, StepSchedule.KARRAS),
        (Sampler.EULER, StepSchedule.EXPONENTIAL),
        (Sampler.HEUN, StepSchedule.KARRAS),
        (Sampler.UNIPC, StepSchedule.SGM_UNIFORM),
    ],
)
def test_schedules_paint_as_diffusers(pipelines, tiny_bases, sampler, schedule):
    wanted = request(4, sampler=sampler, schedule=schedule, strength=0.7, steps=6)
    (ours,) = Painter(tiny_bases["sd4"]).paint_raw([wanted])
    assert np.abs(ours - painted_by_diffusers(pipelines["sd4"], wanted)).max() <= TOLERANCE


def test_samplers_and_strengths_differ(tiny_bases):
    # Else equality with diffusers would say little. (Euler and DDIM are the same method in other coordinates.)
    wanted = [request(4, sampler=sampler, steps=6) for sampler in Sampler if sampler != Sampler.EULER]
    pictures = Painter(tiny_bases["sd9"]).paint_raw([*wanted, request(4, strength=0.6, steps=6)])
    for i, one in enumerate(pictures):
        assert all(np.abs(one - other).max() > 2 * TOLERANCE for other in pictures[i + 1 :])


@pytest.mark.parametrize("name", ["sd9", "sd4", "sdxl9"])
def test_a_picture_does_not_depend_on_what_shares_its_batch(tiny_bases, name):
    requests = [
        request(1),
        request(2, guidance_scale=1.0, prompt=""),
        request(3, guidance_scale=9.0, negative_prompt="the"),
        request(4, steps=3),
        request(5, height=24, width=48, prompt="wood"),
        request(6, negative_prompt="red"),
        request(7, sampler=Sampler.DPMPP_2M, steps=6),
        request(8, sampler=Sampler.EULER_ANCESTRAL, strength=0.7),
        request(9, sampler=Sampler.LCM, guidance_scale=1.0),
        request(10, sampler=Sampler.HEUN, schedule=StepSchedule.KARRAS, steps=4),
        request(11, sampler=Sampler.UNIPC, steps=6),
        request(13, prompt="red wood " * 60),
        request(14, prompt="(red:1.3) BREAK wood BREAK the", prompt_weights=True),
        request(12, sampler=Sampler.DPMPP_2M_SDE, schedule=StepSchedule.EXPONENTIAL),
    ]
    painter = Painter(tiny_bases[name], max_batch=3)
    together = painter.paint_raw(requests)
    for one, shared in zip(requests, together, strict=True):
        (alone,) = painter.paint_raw([one])
        assert alone.shape == shared.shape
        assert np.abs(alone - shared).max() <= TOLERANCE


def test_seed_prompt_and_guidance_matter(tiny_bases):
    # Else equality with diffusers and independence of the batch would say little.
    painter = Painter(tiny_bases["sd9"])
    image = request(1)
    parts = {"image": image.image, "hole": image.hole, "steps": 3}
    first, *others = painter.paint_raw(
        [
            request_with(prompt="red", seed=1, **parts),
            request_with(prompt="red", seed=2, **parts),
            request_with(prompt="the wood", seed=1, **parts),
            request_with(prompt="red", seed=1, guidance_scale=1.0, **parts),
        ]
    )
    assert all(np.abs(first - other).max() > 3 * TOLERANCE for other in others)


def test_what_lies_in_the_hole_is_not_looked_at(tiny_bases):
    painter = Painter(tiny_bases["sd9"])
    one = request(1)
    other_image = one.image.copy()
    other_image[one.hole] = 255
    other = request_with(image=other_image, hole=one.hole, prompt=one.prompt, seed=one.seed, steps=one.sampling.steps)
    same = request_with(image=one.image, hole=one.hole, prompt=one.prompt, seed=one.seed, steps=one.sampling.steps)
    first, second = painter.paint_raw([other, same])
    assert np.array_equal(first, second)


@pytest.mark.parametrize("feather", [0, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (100, 150), (31, 17), (9, 200)])
def test_photos_of_any_size_keep_their_kept_pixels(tiny_bases, height, width, feather):
    photo = request(2, height=height, width=width, feather=feather)
    (result,) = Painter(tiny_bases["sd9"]).paint([photo])
    assert result.shape == photo.image.shape and result.dtype == np.uint8
    assert kept_pixels_changed(photo.image, result, photo.hole) == 0
    assert (result != photo.image)[photo.hole].any()


@pytest.mark.parametrize(
    ("photo", "size", "shape"),
    [
        ((32, 32), None, (32, 32)),
        ((1000, 1000), None, (32, 32)),
        ((100, 400), None, (16, 64)),
        ((100, 400), 64, (32, 128)),
        ((9, 2000), None, (4, 476)),
    ],
)
def test_working_shapes_keep_the_aspect_at_equal_area(tiny_bases, photo, size, shape):
    assert working_shape_of(tiny_bases["sd9"].info, request(0, *photo, size=size)) == shape


@pytest.mark.parametrize("padding", [0, 5, 1000])
def test_with_padding_only_the_holes_surroundings_are_seen(tiny_bases, padding):
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    hole = np.zeros((90, 120), dtype=bool)
    hole[40:60, 70:100] = True
    settings = {"hole": hole, "prompt": "red", "seed": 1, "steps": 2, "guidance_scale": 1.0, "padding": padding}
    far = photo.copy()
    far[:30, :60] = 0
    near = photo.copy()
    near[38:60, 68:70] = 255 - near[38:60, 68:70]
    painter = Painter(tiny_bases["sd9"])
    plain, other_far, other_near = painter.paint([request_with(image=i, **settings) for i in (photo, far, near)])
    assert kept_pixels_changed(photo, plain, hole) == 0 and (plain != photo)[hole].any()
    assert np.array_equal(plain[hole], other_far[hole]) == (padding < 1000)
    assert np.array_equal(plain[hole], other_near[hole]) == (padding == 0)


def test_below_strength_1_the_hole_starts_from_what_is_asked(tiny_bases):
    base, plain = tiny_bases["sd9"], request(3, strength=0.6)
    painter = Painter(base)
    starts = {start: replace(plain, sampling=replace(plain.sampling, start=start.value)) for start in Start}
    pictures = dict(zip(starts, painter.paint_raw(list(starts.values())), strict=True))
    by_hand = replace(plain, image=filled(plain.image, plain.hole))
    assert np.allclose(pictures[Start.SURROUNDINGS], painter.paint_raw([by_hand])[0], atol=TOLERANCE)
    assert all(np.abs(pictures[a] - pictures[b]).max() > 10 * TOLERANCE for a, b in combinations(Start, 2))
    text = encode_prompts(base, ["x"])
    rows = {}
    for start, asked in starts.items():
        with torch.no_grad():
            asked = replace(asked, sampling=asked.sampling.resolved(base.info))
            (rows[start],) = start_rows(
                base, painter.schedule, [asked], [working_image(base.info, asked)], [text], [None]
            )
    original, path = rows[Start.ORIGINAL], rows[Start.ORIGINAL].trajectory
    in_hole = (original.hole_1hw == 1).expand_as(original.noise_Chw)
    for start, clean in ((Start.NOISE, original.noise_Chw), (Start.NOTHING, torch.zeros_like(original.noise_Chw))):
        mixed = path.start_clean * clean + path.start_noise * original.noise_Chw
        torch.testing.assert_close(rows[start].latents_Chw[in_hole], mixed[in_hole])
        assert torch.equal(rows[start].latents_Chw[~in_hole], original.latents_Chw[~in_hole])
    forgotten = [replace(one, sampling=replace(one.sampling, strength=1.0)) for one in starts.values()]
    first, *others = painter.paint_raw(forgotten)
    assert all(np.allclose(first, other, atol=TOLERANCE) for other in others)


def test_a_request_without_a_hole_gets_its_image_back(tiny_bases):
    with_hole = request(1)
    without = request_with(image=request(2).image, hole=np.zeros((SIZE, SIZE), dtype=bool), prompt="", seed=0)
    first, second = Painter(tiny_bases["sd9"]).paint([without, with_hole])
    assert np.array_equal(first, without.image) and first is not without.image
    assert not np.array_equal(second, with_hole.image)


def test_painting_leaves_the_base_in_the_mode_it_was_in(tiny_bases):
    base = tiny_bases["sd9"]
    base.unet.train()
    try:
        Painter(base).paint([request(1, steps=1)])
        assert base.unet.training and not base.vae.training
    finally:
        base.unet.eval()


@pytest.mark.parametrize(
    "settings",
    [{"seed": -1}, {"steps": 0}, {"guidance_scale": float("nan")}, {"size": 0}, {"feather": -1}],
)
def test_bad_settings_are_refused_by_name(settings):
    good = request(1)
    ((name, value),) = settings.items()
    with pytest.raises(InpaintError, match=f"{name} {value}"):
        request_with(**{"image": good.image, "hole": good.hole, "prompt": "", "seed": 0, **settings})


def test_what_is_no_image_hole_or_text_is_refused():
    good = request(1)
    with pytest.raises(InpaintError, match="half a surrogate pair"):
        request(1, prompt="a box \ud800")
    with pytest.raises(InpaintError, match=r"image: float64"):
        request_with(image=good.image / 255, hole=good.hole, prompt="", seed=0)
    with pytest.raises(InpaintError, match=r"hole: uint8"):
        request_with(image=good.image, hole=good.hole.astype(np.uint8), prompt="", seed=0)
    with pytest.raises(InpaintError, match=r"\(31, 32\)"):
        request_with(image=good.image, hole=good.hole[1:], prompt="", seed=0)
