"""Every picture says what it was painted with, in every format."""

import io
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.paint.request import SamplingSettings
from inpaint.serve.http.receipt import Encoding, Receipt, encode, read_infotext, read_receipt
from inpaint.serve.service import AdapterUse
from tests.unit.data.images import encoded, picture, png_bomb

RECEIPT = Receipt(
    software="inpaint 1",
    base="toy",
    base_revision="c" * 64,
    adapters=(AdapterUse(name="CDP_FOOD", digest="d" * 64, weight=0.8), AdapterUse(name="x", digest="e" * 64)),
    seed=2**63 - 1,
    sampling=asdict(SamplingSettings(steps=25, guidance_scale=7.5, strength=0.1 + 0.2, padding=32, feather=4)),
)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_what_is_written_is_read_back_exactly(form):
    data = encode(picture(), Encoding(format=form), RECEIPT, "an infotext, Steps: 3, \u732b")
    assert read_receipt(data) == RECEIPT
    assert Image.open(io.BytesIO(data)).format == form.upper()
    assert read_infotext(data) == ("an infotext, Steps: 3, \u732b" if form == "png" else "")


def test_png_keeps_every_pixel():
    data = encode(picture(), Encoding(compress_level=0), RECEIPT)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture()))


def test_a_bomb_is_not_decoded_for_its_receipt():
    for side in (10_000, 100_000):
        with pytest.raises(InpaintError):
            read_receipt(png_bomb(side, side))


@pytest.mark.parametrize(
    "data", [b"", b"text", encoded(picture()), encoded(picture(), "JPEG"), encoded(picture())[:40]]
)
def test_other_files_have_no_receipt(data):
    with pytest.raises(InpaintError):
        read_receipt(data)
