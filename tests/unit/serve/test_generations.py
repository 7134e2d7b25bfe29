"""Pictures from text alone, asked for with OpenAI's SDK and an A1111 client, unmodified, beside painting in a batch."""

import base64
import io
from dataclasses import replace

import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image

from inpaint.diffusion.samplers import Sampler
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.http.receipt import read_infotext, read_receipt
from tests.tiny import tiny_sd
from tests.unit.paint.examples import request
from tests.unit.serve.engines import LEVEL, by_painter, difference, order, pictures
from tests.unit.serve.engines import running as running_engine
from tests.unit.serve.fake import BASE, BLUE, CATALOGUE, KEY


@pytest.fixture
def client(running, service):
    with openai.OpenAI(base_url=f"{running[1]}/v1", api_key=KEY) as client:
        yield client


@pytest.fixture
def api(running, service):
    return webuiapi.WebUIApi(baseurl=f"{running[1]}/sdapi/v1", username="anyone", password=KEY)


def txt2img(api, **settings):
    # The client's own defaults are objects that it changes.
    return api.txt2img(**{"alwayson_scripts": {}, "override_settings": {}, "styles": [], "width": 64, **settings})


def test_openais_generation_is_a_picture_from_text_with_the_categorys_adapter(client, service):
    extra = {"seed": 9, "steps": 7, "guidance_scale": 3.5, "sampler": "euler_a", "negative_prompt": "text"}
    answer = client.images.generate(prompt="table", model="CDP_FOOD", n=2, size="72x48", extra_body=extra)
    assert (answer.size, answer.output_format, [one.seed for one in answer.data]) == ("72x48", "png", [9, 10])
    data = base64.b64decode(answer.data[0].b64_json)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.full((48, 72, 3), BLUE))
    first, second = service.orders
    wanted = PaintRequest.of_text("", height=48, width=72, seed=9, sampling=first.request.sampling)
    assert first.request.text_alone and np.array_equal(first.request.hole, wanted.hole)
    sampling = first.request.sampling
    assert (sampling.steps, sampling.guidance_scale, sampling.sampler) == (7, 3.5, Sampler.EULER_ANCESTRAL)
    assert (first.request.prompt, first.request.negative_prompt) == ("CDP_FOOD background, table", "text")
    assert second.request.seed == 10 and first.adapters[0].digest == CATALOGUE["CDP_FOOD"].digest
    assert SamplingSettings(**read_receipt(data).sampling) == sampling


def test_without_a_size_it_is_what_the_base_was_trained_at(client, service):
    answer = client.images.generate(prompt="table")
    assert answer.size == f"{BASE.default_size}x{BASE.default_size}"
    assert service.orders[0].adapters == ()


@pytest.mark.parametrize("size", ["4x64", "1024x1024", "8x200", "x"])
def test_sizes_that_the_base_does_not_paint_are_refused(client, service, size):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="table", size=size)
    assert caught.value.param == "size" and not service.orders


def test_what_a_generation_has_no_use_for_is_told(client, service):
    response = client.images.with_raw_response.generate(
        prompt="x", style="vivid", quality="hd", user="me", extra_body={"feather": 3, "strength": 0.5}
    )
    for name in ("style", "quality", "user", "feather", "strength"):
        assert name in response.headers["x-warnings"]
    with pytest.raises(openai.BadRequestError, match="url"):
        client.images.generate(prompt="x", response_format="url")
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.images.generate(prompt="x" * 5_000)


def test_a_generation_is_streamed(client, service):
    events = list(client.images.generate(prompt="x", stream=True, partial_images=1, n=2))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"] * 2
    assert all(event.size == "64x64" for event in events)


def test_an_a1111_client_gets_pictures_from_text(api, service):
    result = txt2img(
        api, prompt="a table <lora:CDP_FOOD:0.8> (wood:1.2)", negative_prompt="text", height=48, seed=5, steps=6,
        cfg_scale=3.0, sampler_name="DPM++ 2M", n_iter=2,
    )  # fmt: skip
    assert [np.asarray(image.convert("RGB")).shape for image in result.images] == [(48, 64, 3)] * 2
    asked = service.orders[0].request
    assert asked.text_alone and asked.hole.shape == (48, 64) and asked.sampling.strength == 1
    assert (asked.prompt, asked.seed, asked.sampling.steps) == ("CDP_FOOD background, a table (wood:1.2)", 5, 6)
    assert asked.sampling.prompt_weights and service.orders[0].adapters[0].weight == 0.8
    assert result.info["all_seeds"] == [5, 6] and result.info["ignored"] == []
    assert (result.info["width"], result.info["height"]) == (64, 48)
    assert "init_images" not in result.parameters
    text = read_infotext(base64.b64decode(result.json["images"][0]))
    assert "Size: 64x48" in text and "Denoising strength" not in text


def test_a1111s_second_pass_has_no_effect_and_is_told(api, service):
    assert txt2img(api, enable_hr=True, height=64).info["ignored"] == ["enable_hr"]


def test_a1111s_sizes_that_are_far_from_the_bases_are_painted_at_its_own_and_enlarged(api, service):
    result = txt2img(api, width=512, height=256)
    assert result.image.size == (512, 256) and "painted at 64" in result.info["ignored"][0]
    assert service.orders[0].request.sampling.size == BASE.default_size
    with pytest.raises(RuntimeError, match="out_of_range"):
        txt2img(api, width=16_000, height=16_000)


def test_rows_of_generation_and_of_painting_share_batches(tmp_path):
    folder = tiny_sd(tmp_path / "base")
    sampling = SamplingSettings(steps=4, guidance_scale=3.0, sampler=Sampler.EULER_ANCESTRAL)
    text = PaintRequest.of_text("a red box", height=32, width=32, seed=3, sampling=sampling)
    wanted = [text, request(1, height=32, width=32), replace(text, seed=4), request(2, height=32, width=32)]
    with running_engine(folder) as engine:
        painted = pictures(engine, [order(one) for one in wanted])
        stats = engine.stats()
    for one, picture in zip(wanted, painted, strict=True):
        assert difference(picture, by_painter(folder, one)) <= LEVEL
    assert difference(painted[0], painted[2]) > LEVEL
    assert stats.rows > 2 * stats.ticks
