"""Pictures from text alone are those of diffusers' text-to-image pipelines, each by itself; a run goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from inpaint.diffusion.samplers import Sampler
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import save_adapter
from inpaint.models.base import Base, load_base
from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.crop import working_shape_of
from inpaint.paint.generate import generate, picture_name, plan_pictures
from inpaint.paint.painter import Painter
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.rowmap import ActorResources, MapReport
from tests.adapters import made_up, without_tokens
from tests.schedulers import diffusers_scheduler
from tests.tiny import SIZE, tiny_sdxl_inpaint
from tests.unit.paint.examples import TOLERANCE, request


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_folders, tiny_bases) -> dict[str, tuple[Base, object]]:
    """Each with diffusers' own text-to-image pipeline of the same folder."""
    xl = tiny_sdxl_inpaint(tmp_path_factory.mktemp("tiny") / "sdxl4", 4)
    found = {
        "sd4": (tiny_bases["sd4"], StableDiffusionPipeline.from_pretrained(tiny_folders["sd4"], safety_checker=None)),
        "sdxl4": (load_base(xl), StableDiffusionXLPipeline.from_pretrained(xl, add_watermarker=False)),
    }
    for _, pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


def of_text(seed: int = 3, height: int = SIZE, width: int = SIZE, **sampling: object) -> PaintRequest:
    settings = SamplingSettings(**{"steps": 4, "guidance_scale": 4.0, **sampling})  # type: ignore[arg-type]
    return PaintRequest.of_text("a red wood box", height=height, width=width, seed=seed, sampling=settings)


def by_diffusers(pipeline, wanted: PaintRequest) -> np.ndarray:
    own, sampling = pipeline.scheduler, wanted.sampling
    pipeline.scheduler = diffusers_scheduler(own.config, sampling.sampler, sampling.schedule)
    try:
        return pipeline(
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt or None,
            height=wanted.hole.shape[0],
            width=wanted.hole.shape[1],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
            output_type="np",
        ).images[0]
    finally:
        pipeline.scheduler = own


@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.EULER_ANCESTRAL, Sampler.DPMPP_2M])
@pytest.mark.parametrize("name", ["sd4", "sdxl4"])
def test_same_seed_same_picture_as_diffusers(bases, name, sampler):
    base, pipeline = bases[name]
    wanted = [
        of_text(sampler=sampler),
        replace(of_text(4, height=24, width=48, sampler=sampler), negative_prompt="the wood"),
        of_text(5, guidance_scale=1.0, sampler=sampler),
    ]
    # Beside a row that is painted on a photo, too.
    ours = Painter(base).paint_raw([*wanted, request(1)])
    for one, picture in zip(wanted, ours, strict=False):
        assert picture.shape[:2] == one.hole.shape
        assert np.abs(picture - by_diffusers(pipeline, one)).max() <= TOLERANCE


def test_a_picture_has_the_size_asked_for_and_is_painted_at_its_own_or_the_settings_area(bases):
    info = bases["sd4"][0].info
    assert working_shape_of(info, of_text(height=64, width=128)) == (64, 128)
    assert working_shape_of(info, of_text(height=64, width=128, size=32)) == (24, 44)
    odd = of_text(height=33, width=50)
    (picture,) = Painter(bases["sd4"][0]).paint([odd])
    assert working_shape_of(info, odd) == (32, 48) and picture.shape == (33, 50, 3)


def test_an_inpainting_base_paints_as_on_an_empty_photo(tiny_bases):
    wanted = of_text()
    on_empty = replace(wanted, text_alone=False, image=np.full_like(wanted.image, 90))
    first, second = Painter(tiny_bases["sd9"]).paint_raw([wanted, on_empty])
    np.testing.assert_allclose(first, second, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"strength": 0.5}, "strength 0.5: .*nothing to keep"), ({"width": 0}, "width 0, height 32: give pixels")],
)
def test_what_makes_no_picture_is_refused(given, message):
    with pytest.raises(InpaintError, match=message):
        of_text(**given)


@pytest.fixture
def settings(tiny_folders) -> PaintSettings:
    return PaintSettings(base=str(tiny_folders["sd4"]), sampling=SamplingSettings(steps=2), seed=7)


def run(prompts: list[str], settings: PaintSettings, output: Path, n: int = 2) -> MapReport:
    return generate(prompts, settings, str(output), n=n, here=ActorResources("cpu", 1))


def test_a_run_makes_what_is_missing_and_other_prompts_change_nothing(settings, tmp_path):
    assert run(["a red box"], settings, tmp_path).done == 2
    first = np.asarray(Image.open(tmp_path / "a-red-box/7.png")).astype(int)
    made = run(["wood", "a red box"], settings, tmp_path, n=3)
    assert (made.done, made.skipped) == (4, 2)
    lines = [json.loads(line) for line in (tmp_path / "generated.jsonl").read_text().splitlines()]
    assert {(line["prompt"], line["seed"]) for line in lines} == {
        (p, s) for p in ("wood", "a red box") for s in (7, 8, 9)
    }
    # A run with another seed shares the pictures whose seeds it has, too.
    assert (run(["a red box"], replace(settings, seed=8), tmp_path).skipped) == 2
    alone = run(["a red box"], settings, tmp_path / "alone", n=1)
    assert alone.done == 1
    assert np.abs(first - np.asarray(Image.open(tmp_path / "alone/a-red-box/7.png"))).max() <= 1


def test_pictures_are_named_after_their_prompts_and_keys_say_what_they_depend_on(settings):
    names = {picture_name(prompt, 1) for prompt in ("a red box", "a red Box", "a red box!", "", "\u4e00", "x" * 300)}
    assert len(names) == 6 and "a-red-box/1.png" in names and all(len(name) < 120 for name in names)
    models = read_models(settings)

    def keys(models=models, shape: tuple[int, int] = (32, 32), prompt: str = "a") -> list[str]:
        return [item.key for item in plan_pictures([prompt], models, n=2, shape=shape)]

    others = [keys(shape=(32, 36)), keys(prompt="b"), keys(replace(models, settings=replace(settings, seed=9)))]
    assert keys() == keys() and len({key for found in [keys(), *others] for key in found}) == 8


@pytest.mark.parametrize(
    ("prompts", "n", "message"),
    [
        (["a", "b", "a"], 1, "'a': is there twice"),
        ([], 1, "0 prompts"),
        (["a"], 0, "n 0"),
        (["\ud800"], 1, "surrogate"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_before_any_work(settings, tmp_path, prompts, n, message):
    with pytest.raises(InpaintError, match=message):
        run(prompts, settings, tmp_path, n=n)


def test_a_prompt_weighs_the_adapter_that_it_calls(tiny_folders, tmp_path):
    base = str(tiny_folders["sd4"])
    adapter = without_tokens(made_up(base, 1))
    half = replace(adapter, card=replace(adapter.card, alpha=adapter.card.alpha / 2))
    prompts = ["wood", "wood <lora:style-10>", "wood, <lora:style-10:0.5>", "<lora:style-10:0> wood"]

    def painted(where: Path | None, *prompts: str) -> list[np.ndarray]:
        settings = PaintSettings(base=base, adapter=where and str(where), sampling=SamplingSettings(steps=2))
        models = read_models(settings)
        tasks = [item.value for item in plan_pictures(prompts, models, n=1, shape=(SIZE, SIZE))]
        return models.painter("cpu", 8).paint_raw([task.request(models) for task in tasks])

    one, tagged, weighed, none = painted(save_adapter(tmp_path / "style-10", adapter), *prompts)
    np.testing.assert_allclose(one, tagged, atol=TOLERANCE)
    np.testing.assert_allclose(weighed, *painted(save_adapter(tmp_path / "half", half), "wood"), atol=TOLERANCE)
    np.testing.assert_allclose(none, *painted(None, "wood"), atol=TOLERANCE)
    assert np.abs(one - weighed).max() > 20 * TOLERANCE < np.abs(weighed - none).max()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:other:1>", "'other' in <lora:NAME:WEIGHT>: there is style-10 alone"),
        ("a <lora:style-10:1> <lora:other:1>", "'style-10 and other' in"),
        ("a <lora:style-10:1> <lora:style-10:1>", "once in a prompt"),
        ("a <lora:style-10:x>", "write <lora:NAME:WEIGHT>"),
    ],
)
def test_a_prompt_that_calls_anything_else_is_refused(tiny_folders, tmp_path, prompt, message):
    base = str(tiny_folders["sd4"])
    where = save_adapter(tmp_path / "style-10", made_up(base, 1))
    with pytest.raises(InpaintError, match=message):
        run([prompt], PaintSettings(base=base, adapter=str(where)), tmp_path)
    with pytest.raises(InpaintError, match="give --adapter"):
        run(["a <lora:style-10>"], PaintSettings(base=base), tmp_path)


def test_a_tag_writes_the_only_token_as_the_service_does(tiny_folders, tmp_path):
    base = str(tiny_folders["sd4"])
    where = save_adapter(tmp_path / "style", made_up(base, 1, tokens=("CDP_X",)))
    models = read_models(PaintSettings(base=base, adapter=str(where)))
    assert models.told(models.prompt("wood <lora:style:0.5>", None))["prompt"] == "CDP_X background, wood"
    assert models.told(models.prompt("CDP_X, wood <lora:style>", None))["prompt"] == "CDP_X, wood"
    assert models.prompt("wood", None) == "wood"
