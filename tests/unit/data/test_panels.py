"""Where a composite's panels lie: even and uneven sizes, gutters, borders, and grids that are not there."""

import numpy as np
import pytest
from PIL import Image

from inpaint.data.panels import Grid, find_panels, panels_hole
from inpaint.errors import BadRow, InpaintError


def composite(
    heights: list[int],
    widths: list[int],
    *,
    gutter: int = 0,
    border: int = 0,
    colour: tuple[int, int, int] = (255, 255, 255),
    frame: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Panels of noise, of these sizes."""
    rng = np.random.default_rng(0)
    high, wide = sum(heights) + gutter * (len(heights) - 1), sum(widths) + gutter * (len(widths) - 1)
    inner = np.full((high, wide, 3), colour, np.uint8)
    top = 0
    for height in heights:
        left = 0
        for width in widths:
            inner[top : top + height, left : left + width] = rng.integers(0, 256, (height, width, 3))
            left += width + gutter
        top += height + gutter
    image = np.empty((high + 2 * border, wide + 2 * border, 3), np.uint8)
    image[:] = frame or colour
    image[border : border + high, border : border + wide] = inner
    return image


def boxes(image: np.ndarray, grid: str) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left, right."""
    return [(y.start, y.stop, x.start, x.stop) for y, x in find_panels(image, Grid.parse(grid))]


def sizes(image: np.ndarray, grid: str) -> list[tuple[int, int]]:
    return [(bottom - top, right - left) for top, bottom, left, right in boxes(image, grid)]


@pytest.mark.parametrize("grid", ["2x2", "1x2", "2x1", "1x4", "3x3"])
def test_panels_share_a_picture_without_gutters_evenly(grid: str) -> None:
    rows, columns = (int(number) for number in grid.split("x"))
    image = composite([101], [203])
    found = boxes(image, grid)
    assert len(found) == rows * columns
    covered = np.zeros((101, 203), int)
    for top, bottom, left, right in found:
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert max(h for h, _ in sizes(image, grid)) - min(h for h, _ in sizes(image, grid)) <= 1
    assert found == sorted(found)


def test_gutters_are_kept_and_panels_may_differ_in_size() -> None:
    image = composite([60, 66], [80, 74, 79], gutter=4)
    assert boxes(image, "2x3")[:4] == [(0, 60, 0, 80), (0, 60, 84, 158), (0, 60, 162, 241), (64, 130, 0, 80)]


def test_borders_are_kept_also_in_another_colour_than_the_gutters() -> None:
    image = composite([60, 60], [60, 60], gutter=3, border=5, frame=(20, 30, 40))
    assert boxes(image, "2x2") == [(5, 65, 5, 65), (5, 65, 68, 128), (68, 128, 5, 65), (68, 128, 68, 128)]


def test_gutters_are_found_in_a_jpeg(tmp_path) -> None:
    smooth = Image.fromarray(composite([8, 8], [8, 8])).resize((256, 256), Image.Resampling.BICUBIC)
    image = np.array(smooth)
    image[124:132], image[:, 124:132] = 255, 255
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=85)
    for top, bottom, left, right in boxes(np.array(Image.open(tmp_path / "a.jpg")), "2x2"):
        assert {top, bottom, left, right} <= {0, *range(122, 127), *range(129, 135), 256}
        assert not (bottom == 128 or top == 128)


def test_a_wide_plain_background_is_no_gutter() -> None:
    image = np.full((100, 100, 3), 255, np.uint8)
    for top in (15, 65):
        for left in (15, 65):
            image[top : top + 20, left : left + 20] = 90
    assert sizes(image, "2x2") == [(50, 50)] * 4


def test_an_empty_row_beside_a_gutter_of_another_colour_is_a_panel() -> None:
    image = composite([40, 40], [40, 40], gutter=4)
    image[44:, :40] = image[44:, 44:] = 128  # two panels that wait to be painted
    assert boxes(image, "2x2")[2:] == [(44, 84, 0, 40), (44, 84, 44, 84)]


GRIDS = ["2x2", "1x2", "2x1", "1x4", "3x3"]


@pytest.mark.parametrize("said", GRIDS)
@pytest.mark.parametrize("true", GRIDS)
def test_a_grid_is_found_or_another_one_than_said_is_named(true: str, said: str) -> None:
    rows, columns = (int(number) for number in true.split("x"))
    image = composite([40] * rows, [40] * columns, gutter=3, border=2)
    if true == said:
        assert sizes(image, said) == [(40, 40)] * rows * columns
        return
    if said == "2x2" and true in ("1x2", "2x1"):
        assert set(sizes(image, said)) == {(20, 40) if rows == 1 else (40, 20)}, "which nothing in the picture denies"
        return
    with pytest.raises(BadRow, match=f"another grid: its gutters make ([{rows}] rows|[{columns}] columns), not the"):
        find_panels(image, Grid.parse(said))


def test_panels_of_any_size_are_found_by_their_gutters_which_may_differ_in_width() -> None:
    image = composite([44], [40, 90, 30], gutter=2)
    image = np.concatenate([image[:, :41], np.full((44, 4, 3), 255, np.uint8), image[:, 41:]], axis=1)
    assert sizes(image, "1x3") == [(44, 40), (44, 90), (44, 30)]
    # A plain background around a product is no gutter, however narrow the rest of it: it goes on beside the product.
    white = np.full((80, 80, 3), 255, np.uint8)
    white[10:36, 12:30] = white[44:70, 50:68] = white[3:8, 40:42] = 90
    assert sizes(white, "2x1")[0][0] <= 40


def test_a_border_alone_is_kept_and_panels_share_the_rest() -> None:
    image = composite([61], [83], border=4)
    assert boxes(image, "2x2") == [(4, 34, 4, 46), (4, 34, 46, 87), (34, 65, 4, 46), (34, 65, 46, 87)]


def test_gutters_of_another_grid_are_named() -> None:
    with pytest.raises(BadRow, match="another grid: its gutters make 3 columns, not the columns of 2x2"):
        find_panels(composite([60], [40, 40, 40], gutter=4), Grid.parse("2x2"))


def test_a_picture_too_small_for_its_panels_is_refused() -> None:
    with pytest.raises(BadRow, match="fewer than 8"):
        find_panels(composite([20], [20]), Grid.parse("3x3"))


@pytest.mark.parametrize("text", ["2", "2x", "0x2", "1x1", "5x5", "axb"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(InpaintError, match="grid"):
        Grid.parse(text)


@pytest.mark.parametrize("panels", [(4,), (-1,), (), (0, 1, 2, 3)])
def test_panels_that_cannot_be_painted_are_refused(panels: tuple[int, ...]) -> None:
    with pytest.raises(InpaintError, match="panel"):
        Grid().check(panels)


def test_the_hole_is_the_named_panels_alone() -> None:
    image = composite([40, 40], [40, 40], gutter=4)
    hole = panels_hole((84, 84), find_panels(image, Grid()), (1, 2))
    assert hole.sum() == 2 * 1600 and hole[0, 44] and hole[44, 0] and not hole[:, 40:44].any()
