"""OpenAI's SDK, unmodified, against the service."""

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.serve.http.receipt import read_receipt
from inpaint.serve.service import AdapterGone, DeadlinePassed, Overloaded
from tests.unit.data.images import picture
from tests.unit.serve.fake import BASE, CATALOGUE, KEY, alpha_png, expected, mask_png, photo_png


@pytest.fixture
def client(running, service):
    with openai.OpenAI(base_url=f"{running[1]}/v1", api_key=KEY) as client:
        yield client


def edit(client: openai.OpenAI, **settings):
    settings = {"image": photo_png(), "mask": alpha_png(), "prompt": "table", "model": "CDP_FOOD", **settings}
    return client.images.edit(**settings)


def decoded(b64_json: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json or ""))).convert("RGB"))


def test_an_edit_paints_what_is_transparent_in_the_mask_with_the_categorys_adapter(client, service):
    answer = edit(client)
    assert np.array_equal(decoded(answer.data[0].b64_json), expected())
    assert (answer.size, answer.output_format, answer.background) == ("40x30", "png", "opaque")
    (order,) = service.orders
    assert order.request.prompt == "CDP_FOOD background, table"
    assert [(use.name, use.digest, use.weight) for use in order.adapters] == [
        ("CDP_FOOD", CATALOGUE["CDP_FOOD"].digest, 1.0)
    ]


def test_files_handles_lists_and_bytes_are_read_alike(client, service, tmp_path):
    (tmp_path / "a.png").write_bytes(photo_png())
    with (tmp_path / "a.png").open("rb") as handle:
        for image in (tmp_path / "a.png", handle, [photo_png()], io.BytesIO(photo_png()), ("x.jpg", photo_png())):
            assert np.array_equal(decoded(edit(client, image=image).data[0].b64_json), expected())


def test_n_pictures_have_consecutive_seeds_and_come_in_order(client, service):
    answer = edit(client, n=3, extra_body={"seed": 41})
    assert [one.seed for one in answer.data] == [41, 42, 43]
    receipts = [read_receipt(base64.b64decode(one.b64_json)) for one in answer.data]
    assert [receipt.seed for receipt in receipts] == [41, 42, 43]
    assert [order.request.seed for order in service.orders] == [41, 42, 43]
    assert len({order.id for order in service.orders}) == 3


def test_without_a_seed_the_one_drawn_is_told(client, service):
    response = client.images.with_raw_response.edit(
        image=photo_png(), mask=alpha_png(), prompt="table", extra_headers={"x-request-id": "my-7"}
    )
    assert response.headers["x-seed"] == str(service.orders[0].request.seed)
    assert response.headers["x-request-id"] == "my-7"
    assert response.headers["x-kept-pixels-changed"] == "0"


def test_extra_body_reaches_the_order(client, service):
    extra = {
        "seed": 5,
        "steps": 7,
        "guidance_scale": 3.5,
        "strength": 0.6,
        "sampler": "euler_a",
        "negative_prompt": "text",
        "padding": 12,
        "feather": 3,
        "timeout_s": 30,
    }
    edit(client, extra_body=extra)
    (order,) = service.orders
    request = order.request
    found = {**vars(request), **vars(request.sampling), "timeout_s": order.timeout_s}
    assert {name: found[name] for name in extra} == extra


def test_without_a_model_or_with_the_bases_name_there_is_no_adapter(client, service):
    edit(client, model="toy")
    edit(client, model=openai.omit)
    assert [order.adapters for order in service.orders] == [(), ()]
    assert service.orders[0].request.prompt == "table"
    assert service.orders[0].request.sampling.steps == BASE.steps


def test_a_tag_in_the_prompt_calls_an_adapter(client, service):
    edit(client, model="toy", prompt="a table <lora:CDP_FOOD:0.5>")
    (use,) = service.orders[0].adapters
    assert (use.name, use.weight, service.orders[0].request.prompt) == ("CDP_FOOD", 0.5, "CDP_FOOD background, a table")


def test_a_category_of_an_adapter_with_several_is_found_by_its_name(client, service):
    edit(client, model="CDP_LAMP")
    assert service.orders[0].adapters[0].name == "home"
    assert service.orders[0].request.prompt == "CDP_LAMP background, table"
    edit(client, model="home", prompt="a CDP_SOFA in the sun")
    assert service.orders[1].request.prompt == "a CDP_SOFA in the sun"
    with pytest.raises(openai.BadRequestError, match="CDP_LAMP, CDP_SOFA"):
        edit(client, model="home")


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_output_formats_and_their_receipts(client, service, form):
    answer = edit(client, output_format=form, output_compression=90, extra_body={"seed": 9})
    data = base64.b64decode(answer.data[0].b64_json)
    assert Image.open(io.BytesIO(data)).format == form.upper()
    receipt = read_receipt(data)
    assert (receipt.seed, receipt.base_revision) == (9, BASE.revision)
    assert receipt.adapters == service.orders[0].adapters
    if form == "png":
        assert np.array_equal(decoded(answer.data[0].b64_json), expected())


@pytest.mark.parametrize("size, got", [("auto", "40x30"), ("80x80", "80x60"), ("20x30", "20x15"), ("80x60", "80x60")])
def test_the_answer_is_the_largest_of_the_photos_aspect_that_fits(client, service, size, got):
    answer = edit(client, size=size)
    assert answer.size == got
    height, width = decoded(answer.data[0].b64_json).shape[:2]
    assert f"{width}x{height}" == got


@pytest.mark.parametrize("size", ["1x1", "99999x99999", "10", "x", "0x5", "-4x4", "20000x15000"])
def test_sizes_that_cannot_be_are_refused(client, service, size):
    with pytest.raises(openai.BadRequestError) as caught:
        edit(client, size=size)
    assert caught.value.param == "size"
    assert not service.orders


def test_settings_without_effect_are_accepted_and_told(client, service):
    response = client.images.with_raw_response.edit(
        image=photo_png(), mask=alpha_png(), prompt="x", quality="high", background="transparent", user="me",
        input_fidelity="high", extra_body={"strange": 1},
    )  # fmt: skip
    for name in ("quality", "background", "user", "input_fidelity", "strange"):
        assert name in response.headers["x-warnings"]
    assert response.parse().background == "opaque"


def test_streaming_gives_partial_images_then_the_picture(client, service):
    events = list(edit(client, stream=True, partial_images=2, n=2))
    partial = [e for e in events if e.type == "image_edit.partial_image"]
    complete = [e for e in events if e.type == "image_edit.completed"]
    assert [e.partial_image_index for e in partial] == [0, 1, 0, 1]
    assert [order.previews for order in service.orders] == [2, 2]
    assert len(complete) == 2 and events[-1] in complete
    for event in complete:
        assert np.array_equal(decoded(event.b64_json), expected())
        assert event.usage.total_tokens == 0 and event.size == "40x30"


def test_what_goes_wrong_before_a_stream_begins_is_a_status(client, service):
    service.fails = Overloaded("the queue is full", 7.2)
    with pytest.raises(openai.RateLimitError) as caught:
        list(edit(client.with_options(max_retries=0), stream=True))
    assert caught.value.response.headers["retry-after"] == "8"


def test_what_goes_wrong_within_a_stream_is_an_error_event(client, service):
    service.fails_later = DeadlinePassed("took longer than 3 s")
    stream = edit(client.with_options(max_retries=0), stream=True, partial_images=1)
    assert next(iter(stream)).type == "image_edit.partial_image"
    with pytest.raises(openai.APIError, match="took longer than 3 s"):
        next(iter(stream))


def test_models_are_base_adapters_and_categories(client):
    models = {model.id: model for model in client.models.list()}
    assert models.keys() == {"toy", "CDP_FOOD", "CDP_COS", "home", "CDP_SOFA", "CDP_LAMP"}
    assert client.models.retrieve("CDP_LAMP").id == "CDP_LAMP"
    with pytest.raises(openai.NotFoundError, match="CDP_FOOD"):
        client.models.retrieve("CDP_FOODS")


def retries(client, error, **settings) -> int:
    """How often the SDK sends a request again that ends in `error`: it says so in a header."""
    with pytest.raises(error) as caught:
        edit(client, **settings)
    return int(caught.value.response.request.headers["x-stainless-retry-count"])


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"mask": mask_png()}, openai.BadRequestError),
        ({"image": b"nothing"}, openai.BadRequestError),
        ({"n": 11}, openai.BadRequestError),
        ({"prompt": "x" * 10_000_000}, openai.BadRequestError),
        ({"response_format": "url"}, openai.BadRequestError),
        ({"model": "CDP_FOOO"}, openai.NotFoundError),
    ],
)
def test_the_clients_mistakes_raise_typed_errors_and_are_not_retried(client, service, settings, error):
    assert retries(client, error, **settings) == 0
    assert not service.orders


def test_an_error_has_openais_fields(client, service):
    with pytest.raises(openai.BadRequestError) as caught:
        edit(client, n=11)
    error = caught.value
    assert (error.param, error.code, error.type) == ("n", "out_of_range", "invalid_request_error")
    assert "1 to 10" in error.message


def test_a_passed_deadline_and_what_cannot_be_painted_are_not_retried(client, service):
    service.fails = DeadlinePassed("took longer than 3 s")
    assert retries(client, openai.APIStatusError) == 0
    service.fails = InpaintError("steps 3: too few")
    assert retries(client, openai.BadRequestError) == 0
    assert len(service.orders) == 2


def test_overload_and_a_replaced_adapter_are_retried_when_we_say(client, service, monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    for error in (AdapterGone("CDP_FOOD was replaced"), Overloaded("full", 6.5)):
        service.fails, service.fails_times = error, 1
        assert np.array_equal(decoded(edit(client).data[0].b64_json), expected())
    assert waited == [1, 7]


def test_a_wrong_key_is_an_authentication_error(running, service):
    with openai.OpenAI(base_url=f"{running[1]}/v1", api_key="sk-wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            edit(stranger)
        assert caught.value.code == "invalid_api_key"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
    assert not service.orders


def test_the_photo_is_the_photo(client, service):
    edit(client)
    assert np.array_equal(service.orders[0].request.image, np.asarray(picture()))
