"""PSNR and SSIM inside the hole, and the classical fills."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from inpaint.errors import InpaintError
from inpaint.evaluate.classical import FILLS, mean_colour
from inpaint.evaluate.metrics import (
    boundary_jump,
    hole_l1,
    hole_psnr,
    hole_ssim,
    object_expansion,
    spread,
    ssim_map,
)

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 256, (24, 30, 3)).astype(np.uint8)
RESULT = np.clip(TRUTH + RNG.normal(0, 20, TRUTH.shape), 0, 255).astype(np.uint8)
HOLE = np.zeros((24, 30), dtype=bool)
HOLE[5:15, 8:20] = True


def test_psnr_is_scikit_images_over_the_hole() -> None:
    assert hole_psnr(RESULT, TRUTH, HOLE) == pytest.approx(peak_signal_noise_ratio(TRUTH[HOLE], RESULT[HOLE]))
    assert hole_psnr(TRUTH, TRUTH, HOLE) == float("inf")


def test_ssim_is_scikit_images_map_inside_the_hole() -> None:
    mean, expected = structural_similarity(TRUTH, RESULT, channel_axis=2, full=True)
    assert ssim_map(RESULT, TRUTH) == pytest.approx(expected.mean(axis=2), abs=1e-6)
    assert hole_ssim(RESULT, TRUTH, HOLE) == pytest.approx(expected.mean(axis=2)[HOLE].mean(), abs=1e-6)
    assert mean < 1
    assert hole_ssim(TRUTH, TRUTH, HOLE) == pytest.approx(1)


def test_what_lies_outside_the_hole_does_not_count() -> None:
    changed = np.where(HOLE[..., None], RESULT, 0).astype(np.uint8)
    assert hole_psnr(changed, TRUTH, HOLE) == hole_psnr(RESULT, TRUTH, HOLE)


def test_an_empty_hole_cannot_be_measured() -> None:
    with pytest.raises(InpaintError, match="empty"):
        hole_psnr(RESULT, TRUTH, np.zeros_like(HOLE))


@pytest.mark.parametrize("fill", [*FILLS.values(), mean_colour])
def test_classical_fills_keep_what_is_kept_and_find_a_flat_colour(fill) -> None:
    filled = fill(TRUTH, HOLE)
    assert np.array_equal(filled[~HOLE], TRUTH[~HOLE])
    flat = np.full((24, 30, 3), (10, 100, 200), dtype=np.uint8)
    spoiled = np.where(HOLE[..., None], 0, flat).astype(np.uint8)
    # OpenCV's Telea computes in whole numbers.
    assert np.abs(fill(spoiled, HOLE).astype(int) - flat).max() <= 3


def test_l1_and_spread_are_means_over_the_hole_alone() -> None:
    assert hole_l1(RESULT, TRUTH, HOLE) == pytest.approx(np.abs(RESULT / 255 - TRUTH / 255)[HOLE].mean())
    lighter = np.where(HOLE[..., None], 51, np.full_like(TRUTH, 200)).astype(np.uint8)
    samples = [np.zeros_like(TRUTH), lighter, np.zeros_like(TRUTH)]
    assert spread(samples, HOLE) == pytest.approx((0.2 + 0.0 + 0.2) / 3)
    with pytest.raises(InpaintError, match="1 results"):
        spread(samples[:1], HOLE)


def test_a_seam_is_as_steep_as_it_is_steeper_than_its_surroundings() -> None:
    ramp = np.tile(np.arange(30, dtype=np.uint8)[None, :, None] * 4, (24, 1, 3))
    assert boundary_jump(ramp, HOLE) == pytest.approx(0)
    flat = np.full((24, 30, 3), 100, dtype=np.uint8)
    step = np.where(HOLE[..., None], 151, flat).astype(np.uint8)
    assert boundary_jump(step, HOLE) == pytest.approx(51 / 255)
    # What is as steep everywhere hides it.
    stripes = np.where((np.arange(30) % 2 == 0)[None, :, None], 0, 102).astype(np.uint8)
    assert boundary_jump(np.tile(stripes, (24, 1, 3)), HOLE) == pytest.approx(0)
    for nowhere in (np.zeros_like(HOLE), np.ones_like(HOLE)):
        with pytest.raises(InpaintError, match="no seam"):
            boundary_jump(flat, nowhere)


def test_expansion_is_the_share_of_the_found_product_outside_the_kept_one() -> None:
    found = np.zeros_like(HOLE)
    found[5:15, 8:25] = True
    assert object_expansion(found, HOLE) == pytest.approx(5 / 17)
    assert object_expansion(HOLE, HOLE) == 0
    with pytest.raises(InpaintError, match="no product"):
        object_expansion(np.zeros_like(HOLE), HOLE)
