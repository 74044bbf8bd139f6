"""Which part of a photo an edit may change: a gray picture, white where it may and black where the photo stays.

For both halves, as `photos.py`; knows no file formats either.
"""

from __future__ import annotations

from typing import ClassVar, Final

from PIL import Image

from rekontext.contract import EditRefused
from rekontext.photos import flat_rgb, opacity, upright

FREE_FROM: Final = 128
"""From this level of 255 on the model draws anew what is there, as diffusers' inpainting pipelines do it."""
_NOISE: Final = 16
"""JPEG leaves so many levels around black and white; they are taken for these."""
_CLEAN: Final = [0 if level < _NOISE else 255 if level > 255 - _NOISE else level for level in range(256)]


class MaskRefused(EditRefused):
    """A picture can't be a mask. `reason` is a clause that follows the mask's name in a sentence."""

    code: ClassVar[str] = "mask_refused"

    def __init__(self, reason: str) -> None:
        super().__init__(f"mask {reason}")
        self.reason = reason


def read_white(picture: Image.Image) -> Image.Image:
    """As `white_of`, of a picture that may not be read yet.

    Raises:
        EditRefused: it can't be read, or can't be a mask.
    """
    try:
        picture.load()
        return white_of(picture)
    except MaskRefused:
        raise
    except Exception as error:  # each format fails in ways of its own
        raise EditRefused(f"mask can't be read: {error}") from error


def white_of(picture: Image.Image) -> Image.Image:
    """The mask that a picture in black and white is, upright, of mode "L".

    Raises:
        MaskRefused: it marks nothing; or it has transparent parts, of which nobody can tell what they are to mean.
    """
    if opacity(picture).getextrema() != (255, 255):
        raise MaskRefused("has transparent parts: it must be white where the photo may change, and black elsewhere")
    return _marked(flat_rgb(upright(picture)).convert("L"), "white")


def transparency_of(picture: Image.Image) -> Image.Image:
    """The mask that a picture's transparent parts are, whatever its colours, upright, of mode "L".

    Raises:
        MaskRefused: it has none.
    """
    return _marked(opacity(upright(picture)).point(lambda level: 255 - level), "transparent")


def stretch_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """At a picture's size. Not with Lanczos, as photos: it rings, and a mask must not mark what its maker hasn't.

    Raises:
        MaskRefused: what it marks is so small that nothing of it is left.
    """
    return _still_marked(mask.resize(size, Image.Resampling.BILINEAR))


def bounded_mask(mask: Image.Image, side_max: int) -> Image.Image:
    """A smaller copy of a large one, its shape rounded.

    Raises:
        MaskRefused: as `stretch_mask`.
    """
    if max(mask.size) <= side_max:
        return mask
    smaller = mask.copy()
    smaller.thumbnail((side_max, side_max), Image.Resampling.BOX)
    return _still_marked(smaller).point(_CLEAN)


def _marked(levels: Image.Image, how: str) -> Image.Image:
    if _lightest(levels) < FREE_FROM:
        raise MaskRefused(f"marks nothing: it must be {how} where the photo may change")
    return levels.point(_CLEAN)


def _still_marked(smaller: Image.Image) -> Image.Image:
    if _lightest(smaller) < FREE_FROM:
        width, height = smaller.size
        raise MaskRefused(f"marks too little: nothing of it is left at {width} x {height}")
    return smaller


def _lightest(levels: Image.Image) -> float:
    lightest = levels.getextrema()[1]
    assert isinstance(lightest, (int, float)), "one channel has one range"
    return lightest
