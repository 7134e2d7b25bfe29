"""The bank of variants: a row's own, whatever the run; drawn by position; more of them change none."""

from dataclasses import replace

import numpy as np
import pytest

from inpaint.data.bank import WHOLE, Bank
from inpaint.data.holes import Feathered, Grown, OwnMask, RandomShapes, Sometimes, WholeImage
from inpaint.data.rows import Row
from inpaint.data.sample import Crop, ReadSettings, make_sample
from inpaint.errors import InpaintError
from tests.unit.data import images

ROWS = [Row(id=str(n), root="r", image="i", width=40, height=30, digest=f"{n:02x}" * 32) for n in range(40)]
FILES = {"image": images.encoded(images.picture())}
READ = ReadSettings(height=32, width=32, hole=Sometimes(RandomShapes(), 0.25), bank=Bank(holes=3))


def samples(settings: ReadSettings, seed: int, row: Row, count: int) -> list[dict]:
    return [make_sample(row, FILES, settings, seed, position) for position in range(count)]


def keys(found: list[dict], *names: str) -> set[bytes]:
    return {b"".join(sample[name].tobytes() for name in names) for sample in found}


def test_a_row_has_so_many_holes_and_the_whole_image_whatever_the_run() -> None:
    one, other = (samples(READ, seed, ROWS[0], 60) for seed in (1, 2))
    assert len(keys(one, "hole")) == 4 and keys(one, "hole") == keys(other, "hole")
    assert any(a["hole"].tobytes() != b["hole"].tobytes() for a, b in zip(one, other, strict=True))
    assert keys(samples(READ, 1, ROWS[1], 60), "hole") & keys(one, "hole") == {np.full((32, 32), 255, "u1").tobytes()}


def test_more_variants_leave_those_that_there_were() -> None:
    cropped = replace(READ, crop=Crop.RANDOM, flip_probability=0.5, bank=Bank(holes=2, views=2))
    few, many = (samples(replace(cropped, bank=bank), 1, ROWS[0], 200) for bank in (cropped.bank, Bank(holes=3)))
    assert len(keys(few, "image")) == 2 and len(keys(many, "image")) == 4
    assert len(keys(few, "image", "hole")) == 2 * (2 + 1) and len(keys(many, "image", "hole")) == 4 * (3 + 1)
    assert keys(few, "image", "hole") < keys(many, "image", "hole")


def test_of_two_views_one_is_mirrored_and_without_mirroring_there_is_one() -> None:
    mirrored = replace(READ, flip_probability=0.5)
    upright = {sample["image"].tobytes() for sample in samples(READ, 1, ROWS[0], 8)}
    assert READ.views == 1 and len(upright) == 1
    assert mirrored.views == 2 and replace(mirrored, crop=Crop.RANDOM).views == 4
    for row in ROWS[:8]:
        found = keys(samples(mirrored, 1, row, 16), "image")
        assert len(found) == 2 and upright < found
    rare = replace(mirrored, flip_probability=0.1, bank=Bank(views=1))
    shown = [make_sample(row, FILES, rare, 0, 0)["image"].tobytes() in upright for row in ROWS]
    assert 0.8 <= np.mean(shown) < 1


def test_variants_come_alike_and_the_whole_image_at_its_share() -> None:
    views, holes = replace(READ, flip_probability=0.5).variants(7, np.arange(20_000))
    assert np.mean(holes == WHOLE) == pytest.approx(0.25, abs=0.01)
    both = np.bincount((views * 3 + holes)[holes != WHOLE]) / np.sum(holes != WHOLE)
    assert both == pytest.approx(1 / 6, abs=0.01)
    again = replace(READ, flip_probability=0.5).variants(7, np.arange(5000, 6000))
    assert all(np.array_equal(a[5000:6000], b) for a, b in zip((views, holes), again, strict=True))


def test_what_is_decided_by_sample_is_the_whole_image_alone() -> None:
    own = Feathered(Grown(OwnMask()))
    assert (Sometimes(own, 0.3).whole, Sometimes(own, 0.3).partial) == (0.3, own)
    assert (WholeImage().whole, own.whole, own.partial) == (1.0, 0.0, own)
    of_two = Sometimes(own, 0.3, RandomShapes())
    assert (of_two.whole, of_two.partial) == (0.0, of_two)


def test_a_bank_of_nothing_is_refused() -> None:
    for settings in ({"holes": 0}, {"views": 0}):
        with pytest.raises(InpaintError, match="bank: .* at least 1"):
            Bank(**settings)
