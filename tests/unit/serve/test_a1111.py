"""webuiapi, a client of A1111's API from the package index, unmodified, against the service."""

import asyncio
import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import webuiapi
from PIL import Image

from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler
from inpaint.paint.request import SamplingSettings, Start
from inpaint.serve.dialects.a1111_tasks import Task, TaskAnswer, TaskQuery, Tasks
from inpaint.serve.http.keys import NOBODY
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import read_infotext, read_receipt
from inpaint.serve.service import Overloaded
from tests.unit.data.images import encoded, mask, picture
from tests.unit.serve.clients import b64
from tests.unit.serve.fake import BASE, KEY, FakeService, expected, hole, served


@pytest.fixture
def api(running, service):
    return webuiapi.WebUIApi(baseurl=f"{running[1]}/sdapi/v1", username="anyone", password=KEY)


def img2img(api, **settings):
    settings = {"images": [picture()], "mask_image": mask(), "mask_blur": 0, "prompt": "table", **settings}
    # The client's own defaults are objects that it changes.
    return api.img2img(**{"alwayson_scripts": {}, "override_settings": {}, "styles": [], **settings})


def test_white_is_painted_and_the_rest_is_the_pictures_bit_for_bit(api, service):
    result = img2img(api)
    assert np.array_equal(np.asarray(result.image.convert("RGB")), expected())
    assert np.array_equal(service.orders[0].request.hole, hole())
    assert result.info["kept_pixels_changed"] == 0


def test_the_mask_turned_round_paints_the_rest(api, service):
    img2img(api, inpainting_mask_invert=1)
    assert np.array_equal(service.orders[0].request.hole, ~hole())


def test_without_a_mask_all_is_painted(api, service):
    img2img(api, mask_image=None)
    assert service.orders[0].request.hole.all()


def test_lora_tags_become_weighted_adapters_and_their_tokens_are_written(api, service):
    img2img(api, prompt="a table <lora:CDP_FOOD:0.8>, <lora:CDP_COS:-0.25>")
    order = service.orders[0]
    assert [(use.name, use.weight) for use in order.adapters] == [("CDP_FOOD", 0.8), ("CDP_COS", -0.25)]
    assert order.request.prompt == "CDP_FOOD background, CDP_COS background, a table"
    img2img(api, prompt="CDP_FOOD background, a table<lora:CDP_FOOD>")
    assert service.orders[1].request.prompt == "CDP_FOOD background, a table"
    assert service.orders[1].adapters[0].weight == 1.0


@pytest.mark.parametrize(
    "prompt, says",
    [
        ("<lora:CDP_FOOT:1>", "CDP_FOOD"),
        ("<lora:CDP_FOOD:nan>", "prompt"),
        ("<lora:CDP_FOOD:99>", "-4 to 4"),
        ("<lora:CDP_FOOD:1:2>", "lora:NAME:WEIGHT"),
        ("<lora:CDP_FOOD> <lora:CDP_FOOD>", "twice"),
        ("<lora::1>", "lora:NAME"),
        ("x <lora:home:1>", "CDP_LAMP"),
    ],
)
def test_tags_that_cannot_be_are_refused(api, service, prompt, says):
    with pytest.raises(RuntimeError, match=says):
        img2img(api, prompt=prompt)
    assert not service.orders


def test_settings_reach_the_order_under_our_names(api, service):
    img2img(
        api, seed=7, steps=9, cfg_scale=4.5, denoising_strength=0.5, sampler_name="DPM++ 2M", negative_prompt="text",
        mask_blur=6, inpaint_full_res=True, inpaint_full_res_padding=11, width=96, height=96,
    )  # fmt: skip
    request = service.orders[0].request
    assert (request.seed, request.negative_prompt) == (7, "text")
    assert request.sampling == SamplingSettings(
        steps=9,
        guidance_scale=4.5,
        strength=0.5,
        sampler=Sampler.DPMPP_2M,
        schedule=StepSchedule.KARRAS,
        prompt_weights=True,
        feather=6,
        padding=11,
        size=96,
        start=Start.SURROUNDINGS,
    )


def test_the_hole_starts_from_what_inpainting_fill_says(api, service, running):
    for fill in range(4):
        assert "inpainting_fill" not in str(img2img(api, inpainting_fill=fill).info["ignored"])
    body = {"init_images": [b64(encoded(picture()))]}
    httpx2.post(f"{running[1]}/sdapi/v1/img2img", json=body, auth=("", KEY), timeout=30).raise_for_status()
    starts = [order.request.sampling.start for order in service.orders]
    assert starts == [Start.SURROUNDINGS, Start.ORIGINAL, Start.NOISE, Start.NOTHING, Start.SURROUNDINGS]
    with pytest.raises(RuntimeError, match="inpainting_fill"):
        img2img(api, inpainting_fill=4)


OTHER_KEY = "sk-abcdef0123456789"


def test_a_client_follows_and_stops_its_own_requests_alone(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"mine:{KEY}\nother:{OTHER_KEY}\n")
    service = FakeService()
    service.waits = True
    with served(service, HttpSettings(keys_file=str(keys))) as url, ThreadPoolExecutor() as pool:
        mine, other = (
            httpx2.Client(base_url=f"{url}/sdapi/v1", auth=("", key), timeout=30) for key in (KEY, OTHER_KEY)
        )
        assert mine.get("/progress").json()["current_task"] is None

        def paint(name: str):
            body = {"init_images": [b64(encoded(picture()))], "batch_size": 2, "force_task_id": name, "steps": 8}
            service.begun.clear()
            answer = pool.submit(lambda: mine.post("/img2img", json={**body, "denoising_strength": 1}))
            assert service.begun.wait(30)
            return answer

        first, second = paint("task(a)"), paint("task(b)")
        seen = mine.get("/progress", params={"id_task": "task(b)"}).json()
        assert seen["current_task"] == "task(b)" and seen["progress"] == 0.8
        assert (seen["state"]["job_count"], seen["state"]["sampling_steps"]) == (2, 8)
        assert Image.open(io.BytesIO(base64.b64decode(seen["current_image"]))).size == (40, 30)
        assert mine.get("/progress", params={"skip_current_image": True}).json()["current_image"] is None
        assert mine.get("/progress").json()["current_task"] == "task(a)"
        for asked in ({}, {"id_task": "task(a)"}):
            theirs = other.get("/progress", params=asked).json()
            assert theirs["current_task"] is None and theirs["current_image"] is None and theirs["progress"] == 0
            assert other.post("/interrupt", params=asked).json() == {}
        page = mine.post(f"{url}/internal/progress", json={"id_task": "task(a)"}).json()
        assert page["active"] and page["live_preview"].startswith("data:image/png;base64,")
        assert not other.post(f"{url}/internal/progress", json={"id_task": "task(a)"}).json()["active"]

        assert mine.post("/interrupt", json={"id_task": "task(b)"}).json() == {}
        stopped = second.result(30).json()
        assert stopped["images"] == [] and json.loads(stopped["info"])["interrupted"]
        assert not first.done() and mine.get("/progress").json()["current_task"] == "task(a)"
        assert mine.post(f"{url}/internal/progress", json={"id_task": "task(b)"}).json()["completed"]
        assert mine.post("/interrupt").json() == {}
        assert first.result(30).json()["images"] == []
        for broken in (b"[]", b"{", b'{"id_task": {}}'):
            assert mine.post("/interrupt", content=broken).status_code == 400


def test_without_keys_a_request_is_stopped_by_its_id_or_where_it_is_alone_in_all_processes():
    async def everywhere(query: TaskQuery) -> list[TaskAnswer]:
        return [await process.answer(query) for process in processes]

    processes = [Tasks(everywhere) for _ in range(3)]

    async def own(wanted: str = "") -> list[str]:
        """As the process says that has none."""
        looks, ended = await processes[2].own(TaskQuery(key=NOBODY, wanted=wanted))
        return [look.id for look in looks] + ["ended"] * ended

    def task(name: str) -> Task:
        call = SimpleNamespace(n=1, request=SimpleNamespace(sampling=SimpleNamespace(steps_taken=8)))
        return Task(id=name, key=NOBODY, call=call, stop=asyncio.timeout(None))

    async def follow() -> None:
        with processes[0].running(task("a")):
            assert await own() == ["a"]
            with processes[1].running(task("b")):
                assert await own() == [] and await own("b") == ["b"]
        assert await own() == [] and await own("b") == ["ended"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as stop, asyncio.timeout(30):
                with processes[1].running(replace(task("c"), stop=stop)):
                    await processes[2].stop(NOBODY, "c")
                    await asyncio.Event().wait()
        assert stop.expired()

    asyncio.run(follow())


def test_the_whole_picture_is_stretched_to_width_and_height_where_asked(api, service):
    result = img2img(api, inpaint_full_res=False, width=80, height=80)
    assert result.image.size == (80, 80)
    assert service.orders[0].request.sampling.padding == "whole"


def test_batches_have_consecutive_seeds(api, service):
    result = img2img(api, batch_size=2, n_iter=2, seed=100)
    assert len(result.images) == 4
    assert result.info["all_seeds"] == [100, 101, 102, 103]
    assert [order.request.seed for order in service.orders] == [100, 101, 102, 103]
    assert result.parameters["batch_size"] == 2


def test_seed_minus_one_is_random_and_told(api, service):
    result = img2img(api, seed=-1)
    assert result.info["seed"] == service.orders[0].request.seed >= 0


def test_an_unknown_sampler_is_refused_with_the_list(api, service):
    with pytest.raises(RuntimeError, match=r"DDIM, Euler, Euler a, Heun, DPM\+\+ 2M, DPM\+\+ 2M SDE, UniPC, LCM"):
        img2img(api, sampler_name="PLMS")
    with pytest.raises(RuntimeError, match=r"Automatic, Uniform, Karras, Exponential, SGM Uniform"):
        img2img(api, scheduler="Beta")
    with pytest.raises(RuntimeError, match="schedule karras: sampler ddim"):
        img2img(api, sampler_name="DDIM", scheduler="Karras")
    assert not service.orders


@pytest.mark.parametrize(
    ("name", "scheduler", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "automatic", Sampler.DPMPP_2M, StepSchedule.KARRAS),
        ("DPM++ 2M SDE Exponential", "Exponential", Sampler.DPMPP_2M_SDE, StepSchedule.EXPONENTIAL),
        ("k_dpmpp_2m_ka", "", Sampler.DPMPP_2M, StepSchedule.KARRAS),
        ("DPM++ 2M", "SGM Uniform", Sampler.DPMPP_2M, StepSchedule.SGM_UNIFORM),
        ("DPM++ 2M SDE", "Automatic", Sampler.DPMPP_2M_SDE, StepSchedule.EXPONENTIAL),
        ("unipc", "karras", Sampler.UNIPC, StepSchedule.KARRAS),
        ("Heun", "uniform", Sampler.HEUN, StepSchedule.UNIFORM),
        ("Euler a", "Automatic", Sampler.EULER_ANCESTRAL, None),
    ],
)
def test_schedules_by_their_field_and_in_the_samplers_name(api, service, name, scheduler, sampler, schedule):
    result = img2img(api, sampler_name=name, scheduler=scheduler)
    sampling = service.orders[0].request.sampling
    assert (sampling.sampler, sampling.schedule) == (sampler, schedule)
    assert f"Schedule type: {result.info['scheduler']}, " in result.info["infotexts"][0]


def test_prompt_syntax_that_is_not_read_is_named(api, service):
    ignored = img2img(api, prompt="a (red:1.2) [box] BREAK hands").info["ignored"]
    assert not any("prompt" in one for one in ignored) and service.orders[0].request.sampling.prompt_weights
    ignored = img2img(api, prompt="a [red:blue:0.5] [box|ball]", negative_prompt="wood AND stone").info["ignored"]
    for name in ("prompt editing", "alternation", "AND"):
        assert any(name in one for one in ignored)


def test_a_schedule_that_the_samplers_name_overrules_is_named(api, service):
    result = img2img(api, sampler_name="DPM++ 2M Karras", scheduler="Exponential")
    assert "scheduler: the sampler's name says Karras" in result.info["ignored"]


def test_what_has_no_effect_is_listed(api, service):
    plain = img2img(api, inpainting_fill=1)
    assert plain.info["ignored"] == ["width, height: far from what the base was trained at, painted at 64"]
    result = img2img(api, restore_faces=True, tiling=True, styles=["noir"])
    for name in ("restore_faces", "tiling", "styles"):
        assert any(name in ignored for ignored in result.info["ignored"])


def test_what_is_null_was_not_given(api, service, running):
    body = {"init_images": [b64(encoded(picture()))], "latent_mask": None, "infotext": None, "tiling": None}
    answer = httpx2.post(f"{running[1]}/sdapi/v1/img2img", json=body, auth=("", KEY), timeout=30)
    assert json.loads(answer.json()["info"])["ignored"] == [] and "x-warnings" not in answer.headers


def test_another_checkpoint_scripts_and_extensions_are_refused(api, service):
    img2img(api, override_settings={"sd_model_checkpoint": "toy"})
    for settings in (
        {"override_settings": {"sd_model_checkpoint": "dreamshaper"}},
        {"script_name": "xyz"},
        {"alwayson_scripts": {"ControlNet": {"args": []}}},
    ):
        with pytest.raises(RuntimeError):
            img2img(api, **settings)
    assert len(service.orders) == 1


def test_pictures_carry_a1111s_parameters_and_our_receipt(api, service, running):
    body = {"init_images": [b64(encoded(picture()))], "prompt": "tisch, fertig <lora:CDP_FOOD:0.5>", "seed": 3}
    answer = httpx2.post(f"{running[1]}/sdapi/v1/img2img", json=body, auth=("", KEY), timeout=30).json()
    data = base64.b64decode(answer["images"][0])
    assert "Seed: 3" in read_infotext(data) and "<lora:CDP_FOOD:0.5>" in read_infotext(data)
    assert read_receipt(data).adapters[0].weight == 0.5
    assert json.loads(answer["info"])["infotexts"] == [read_infotext(data)]
    assert "Seed: 3" in api.png_info(Image.open(io.BytesIO(data))).info


def test_what_clients_probe_is_there(api):
    assert {"DDIM", "DPM++ 2M", "DPM++ 2M SDE", "Heun", "UniPC"} < set(api.util_get_sampler_names())
    assert {"automatic", "karras", "exponential", "sgm_uniform"} < set(api.util_get_scheduler_names())
    assert api.util_get_model_names() == [f"toy [{BASE.revision[:10]}]"]
    assert api.util_get_current_model() == f"toy [{BASE.revision[:10]}]"
    api.util_set_model("toy")
    api.util_wait_for_ready()
    assert [lora["name"] for lora in api.get_loras()] == ["CDP_COS", "CDP_FOOD", "home"]
    for probe in (
        api.get_options, api.get_cmd_flags, api.get_progress, api.get_sd_vae, api.get_upscalers,
        api.get_latent_upscale_modes, api.get_hypernetworks, api.get_face_restorers, api.get_realesrgan_models,
        api.get_prompt_styles, api.get_scripts, api.get_embeddings, api.get_memory, api.refresh_checkpoints,
        api.interrupt, api.skip,
    ):  # fmt: skip
        answer = probe()
        assert not (isinstance(answer, dict) and "detail" in answer), probe.__name__


def test_a_wrong_password_and_an_overloaded_service_are_told(running, api, service):
    url = f"{running[1]}/sdapi/v1/img2img"
    refused = httpx2.post(url, json={}, auth=("a", "wrong"), timeout=30)
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
    service.fails = Overloaded("the queue is full", 0.1)
    body = {"init_images": [b64(encoded(picture()))]}
    full = httpx2.post(url, json=body, auth=("a", KEY), timeout=30)
    assert full.status_code == 429 and full.headers["retry-after"] == "1"
    assert full.json()["error"] == "overloaded" and "queue is full" in full.json()["detail"]
