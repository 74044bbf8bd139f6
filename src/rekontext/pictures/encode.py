"""RGB pixels -> png, jpg or webp bytes. Synchronous: the caller runs it off the event loop."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Final, Literal, get_args

from PIL.Image import Image

OutputFormat = Literal["webp", "jpg", "png"]
OUTPUT_FORMATS: Final[tuple[OutputFormat, ...]] = get_args(OutputFormat)
QUALITY_MIN: Final = 0
QUALITY_MAX: Final = 100
QUALITY_DEFAULT: Final = 90
MEDIA_TYPES: Final[dict[OutputFormat, str]] = {"webp": "image/webp", "jpg": "image/jpeg", "png": "image/png"}


def encode(picture: Image, output_format: OutputFormat, quality: int = QUALITY_DEFAULT) -> bytes:
    """Encode one RGB picture.

    Args:
        quality: `QUALITY_MIN`..`QUALITY_MAX` for jpg and webp; png is lossless and takes no notice of it.
    """
    assert QUALITY_MIN <= quality <= QUALITY_MAX, f"quality {quality} was not checked"
    target = BytesIO()
    # `save` leaves its options on the Image it is given, where another thread's `save` of it would find them.
    own = picture.copy()
    match output_format:
        case "png":
            # Run-length matching at level 1: a third of the default's time for the same size on photos.
            own.save(target, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        case "jpg":
            own.save(target, "JPEG", quality=max(quality, 1))  # to Pillow 0 means its own default
        case "webp":
            own.save(target, "WEBP", quality=quality)
    return target.getvalue()
