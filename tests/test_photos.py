"""A photo is the same photo whether it is given to the engine or sent to the API."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from rekontext.contract import EditRefused
from rekontext.photos import flat_rgb, seen, stretch
from rekontext.pictures import PictureLimits, decode, inspect
from tests.pictures.test_decode import linear_profile

COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8), "RGB")
GRAY = COLOURS.convert("L")
LIMITS = PictureLimits(bytes_max=2**20, pixels_max=10**6)


def stored(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def layered(mode: str) -> Image.Image:
    picture = COLOURS.convert(mode)
    picture.putalpha(GRAY)
    return picture


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(COLOURS, "JPEG", exif=exif, quality=95)


def deep_with_a_transparent_level() -> bytes:
    levels = np.asarray(GRAY).astype(np.uint16) * 257
    levels[:8] = 1000
    return stored(Image.fromarray(levels), "PNG", transparency=1000)


PHOTOS = {
    "plain": stored(COLOURS, "PNG"),
    "gray": stored(GRAY, "PNG"),
    "turned": turned(),
    "transparent": stored(layered("RGBA"), "PNG"),
    "transparent gray": stored(layered("LA"), "PNG"),
    "transparent webp": stored(layered("RGBA"), "WEBP", lossless=True, exact=True),
    "palette": stored(COLOURS.quantize(16), "GIF"),
    "transparent palette": stored(COLOURS.quantize(16), "PNG", transparency=3),
    "cmyk": stored(COLOURS.convert("CMYK"), "JPEG", quality=95),
    "16 bits": stored(Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257), "PNG"),
    "16 bits, a level of it transparent": deep_with_a_transparent_level(),
    "colour profile": stored(COLOURS, "PNG", icc_profile=linear_profile("wide")),
}


@pytest.mark.parametrize("data", PHOTOS.values(), ids=PHOTOS.keys())
def test_both_halves_see_the_same(data: bytes) -> None:
    sent = decode(inspect(data, LIMITS))
    given = seen(Image.open(BytesIO(data)))
    assert type(given) is type(sent) is Image.Image, "not the opened file, with what else stands in it"
    assert given.mode == sent.mode == "RGB"
    assert given.size == sent.size
    assert given.tobytes() == sent.tobytes()
    assert flat_rgb(given).tobytes() == given.tobytes()


def test_what_lies_on_white_or_has_a_profile_is_changed() -> None:
    """Else two halves that do nothing would agree."""
    for name in ("transparent", "16 bits, a level of it transparent", "colour profile"):
        opened = Image.open(BytesIO(PHOTOS[name]))
        assert seen(opened).tobytes() != Image.open(BytesIO(PHOTOS[name])).convert("RGB").tobytes()


def test_stretching_twice_is_stretching_once() -> None:
    once = stretch(COLOURS, (32, 16))
    again = stretch(once, (32, 16))
    assert again is not once, "whoever gave it may draw on it"
    assert again.tobytes() == once.tobytes()
    assert once.tobytes() == COLOURS.resize((32, 16), Image.Resampling.LANCZOS).tobytes()


def test_one_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(EditRefused, match="photo can't be read: "):
        seen(Image.open(BytesIO(PHOTOS["plain"][:-400])))
