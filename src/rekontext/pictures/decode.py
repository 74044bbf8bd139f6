"""Checked bytes -> RGB pixels. Knows nothing of where the bytes came from.

`inspect` reads the header only and is cheap; `decode` does the work. Both are synchronous: the caller runs them off
the event loop. What the bytes are is read from the bytes: a name or a Content-Type is never believed.
"""

from __future__ import annotations

import zlib
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal, TypeVar

from PIL import GifImagePlugin, Image, PngImagePlugin

from rekontext.masks import MaskRefused, bounded_mask, transparency_of, white_of
from rekontext.photos import PROFILE_BYTES_MAX, flat_rgb, upright, upright_size
from rekontext.pictures.refused import PictureRefused, PictureTooLarge

PhotoFormat = Literal["jpeg", "png", "gif", "webp"]

_PILLOW_NAMES: Final[dict[PhotoFormat, str]] = {"jpeg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP"}
PIXELS_MAX: Final = 89_000_000
_READABLE: Final = "jpeg, png, gif or webp"
PngImagePlugin.MAX_TEXT_CHUNK = PROFILE_BYTES_MAX  # profiles too; Pillow refuses the picture where one is larger
_READS_MAX: Final = 100_000
"""A PNG of 20 MB whose chunks are as small as encoders make them needs some 10,000."""
_PNG_PIXELS: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_LOOKS: Final = frozenset({b"eXIf", b"iCCP"})
_PNG_BITS_AT: Final = 24
"""Where a PNG says how many bits a channel has."""
_OTHERS: Final[tuple[tuple[str, int, tuple[bytes, ...]], ...]] = (
    ("a raw photo", 4, (b"ftypcrx ",)),
    ("HEIC", 4, tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"))),
    ("AVIF", 4, (b"ftypavif", b"ftypavis")),
    ("a video", 4, (b"ftyp",)),
    ("TIFF", 0, (b"II*\0", b"MM\0*")),
    ("BMP", 0, (b"BM",)),
    ("JPEG XL", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    ("JPEG 2000", 0, (b"\0\0\0\x0cjP  ",)),
    ("a PDF", 0, (b"%PDF",)),
    ("a Photoshop document", 0, (b"8BPS",)),
)
"""What is sent in place of a picture that can be read: its name, where its mark is, and the mark."""
_TEXTS: Final[tuple[tuple[str, tuple[bytes, ...]], ...]] = (
    ("SVG", (b"<svg",)),
    ("a web page", (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<meta")),
    ("XML", (b"<?xml",)),
    ("JSON", (b"{", b"[")),
)
"""The same of texts, in lower case and from their first character on."""
_TEXT_LOOKED_AT: Final = 1024

Marks = Literal["white", "transparency"]
"""What of a mask's picture says where the photo may change."""
_MASK_SIDE_MAX: Final = 2048
"""No canvas is as long, so more detail would be lost anyway."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """The most that one picture may weigh, as sent (`bytes_max`) and unpacked (`pixels_max`, width x height).

    Raises:
        ValueError: `pixels_max` is beyond `PIXELS_MAX`, where Pillow's own guard against decompression bombs begins.
    """

    bytes_max: int
    pixels_max: int

    def __post_init__(self) -> None:
        if self.pixels_max > PIXELS_MAX:
            raise ValueError(f"pixels_max is {self.pixels_max}; at most {PIXELS_MAX} are allowed")


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A picture as it came in, its header checked and its pixels not yet unpacked.

    Attributes:
        width, height: as stored; an EXIF orientation may swap them in the decoded picture.
    """

    data: bytes
    format: PhotoFormat
    width: int
    height: int


def sniff(data: bytes) -> PhotoFormat | None:
    """The format that the first bytes declare, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def inspect(data: bytes, limits: PictureLimits) -> Photo:
    """Check size and format without unpacking a pixel, so that a decompression bomb costs nothing.

    Raises:
        PictureTooLarge: too many bytes, or too many pixels once unpacked.
        PictureRefused: empty, or none of the four formats, or a header that can't be read.
    """
    if not data:
        raise PictureRefused("the picture is empty (0 bytes)")
    if len(data) > limits.bytes_max:
        raise PictureTooLarge(f"the picture has {len(data)} bytes; at most {limits.bytes_max} are allowed")
    photo_format = sniff(data)
    if photo_format is None:
        raise PictureRefused(f"the bytes are no {_READABLE} picture ({_what_else(data)})")
    width, height = _stored_size(data, photo_format, limits)
    if width * height > limits.pixels_max:
        raise PictureTooLarge(
            f"the picture has {width}x{height} = {width * height} pixels; at most {limits.pixels_max} are allowed"
        )
    return Photo(data=data, format=photo_format, width=width, height=height)


def decode(photo: Photo) -> Image.Image:
    """Unpack to upright sRGB pixels: first frame, EXIF orientation applied, transparency laid on white.

    Returns:
        A fresh picture of mode "RGB" without metadata.

    Raises:
        PictureRefused: the file is cut off or damaged.
    """

    return _unpacked(photo, lambda opened: flat_rgb(upright(_loaded(opened, photo))))


def decode_mask(mask: Photo, marks: Marks) -> Image.Image:
    """Unpack what a picture marks, as `rekontext.masks` has it; of a large one a smaller copy, its shape rounded.

    Raises:
        MaskRefused: it can't be a mask.
        PictureRefused: the file is cut off or damaged.
    """

    def unpacked(opened: Image.Image) -> Image.Image:
        picture = _loaded(opened, mask)
        return bounded_mask(white_of(picture) if marks == "white" else transparency_of(picture), _MASK_SIDE_MAX)

    return _unpacked(mask, unpacked)


def shown_size(photo: Photo) -> tuple[int, int]:
    """Width and height as a viewer shows it; as stored, where its metadata can't be read."""
    return _read(photo.data, photo.format, upright_size)


def _unpacked(photo: Photo, use: Callable[[Image.Image], T]) -> T:
    try:
        return _read(photo.data, photo.format, use)
    except (MemoryError, PictureRefused, MaskRefused):
        raise
    except Exception as fault:  # a decoder fed hostile bytes raises nearly anything; all of it is the file's fault
        raise PictureRefused(f"the {photo.format} picture is cut off or damaged") from fault


class _FewReads(BytesIO):
    """Bytes that are read in no more than `_READS_MAX` pieces.

    Pillow walks through segments, chunks and comments one by one: through 20 MB of empty ones for half a minute, in
    which little else runs.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _READS_MAX

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise PictureRefused("the picture is made of too many parts: save it anew")
        return super().read(size)


def _read(data: bytes, photo_format: PhotoFormat, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the opened file. Of a PNG that can't be read as it is, without what isn't its pixels: texts
    and tags that are damaged or huge must not cost anybody a good picture."""
    faults = []
    for keep in (None, _PNG_PIXELS | _PNG_LOOKS, _PNG_PIXELS) if photo_format == "png" else (None,):
        file = _FewReads(data if keep is None else _png_without_others(data, keep=keep))
        try:
            with Image.open(file, formats=[_PILLOW_NAMES[photo_format]]) as opened:
                return use(opened)
        except (MemoryError, PictureRefused, MaskRefused, Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise
        except Exception as fault:
            faults.append(fault)
    raise faults[0]


def _png_without_others(data: bytes, *, keep: frozenset[bytes]) -> bytes:
    """A PNG without the chunks that aren't in `keep`, or whose checksum is wrong though a picture can do without."""
    kept, at = [data[:8]], 8
    for _ in range(_READS_MAX):
        if at >= len(data):
            break
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, whole = data[at + 4 : at + 8], data[at:end]
        if kind in keep and (kind in _PNG_PIXELS or zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big")):
            kept.append(whole)
        at = end
    return b"".join(kept)


def _what_else(data: bytes) -> str:
    """For the caller: what the bytes are, if they are one of `_OTHERS` or `_TEXTS`."""
    if data.startswith(b"ftypmif1", 4) and b"avif" in data[16 : int.from_bytes(data[:4], "big")]:
        return "this is AVIF"  # of the same container as HEIC
    for name, at, marks in _OTHERS:
        if data.startswith(marks, at):
            return f"this is {name}"
    text = data[:_TEXT_LOOKED_AT].removeprefix(BOM_UTF8).lstrip().lower()
    if text.startswith(b"<?xml") and b"<svg" in text:
        return "this is SVG"
    for name, beginnings in _TEXTS:
        if text.startswith(beginnings):
            return f"this is {name}"
    return f"they begin with {data[:8].hex(' ')}"


def _stored_size(data: bytes, photo_format: PhotoFormat, limits: PictureLimits) -> tuple[int, int]:
    try:
        return _read(data, photo_format, lambda opened: opened.size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise PictureTooLarge(
            f"the picture is far too large once unpacked; at most {limits.pixels_max} pixels are allowed"
        ) from fault
    except (MemoryError, PictureRefused):
        raise
    except Exception as fault:
        raise PictureRefused(f"the {photo_format} picture's header can't be read") from fault


def _loaded(opened: Image.Image, photo: Photo) -> Image.Image:
    """A file's pixels, and which of them are transparent. Around a GIF's first frame all are: nothing is drawn there,
    and Pillow has its first colour."""
    frame = opened.tile[0].extents if isinstance(opened, GifImagePlugin.GifImageFile) else None
    opened.load()
    if photo.format == "png":
        _scale_transparent_level(opened, bits=photo.data[_PNG_BITS_AT])
    if frame in (None, (0, 0, *opened.size)):
        return opened
    alone = Image.new("RGBA", opened.size)
    alone.paste(opened.convert("RGBA").crop(frame), frame)
    return alone


def _scale_transparent_level(picture: Image.Image, *, bits: int) -> None:
    """Pillow brings a PNG's pixels to 8 bits a channel, but leaves the level that is transparent as the file has it."""
    level = picture.info.get("transparency")
    if isinstance(level, int) and picture.mode == "L":
        picture.info["transparency"] = level * 255 // (2**bits - 1)
    elif isinstance(level, tuple) and bits == 16:
        picture.info["transparency"] = tuple(channel >> 8 for channel in level)
