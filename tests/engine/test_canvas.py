"""Sizes: the published table at one megapixel, the same shapes on small canvases."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rekontext.contract import ASPECT_RATIOS, AspectRatio
from rekontext.engine.canvas import TRAINED_SIZES, Canvas, Size


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ("1:1", (1024, 1024)),
        ("16:9", (1328, 800)),
        ("21:9", (1568, 672)),
        ("3:2", (1248, 832)),
        ("2:3", (832, 1248)),
        ("4:5", (944, 1104)),
        ("5:4", (1104, 944)),
        ("3:4", (880, 1184)),
        ("4:3", (1184, 880)),
        ("9:16", (800, 1328)),
        ("9:21", (672, 1568)),
    ],
)
def test_fixed_ratios_have_the_published_sizes(ratio: AspectRatio, size: Size) -> None:
    assert Canvas().output(ratio, (10, 10)) == size


@pytest.mark.parametrize(
    ("photo", "size"),
    [((640, 480), (1184, 880)), ((1000, 1000), (1024, 1024)), ((1, 9999), (672, 1568)), ((9999, 1), (1568, 672))],
)
def test_match_takes_the_nearest_trained_size(photo: Size, size: Size) -> None:
    assert Canvas().output("match_input_image", photo) == size


def test_match_without_a_photo_is_a_square() -> None:
    assert Canvas().output("match_input_image", None) == (1024, 1024)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 15), st.integers(0, 15))
def test_nearest_is_nearest_and_of_two_the_narrower(columns: int, rows: int, right: int, below: int) -> None:
    """By whole tokens: pixels at the edge that make none don't count."""
    chosen = Canvas().nearest((16 * columns + right, 16 * rows + below))
    distances = [abs(columns / rows - w / h) for w, h in TRAINED_SIZES]
    assert chosen == TRAINED_SIZES[distances.index(min(distances))]


@given(st.integers(4096, 2**22))
def test_any_canvas_has_whole_tokens_and_about_its_area(area: int) -> None:
    for ratio in ASPECT_RATIOS:
        width, height = Canvas(area=area).output(ratio, None)
        assert width % 16 == height % 16 == 0
        assert 0.5 * area < width * height < 2 * area


@given(st.integers(64, 2048).map(lambda side: side * side), st.integers(1, 4000), st.integers(1, 4000))
@example(464 * 464, 1000, 2230)
def test_a_photo_of_the_canvas_s_own_size_keeps_it(area: int, width: int, height: int) -> None:
    """So a photo may be brought to its size beforehand, as one that waits is: it comes to the same."""
    canvas = Canvas(area=area)
    assert [canvas.nearest(size) for size in canvas.sizes] == list(canvas.sizes)
    assert canvas.nearest(canvas.nearest((width, height))) == canvas.nearest((width, height))


def test_a_canvas_of_a_few_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        Canvas(area=4095)
