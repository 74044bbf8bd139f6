"""Bytes of every kind become upright RGB pixels, or are refused with a sentence."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from io import BytesIO
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms

from rekontext.masks import MaskRefused
from rekontext.pictures import (
    PIXELS_MAX,
    Marks,
    PictureLimits,
    PictureRefused,
    PictureTooLarge,
    decode,
    decode_mask,
    inspect,
)
from tests.pictures.samples import encoded, gradient, photo_bytes

LIMITS: Final = PictureLimits(bytes_max=1_000_000, pixels_max=1_000_000)


def pixels(data: bytes) -> Image.Image:
    return decode(inspect(data, LIMITS))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def furthest(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel of any pixel."""
    bands = ImageChops.difference(one, other).split()
    return max(level for band in bands for level, count in enumerate(band.histogram()) if count)


@pytest.mark.parametrize(
    ("pillow_format", "options", "tolerance"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("GIF", {}, 40), ("JPEG", {"quality": 100}, 16)],
)
def test_every_format_keeps_its_pixels(pillow_format: str, options: dict[str, object], tolerance: int) -> None:
    """The four formats decode to what was drawn, lossless ones exactly."""
    photo = inspect(encoded(gradient(), pillow_format, **options), LIMITS)
    assert (photo.format, photo.width, photo.height) == (pillow_format.lower(), 24, 16)
    assert furthest(decode(photo), gradient()) <= tolerance


def test_an_animation_gives_its_first_frame() -> None:
    """A gif or webp of several frames is its first one."""
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for pillow_format in ("GIF", "WEBP"):
        data = encoded(red, pillow_format, save_all=True, append_images=[blue])
        assert furthest(pixels(data), red) <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, pillow_format: str) -> None:
    """A picture stored turned or mirrored comes out upright."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each orientation as a Transpose
    upright = gradient(32, 16)
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if pillow_format == "JPEG" else {"lossless": True}
    assert furthest(pixels(encoded(stored, pillow_format, exif=exif, **options)), upright) <= 6


def test_an_impossible_orientation_is_ignored() -> None:
    """A wrong tag costs nobody a good picture."""
    exif = Image.Exif()
    exif[0x0112] = 99
    assert furthest(pixels(encoded(gradient(), exif=exif)), gradient()) == 0


def test_transparency_is_laid_on_white() -> None:
    """What can't be seen through a picture's holes is white, not black."""
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 0, 128))
    flat = pixels(encoded(half))
    assert flat.getpixel((0, 0)) == (255, 255, 255)
    assert flat.getpixel((1, 0)) == (127, 127, 127)


def test_transparent_palettes_and_grays_are_laid_on_white() -> None:
    """Palettes with a transparent entry, gray with alpha, and gray with a transparent level."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert [pixels(encoded(palette, transparency=0)).getpixel((x, 0)) for x in (0, 1)] == [
        (255, 255, 255),
        (200, 100, 50),
    ]
    assert pixels(encoded(palette, "GIF", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert pixels(encoded(Image.new("LA", (1, 1), (40, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert pixels(encoded(Image.new("L", (1, 1), 40), transparency=40)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("bits", "colour", "row", "transparent", "seen"),
    [
        (2, 0, b"\x18", (1,), [0, 255, 170]),
        (4, 0, b"\x03\xf0", (3,), [0, 255, 255]),
        (8, 0, b"\x00\x28\x29", (40,), [0, 255, 41]),
        (16, 0, b"\x00\x00\x9c\x40\x9c\x41", (40_000,), [0, 255, 156]),
        (16, 2, bytes(6) + b"\x03\xe8\x07\xd0\x0b\xb8" + b"\x09" * 6, (1000, 2000, 3000), [0, 255, 9]),
    ],
)
def test_the_transparent_level_of_a_png_is_laid_on_white_at_every_depth(
    bits: int, colour: int, row: bytes, transparent: tuple[int, ...], seen: list[int]
) -> None:
    """Three pixels, of which the middle one has the level that is transparent."""

    png = b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, bits, colour, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
            chunk(b"IDAT", zlib.compress(b"\x00" + row)),
            chunk(b"IEND", b""),
        )
    )
    decoded = pixels(png)
    assert [decoded.getpixel((x, 0)) for x in range(3)] == [(level, level, level) for level in seen]
    assert decode_mask(inspect(png, LIMITS), "transparency").tobytes() == b"\x00\xff\x00"
    with pytest.raises(MaskRefused, match="has transparent parts"):
        decode_mask(inspect(png, LIMITS), "white")


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    """Half of 65535 is half of 255."""
    gray = Image.new("I;16", (3, 1))
    for x, level in enumerate((0, 32_896, 65_535)):
        gray.putpixel((x, 0), level)
    decoded = pixels(encoded(gray))
    assert [decoded.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    """Whatever a file stores, the engine gets RGB of the same size without metadata."""
    picture = gradient().convert(mode)
    decoded = pixels(encoded(picture, "JPEG" if mode == "CMYK" else "PNG"))
    assert (decoded.mode, decoded.size, decoded.info) == ("RGB", (24, 16), {})


def test_an_embedded_profile_is_converted_to_srgb() -> None:
    """A picture whose profile swaps the gamma is not taken as sRGB; one with an sRGB profile is left alone."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert furthest(pixels(encoded(gradient(), icc_profile=srgb)), gradient()) == 0
    lab_as_white = Image.new("L", (1, 1), 128)
    assert pixels(encoded(lab_as_white, icc_profile=srgb)).getpixel((0, 0)) == (128, 128, 128), "does not fit: ignored"
    assert furthest(pixels(encoded(gradient(), icc_profile=b"no profile")), gradient()) == 0


@pytest.mark.parametrize("name", ["line", "sRGB"])
def test_a_linear_profile_changes_the_numbers(name: str) -> None:
    """Whatever it is called: what linear files come with is often called sRGB, with more behind it."""
    wide = linear_profile(name)
    decoded = pixels(encoded(Image.new("RGB", (1, 1), (64, 64, 64)), icc_profile=wide))
    level = decoded.getpixel((0, 0))
    assert isinstance(level, tuple)
    assert 130 <= level[0] <= 145, "linear 64/255 is sRGB 137"


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_gray_profile_holds_where_a_gray_picture_is_transparent_too(mode: str) -> None:
    gray = Image.new(mode, (1, 1), 64 if mode == "L" else (64, 255))
    found = pixels(encoded(gray, icc_profile=linear_profile("gray", model=b"GRAY"))).getpixel((0, 0))
    assert isinstance(found, tuple)
    assert 130 <= found[0] <= 145


def linear_profile(named: str, *, model: bytes = b"RGB ") -> bytes:
    """sRGB's primaries with a linear curve: the built-in profile with each curve rewritten to gamma 1.0.

    Args:
        named: four letters.
        model: of colours; gray takes the red curve.
    """
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    for entry in range(132, 132 + 12 * count, 12):
        name, start = bytes(profile[entry : entry + 4]), int.from_bytes(profile[entry + 4 : entry + 8], "big")
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            linear = b"curv" + bytes(8)  # a curve of no points is the identity
            profile[start : start + 12] = linear
            profile[entry + 8 : entry + 12] = (12).to_bytes(4, "big")
        if name == b"desc":
            where = profile.find("sRGB".encode("utf-16-be"), start)
            profile[where : where + 8] = named.encode("utf-16-be")
        if name == b"rTRC" and model == b"GRAY":
            profile[entry : entry + 4] = b"kTRC"
    profile[16:20] = model
    return bytes(profile)


def test_the_bytes_decide_not_the_name() -> None:
    """Formats outside the four are refused whatever they claim to be."""
    for pillow_format in ("BMP", "TIFF", "PPM", "ICO"):
        with pytest.raises(PictureRefused, match="no jpeg, png, gif or webp"):
            inspect(encoded(gradient(16, 16), pillow_format), LIMITS)


def test_no_limit_lies_beyond_pillow_s_own_guard() -> None:
    """Which would warn, or refuse in other words, where ours still let a picture in."""
    guard = Image.MAX_IMAGE_PIXELS
    assert guard is not None
    assert PictureLimits(bytes_max=1, pixels_max=PIXELS_MAX).pixels_max < guard
    with pytest.raises(ValueError, match=rf"pixels_max is {PIXELS_MAX + 1}; at most {PIXELS_MAX}"):
        PictureLimits(bytes_max=1, pixels_max=PIXELS_MAX + 1)


def test_limits_are_checked_before_unpacking() -> None:
    """Bytes and pixels over the limit are refused by name, a bomb included."""
    with pytest.raises(PictureTooLarge, match="at most 100 are"):
        inspect(photo_bytes(), PictureLimits(bytes_max=100, pixels_max=10**6))
    with pytest.raises(PictureTooLarge, match="24x16 = 384 pixels; at most 383"):
        inspect(encoded(gradient()), PictureLimits(bytes_max=10**6, pixels_max=383))
    assert inspect(encoded(gradient()), PictureLimits(bytes_max=10**6, pixels_max=384)).width == 24
    with pytest.raises(PictureTooLarge):
        inspect(encoded(Image.new("1", (20_000, 20_000))), LIMITS)


def test_around_a_gifs_first_frame_it_is_white() -> None:
    """As in browsers, which draw nothing there; its first colour would make a border that nobody drew."""
    small = Image.new("P", (20, 20), 1)
    small.putpalette([255, 0, 0, 0, 0, 255])
    data = bytearray(encoded(small, "GIF"))
    assert data[6:10] == b"\x14\0\x14\0"
    data[6:10] = b"\x28\0\x28\0"  # the canvas; the frame's own size stays
    where = data.index(b"\x2c\0\0\0\0\x14\0\x14\0")
    data[where + 1 : where + 5] = b"\x05\0\x08\0"  # at column 5, row 8
    picture = decode(inspect(bytes(data), LIMITS))
    assert picture.size == (40, 40)
    assert picture.crop((5, 8, 25, 28)).getcolors() == [(400, (0, 0, 255))]
    assert sorted(picture.getcolors() or []) == [(400, (0, 0, 255)), (1200, (255, 255, 255))]
    mask = decode_mask(inspect(bytes(data), LIMITS), "transparency")
    assert mask.crop((5, 8, 25, 28)).getcolors() == [(400, 0)]
    assert sorted(mask.getcolors() or []) == [(400, 0), (1200, 255)]
    with pytest.raises(MaskRefused, match="has transparent parts"):
        decode_mask(inspect(bytes(data), LIMITS), "white")


@pytest.mark.parametrize("marks", ["white", "transparency"])
def test_a_mark_that_is_lost_in_a_smaller_copy_is_told(marks: Marks) -> None:
    """Its maker, who sees it, must not be told that there is none."""
    mask = Image.new("L", (4096, 8))
    mask.putpixel((9, 3), 255)
    if marks == "transparency":
        opacity = ImageChops.invert(mask)
        mask = mask.convert("LA")
        mask.putalpha(opacity)
    with pytest.raises(MaskRefused, match="marks too little: nothing of it is left"):
        decode_mask(inspect(encoded(mask), LIMITS), marks)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiafheic", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a raw photo"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n\n<!Doctype HTML>", "a web page"),
        (b"\xef\xbb\xbf  <HTML lang=en>", "a web page"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg>', "SVG"),
        (b'<?xml version="1.0"?><rss>', "XML"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_what_is_often_sent_in_place_of_a_picture_is_named(start: bytes, name: str) -> None:
    """Few callers read bytes: what an iPhone makes, or where a link leads, is told by name."""
    with pytest.raises(PictureRefused, match=rf"no jpeg, png, gif or webp picture \(this is {name}\)$"):
        inspect(start, LIMITS)


_BROKEN: Final = {
    "a checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "a text's method": chunk(b"zTXt", b"x\0\5text"),
    "an empty gamma": chunk(b"gAMA", b""),
    "a text of 5 MB": chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(5 * 2**20))),
    "a profile's checksum": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"x"))[:-1] + b"?",
}


@pytest.mark.parametrize("name", _BROKEN)
@pytest.mark.parametrize("where", ["before", "after"])
def test_what_is_not_a_pngs_pixels_may_be_damaged_or_huge(name: str, where: str) -> None:
    """Every browser shows such a picture. Its orientation still holds."""
    exif = Image.Exif()
    exif[0x0112] = 6
    png = encoded(gradient(), exif=exif)
    at = 33 if where == "before" else len(png) - 12
    upright = gradient().transpose(Image.Transpose.ROTATE_270)
    assert furthest(pixels(png[:at] + _BROKEN[name] + png[at:]), upright) == 0


def test_a_large_profile_of_a_png_holds() -> None:
    """Those of scanners have a MiB and more."""
    profile = linear_profile("wide") + bytes(2 * 2**20)
    profile = len(profile).to_bytes(4, "big") + profile[4:]
    decoded = pixels(encoded(Image.new("RGB", (1, 1), (64, 64, 64)), icc_profile=profile))
    assert decoded.getpixel((0, 0)) == (137, 137, 137)


@pytest.mark.parametrize(
    ("pillow_format", "at", "part"),
    [("PNG", 33, chunk(b"abCD", b"")), ("JPEG", 2, b"\xff\xfe\0\2"), ("GIF", -1, b"\x21\xfe\1a\0")],
)
def test_a_file_of_nothing_but_parts_is_refused_at_once(pillow_format: str, at: int, part: bytes) -> None:
    """Walking through 20 MB of empty ones took half a minute, in which nobody else was served."""
    whole = encoded(gradient(), pillow_format)
    at = whole.index(b",", 13 + 3 * 256) if at < 0 else at
    data = whole[:at] + part * 200_000 + whole[at:]
    with pytest.raises(PictureRefused, match="too many parts"):
        pixels_of_any_size(data)
    few = whole[:at] + part * 1000 + whole[at:]
    assert furthest(pixels_of_any_size(few), pixels(whole)) == 0


def pixels_of_any_size(data: bytes) -> Image.Image:
    return decode(inspect(data, PictureLimits(bytes_max=10**8, pixels_max=10**6)))


@pytest.mark.parametrize("pillow_format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_cut_file_is_refused_with_a_sentence(pillow_format: str) -> None:
    """Half a file is no picture, not a picture with a gray half."""
    data = encoded(gradient(200, 200), pillow_format)
    with pytest.raises(PictureRefused, match=r"(cut off or damaged|header can't be read)$"):
        pixels(data[: len(data) // 2])


_ORIGINALS: Final = [encoded(gradient(40, 30), name) for name in ("PNG", "JPEG", "GIF", "WEBP")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(_ORIGINALS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
def test_damaged_bytes_decode_or_are_refused(original: bytes, damage: list[tuple[int, int]]) -> None:
    """Whatever a few flipped bytes do, nothing but a refusal comes out."""
    data = bytearray(original)
    for where, value in damage:
        data[where % len(data)] = value
    with suppress(PictureRefused):
        assert pixels(bytes(data)).mode == "RGB"


def test_decoding_leaves_no_file_open() -> None:
    """The pixels outlive the bytes they came from."""
    source = BytesIO(encoded(gradient()))
    picture = pixels(source.getvalue())
    source.close()
    assert picture.getpixel((0, 0)) == (0, 0, 64)
