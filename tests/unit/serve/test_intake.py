"""Bad input is a 4xx in the dialect's own form that names field and limit, and the service never sees it."""

import importlib
import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from inpaint.serve.dialects.paint_http import paint_http
from inpaint.serve.http import images
from inpaint.serve.http.limits import HttpSettings
from tests.unit.data.images import animated, encoded, mask, picture, png_16_bit_rgb, png_bomb, with_orientation
from tests.unit.serve.clients import DIALECTS, ask, b64, pictures, told
from tests.unit.serve.fake import BLUE, FakeService, alpha_png, expected, hole, mask_png, photo_png

SMALL = HttpSettings(max_pixels=100_000, max_image_bytes=200_000, max_body_bytes=1_000_000, max_answer_pixels=10_000)


SERVICE = FakeService()


@pytest.fixture(scope="module")
def client():
    with TestClient(paint_http(SERVICE, SMALL)) as client:
        yield client


@pytest.fixture
def service():
    SERVICE.orders.clear()
    return SERVICE


def of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_polarity_what_each_dialects_mask_names_is_painted_and_nothing_else(client, service, dialect):
    settings = {"feather": 0} if dialect == "a1111" else {}
    response = ask(client, dialect, **settings)
    (file,) = pictures(dialect, response)
    assert np.array_equal(of(file), expected())
    assert np.array_equal(service.orders[0].request.hole, hole())
    assert response.headers["x-kept-pixels-changed"] == "0"


BAD_IMAGES = {
    "empty": (b"", "zero bytes"),
    "text": (b"hello" * 100, "not an image"),
    "gif": (encoded(picture(), "GIF"), "GIF"),
    "bmp": (encoded(picture(), "BMP"), "BMP"),
    "tiff of fractions": (encoded(picture().convert("F"), "TIFF"), "fractions"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(100), "heif-convert"),
    "truncated png": (photo_png()[:-60], "truncated"),
    "truncated jpeg": (encoded(picture(100, 80), "JPEG")[:-300], "truncated"),
    "bomb": (png_bomb(40_000, 40_000), "100,000"),
    "far too large a bomb": (png_bomb(100_000, 100_000), "100,000"),
    "too many pixels": (encoded(picture(400, 300)), "100,000"),
    "too many bytes": (photo_png() + b"\0" * 200_000, "200,000"),
    "0 x 0": (png_bomb(0, 0), ""),
    "20,000 x 1": (encoded(Image.new("RGB", (20_000, 1))), "16,383"),
    "below the multiple": (encoded(picture(40, 7)), "8"),
    "aspect": (encoded(picture(400, 10)), "factor of 16"),
    "animated png": (animated("PNG"), "pictures in one file"),
    "animated webp": (animated("WEBP"), "pictures in one file"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_refused_with_the_limit(client, service, dialect, kind):
    data, says = BAD_IMAGES[kind]
    problem = told(dialect, ask(client, dialect, image=data))
    assert problem.status in (400, 413)
    assert problem.message.startswith(("image:", "init_images:"))
    assert says in problem.message
    assert not service.orders


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["text", "gif", "truncated png", "bomb", "animated png", "20,000 x 1"])
def test_bad_masks_are_refused_too(client, service, dialect, kind):
    problem = told(dialect, ask(client, dialect, mask=BAD_IMAGES[kind][0]))
    assert problem.status == 400 and problem.message.startswith("mask:")
    assert not service.orders


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_mask_of_another_size_is_refused_with_both_sizes(client, service, dialect):
    other = alpha_png(32, 30) if dialect == "openai" else mask_png(32, 30)
    problem = told(dialect, ask(client, dialect, mask=other))
    assert problem.status == 400 and "32 x 30" in problem.message and "40 x 30" in problem.message
    assert not service.orders


def test_an_openai_mask_without_alpha_is_refused_and_told_what_to_send(client, service):
    for wrong in (mask_png(), encoded(mask(), "JPEG"), encoded(mask().convert("RGB"))):
        problem = told("openai", ask(client, "openai", mask=wrong))
        assert problem.status == 400 and "alpha" in problem.message and "0 where to paint" in problem.message
    assert not service.orders


def test_a_transparent_mask_is_ambiguous_in_our_own_dialect(client, service):
    problem = told("own", ask(client, "own", mask=alpha_png()))
    assert problem.code == "ambiguous_mask" and "/v1/images/edits" in problem.message
    assert not service.orders


def test_a1111_reads_a_transparent_mask_by_its_alpha_opaque_is_painted(client, service):
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 15))
    pictures("a1111", ask(client, "a1111", mask=encoded(image)))
    assert np.array_equal(service.orders[0].request.hole, hole())


@pytest.mark.parametrize(
    "mode, transparent",
    [("RGBA", None), ("LA", None), ("P", 0)],
)
def test_alpha_is_read_in_every_mode_that_has_one(client, service, mode, transparent):
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(hole(), 0, 255).astype(np.uint8)))
    if mode == "P":
        # Palette entry 0 is transparent and fills the hole.
        palette = Image.fromarray(np.where(hole(), 0, 1).astype(np.uint8))
        palette.putpalette([0, 0, 0, 200, 100, 50])
        data = encoded(palette, transparency=transparent)
    else:
        data = encoded(image.convert(mode))
    pictures("openai", ask(client, "openai", mask=data))
    assert np.array_equal(service.orders[0].request.hole, hole())


@pytest.mark.parametrize("path", ["/v1/images/edits", "/paint"])
def test_without_a_mask_the_images_own_transparency_is_the_hole(client, service, path):
    response = client.post(path, files={"image": alpha_png()}, data={"prompt": "x"})
    assert response.status_code == 200
    assert np.array_equal(service.orders[0].request.hole, hole())
    refused = client.post(path, files={"image": photo_png()}, data={"prompt": "x"})
    assert refused.status_code == 400 and "mask: missing" in refused.text


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_mask_without_hole_gives_the_original_back_and_no_work(client, service, dialect):
    empty = encoded(picture().convert("RGBA")) if dialect == "openai" else encoded(Image.new("L", (40, 30), 0))
    response = ask(client, dialect, mask=empty)
    (file,) = pictures(dialect, response)
    assert np.array_equal(of(file), np.asarray(picture()))
    assert not service.orders


@pytest.mark.parametrize("dialect", DIALECTS)
def test_all_hole_is_allowed(client, service, dialect):
    full = (
        encoded(Image.new("RGBA", (40, 30), (0, 0, 0, 0)))
        if dialect == "openai"
        else encoded(Image.new("L", (40, 30), 255))
    )
    (file,) = pictures(dialect, ask(client, dialect, mask=full))
    assert (of(file) == BLUE).all()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_image_and_mask_are_each_turned_by_their_own_exif(client, service, dialect):
    turned = with_orientation(picture(30, 40).transpose(Image.Transpose.ROTATE_90), 6, "JPEG", quality=100)
    upright = alpha_png(30, 40) if dialect == "openai" else mask_png(30, 40)
    pictures(dialect, ask(client, dialect, image=turned, mask=upright))
    request = service.orders[0].request
    assert request.image.shape == (40, 30, 3)
    assert np.array_equal(request.hole, hole(30, 40))
    assert abs(request.image.astype(int) - np.asarray(picture(30, 40))).max() < 12


def test_a_photo_with_damaged_exif_is_taken_without_a_word_of_pillows(client, service):
    turned = with_orientation(picture(), 3, "JPEG")
    at = turned.index(b"Exif\0\0") + 14
    damaged = turned[:at] + b"\xff\xff" + turned[at + 2 :]  # 65,535 tags
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        Image.open(io.BytesIO(damaged)).getexif()
        assert seen, "Pillow does warn of it"
        seen.clear()
        importlib.reload(images)  # pytest has put aside what it told Python
        pictures("own", ask(client, "own", image=damaged))
    assert not seen
    assert len(service.orders) == 1


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["16-bit grey", "16-bit RGB", "CMYK", "palette", "WEBP", "JPEG"])
def test_other_modes_are_used_as_in_reading(client, service, dialect, kind):
    values = np.asarray(picture())
    grey = np.asarray(picture().convert("L"))
    data, wanted = {
        "16-bit grey": (encoded(Image.fromarray(grey.astype(np.uint16) * 257)), np.stack([grey] * 3, -1)),
        "16-bit RGB": (png_16_bit_rgb(values.astype(np.uint16) * 257), values),
        "CMYK": (encoded(picture().convert("CMYK"), "JPEG", quality=100), values),
        "palette": (encoded(picture().convert("P")), np.asarray(picture().convert("P").convert("RGB"))),
        "WEBP": (encoded(picture(), "WEBP", lossless=True), values),
        "JPEG": (encoded(picture(), "JPEG", quality=100), values),
    }[kind]
    pictures(dialect, ask(client, dialect, image=data))
    seen = service.orders[0].request.image
    assert abs(seen.astype(int) - wanted).max() < (16 if kind in ("CMYK", "JPEG") else 2)


BAD_SETTINGS = [
    ("steps", 0),
    ("steps", 151),
    ("steps", "many"),
    ("steps", 2.5),
    ("steps", True),
    ("seed", -2),
    ("seed", 2**63),
    ("guidance_scale", -1),
    ("guidance_scale", 101),
    ("guidance_scale", "nan"),
    ("guidance_scale", "inf"),
    ("strength", 0),
    ("strength", 1.01),
    ("feather", -1),
    ("feather", 65),
    ("padding", -1),
    ("padding", "half"),
    ("sampler", "PLMS"),
    ("n", 0),
    ("n", 11),
    ("timeout_s", 0),
    ("timeout_s", 601),
    ("prompt", "x" * 4_001),
    ("negative_prompt", "x" * 4_001),
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name, value", BAD_SETTINGS)
def test_settings_out_of_range_are_refused_by_name(client, service, dialect, name, value):
    problem = told(dialect, ask(client, dialect, **{name: value}))
    assert problem.status == 400
    spelled = {
        "guidance_scale": "cfg_scale",
        "strength": "denoising_strength",
        "feather": "mask_blur",
        "padding": "inpaint_full_res_padding",
        "sampler": "sampler_name",
        "n": "batch_size",
    }
    assert problem.message.startswith(spelled.get(name, name) if dialect == "a1111" else name)
    assert not service.orders


@pytest.mark.parametrize("path", ["/sdapi/v1/img2img", "/paint"])
@pytest.mark.parametrize(
    "body, says",
    [
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": Infinity}', "Infinity"),
        (b'{"eta": 1e999, "steps": 1e999}', "finite"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"mask": "a", "mask": "b"}', "given twice"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "send an object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"styles": ' + b"[" * 986 + b"]" * 986 + b"}", "more than 32 levels"),
        (b'{"styles": ' + b'{"a": ' * 40 + b"1" + b"}" * 41, "more than 32 levels"),
        (b"", "not valid JSON"),
    ],
)
def test_broken_json_is_refused(client, service, path, body, says):
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and says in response.text
    assert not service.orders


@pytest.mark.parametrize(
    "value, says",
    [
        ("https://example.com/a.png", "URL"),
        ("http://169.254.169.254/latest", "URL"),
        ("file:///etc/passwd", "URL"),
        ("not base64!", "broken base64"),
        (17, "base64"),
        (["x"], "base64"),
        ("data:image/png;base64,####", "broken base64"),
    ],
)
def test_urls_and_broken_base64_are_refused(client, service, value, says):
    for body in ({"image": value}, {"image": b64(photo_png()), "mask": value}):
        assert says in told("own", client.post("/paint", json=body)).message
    body = {"init_images": [value], "prompt": "x"}
    assert says in told("a1111", client.post("/sdapi/v1/img2img", json=body)).message
    assert not service.orders


def test_data_urls_are_read(client, service):
    prefix = "data:image/png;base64,"
    body = {"image": prefix + b64(photo_png()), "mask": prefix + b64(mask_png()), "prompt": "x"}
    assert client.post("/paint", json=body).status_code == 200
    body = {"init_images": [body["image"]], "mask": body["mask"], "mask_blur": 0}
    (file,) = pictures("a1111", client.post("/sdapi/v1/img2img", json=body))
    assert np.array_equal(of(file), expected())


@pytest.mark.parametrize("name", ["image", "mask", "image[]"])
@pytest.mark.parametrize("path", ["/v1/images/edits", "/paint"])
def test_two_of_what_may_be_one_are_refused(client, service, path, name):
    files = [("image", photo_png()), ("mask", alpha_png() if "v1" in path else mask_png()), (name, photo_png())]
    response = client.post(path, files=files, data={"prompt": "x"})
    assert response.status_code == 400 and "given twice" in response.text
    assert not service.orders


def test_two_init_images_are_refused(client, service):
    body = {"init_images": [b64(photo_png())] * 2, "prompt": "x"}
    assert "2 pictures" in told("a1111", client.post("/sdapi/v1/img2img", json=body)).message
    assert not service.orders


@pytest.mark.parametrize("path", ["/v1/images/edits", "/paint", "/sdapi/v1/img2img"])
@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_other_content_types_are_refused(client, service, path, kind):
    response = client.post(path, content=b"abc", headers={"content-type": kind})
    assert response.status_code == 415 and "content-type" in response.text
    assert not service.orders


@pytest.mark.parametrize("path", ["/v1/images/edits", "/paint", "/sdapi/v1/img2img"])
def test_a_compressed_body_is_refused(client, service, path):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = client.post(path, content=b"abc", headers=headers)
    assert response.status_code == 415 and "uncompressed" in response.text


def test_png_info_of_what_is_no_picture_is_refused(client):
    for value in (b64(b"text"), b64(png_bomb(100_000, 100_000)), "####", "http://x/", None):
        assert told("a1111", client.post("/sdapi/v1/png-info", json={"image": value})).status == 400
    answer = client.post("/sdapi/v1/png-info", json={"image": b64(photo_png())})
    assert answer.json()["info"] == ""


@pytest.mark.parametrize("path", ["/v1/images/edits", "/paint"])
def test_a_form_that_was_cut_off_anywhere_is_refused(client, service, path):
    mask = alpha_png() if "v1" in path else mask_png()
    request = client.build_request("POST", path, files={"image": photo_png(), "mask": mask}, data={"prompt": "x"})
    body = request.read()
    for length in range(0, len(body) - 4, 13):
        response = client.post(path, content=body[:length], headers={"content-type": request.headers["content-type"]})
        assert response.status_code == 400, length
    assert not service.orders
    assert client.post(path, content=body, headers=request.headers).status_code == 200


def test_a_form_with_very_many_parts_is_refused(client, service):
    response = client.post("/paint", files=[("image", photo_png())] + [(f"x{n}", b"y") for n in range(64)])
    assert response.status_code == 400 and "64 parts" in response.text
    unnamed = b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"
    response = client.post("/paint", content=unnamed, headers={"content-type": "multipart/form-data; boundary=b"})
    assert response.status_code == 400 and "name not found" in response.text
    response = client.post("/paint", content=unnamed, headers={"content-type": "multipart/form-data"})
    assert response.status_code == 400 and "boundary" in response.text


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_long_prompt_is_refused_before_anything_is_decoded(client, service, dialect):
    problem = told(dialect, ask(client, dialect, image=b"not decoded", prompt="x" * 500_000))
    assert problem.status == 400 and "4,000" in problem.message and problem.message.startswith("prompt")
    assert not service.orders


@pytest.mark.parametrize("dialect", ["a1111", "own_json"])
@pytest.mark.parametrize("prompt, says", [("\ud800", "surrogate"), ("a\0b", "NUL")])
def test_text_that_is_no_text_is_refused(client, service, dialect, prompt, says):
    body = json.dumps({"image": b64(photo_png()), "init_images": [b64(photo_png())], "prompt": prompt}).encode()
    path = "/paint" if dialect == "own_json" else "/sdapi/v1/img2img"
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and says in response.text
    assert not service.orders


@pytest.mark.parametrize("dialect", DIALECTS)
def test_pictures_times_pixels_are_bounded(client, service, dialect):
    assert ask(client, dialect, n=8).status_code == 200
    problem = told(dialect, ask(client, dialect, n=9))
    assert problem.status == 400 and "10,000" in problem.message and "9 pictures" in problem.message


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_unknown_category_is_a_404_with_the_nearest_names(client, service, dialect):
    problem = told(dialect, ask(client, dialect, category="CDP_FOOT"))
    assert problem.status == 404 and "CDP_FOOD" in problem.message
    assert not service.orders
