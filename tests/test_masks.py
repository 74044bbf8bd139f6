"""Which part of a photo may change is read from a picture as its maker meant it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rekontext.contract import EditRefused, same_shape
from rekontext.masks import stretch_mask, transparency_of, white_of


def spot(mode: str, background: Any, colour: Any) -> Image.Image:
    """A dot of one colour."""
    picture = Image.new(mode, (40, 24), background)
    picture.paste(colour, (10, 8, 30, 16))
    return picture


EXPECTED = spot("L", 0, 255)


@pytest.mark.parametrize(
    "picture",
    [
        spot("L", 0, 255),
        spot("1", 0, 255),
        spot("RGB", "black", "white"),
        spot("RGB", (9, 4, 15), (250, 255, 243)),
        spot("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)),
        spot("L", 0, 255).convert("P"),
        Image.fromarray(np.asarray(spot("L", 0, 255)).astype(np.uint16) * 257),
    ],
    ids=["gray", "bits", "colours", "noise", "opaque", "palette", "deep"],
)
def test_white_is_what_may_change(picture: Image.Image) -> None:
    mask = white_of(picture)
    assert mask.mode == "L"
    assert mask.tobytes() == EXPECTED.tobytes()


def test_gray_is_kept_as_it_is() -> None:
    assert white_of(Image.linear_gradient("L")).getpixel((0, 100)) == 100


def test_jpeg_leaves_no_noise_around_what_is_marked() -> None:
    """Else a photo that is to stay would be off by a level here and there."""
    buffer = BytesIO()
    EXPECTED.resize((400, 240), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=80)
    levels = np.asarray(white_of(Image.open(buffer)))
    assert (levels[:60] == 0).all()
    assert (levels[100:140, 120:280] == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_marks_whatever_the_colours_are(mode: str) -> None:
    picture = Image.effect_noise(EXPECTED.size, 80).convert(mode)
    picture.putalpha(EXPECTED.point(lambda level: 255 - level))
    assert transparency_of(picture).tobytes() == EXPECTED.tobytes()


def test_a_mask_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    spot("RGB", "black", "white").save(buffer, "PNG", exif=exif)
    assert white_of(Image.open(buffer)).size == (24, 40)


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (Image.new("L", (9, 9)), "mask marks nothing: it must be white where"),
        (Image.new("L", (9, 9), 127), "mask marks nothing"),
        (spot("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)), "mask has transparent parts: it must be white where"),
    ],
    ids=["black", "dark", "transparent"],
)
def test_a_mask_that_says_nothing_is_refused(picture: Image.Image, why: str) -> None:
    """White strokes on transparent ground and holes in an opaque one mean the opposite: neither is guessed."""
    with pytest.raises(EditRefused, match=why):
        white_of(picture)


@pytest.mark.parametrize("picture", [Image.new("RGB", (9, 9)), Image.new("RGBA", (9, 9), (1, 2, 3, 255))])
def test_a_picture_without_holes_marks_nothing(picture: Image.Image) -> None:
    with pytest.raises(EditRefused, match="mask marks nothing: it must be transparent where"):
        transparency_of(picture)


def test_stretching_marks_nothing_far_from_what_is_marked() -> None:
    """Lanczos would: it rings."""
    mask = np.asarray(stretch_mask(EXPECTED, (400, 240)))
    assert not mask[:70].any()
    assert stretch_mask(EXPECTED, EXPECTED.size).tobytes() == EXPECTED.tobytes()


def test_shapes_are_the_same_but_for_rounding() -> None:
    assert same_shape((512, 384), (4032, 3024))
    assert same_shape((333, 250), (4032, 3024))
    assert not same_shape((384, 512), (4032, 3024))
    assert not same_shape((1024, 1024), (4032, 3024))
