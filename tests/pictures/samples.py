"""Small pictures of every kind, made here, so that the tests carry no files."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    """An RGB picture in which every quarter differs: red grows to the right, green grows downwards."""
    picture = Image.new("RGB", (width, height))
    picture.putdata([(255 * x // width, 255 * y // height, 64) for y in range(height) for x in range(width)])
    return picture


def encoded(picture: Image.Image, pillow_format: str = "PNG", **options: Any) -> bytes:
    target = BytesIO()
    picture.save(target, pillow_format, **options)
    return target.getvalue()


def photo_bytes(width: int = 48, height: int = 32) -> bytes:
    return encoded(gradient(width, height), "JPEG", quality=90)


def half_marked(width: int = 48, height: int = 32) -> Image.Image:
    """A mask whose left half is white."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask
