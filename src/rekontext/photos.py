"""A photo as a viewer shows it: upright, in sRGB, on white. For both halves; knows neither, and no file formats."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

from PIL import Image, ImageChops, ImageCms, ImageMath

from rekontext.contract import EditRefused

PROFILE_BYTES_MAX: Final = 4 * 2**20
"""A colour profile that is larger is left out of account."""
_ROUNDING: Final = 2
"""By how many levels of 255 a conversion from sRGB to sRGB may be off."""
_EXIF_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS: Final = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))


def seen(photo: Image.Image) -> Image.Image:
    """The photo, read whole, as a viewer shows it.

    Raises:
        EditRefused: it can't be read.
    """
    try:
        photo.load()
        return flat_rgb(upright(photo))
    except Exception as error:  # each format fails in ways of its own
        raise EditRefused(f"photo can't be read: {error}") from error


def upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF says."""
    method = _turn(picture)
    if method is None:
        return picture
    turned = picture.transpose(method)
    turned.info = picture.info  # profile and transparency still hold; transpose drops them for some formats
    return turned


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as its EXIF says."""
    width, height = picture.size
    return (height, width) if _turn(picture) in _SIDEWAYS else (width, height)


def flat_rgb(picture: Image.Image) -> Image.Image:
    """In sRGB, transparency laid on white, 16-bit gray scaled. Doing it twice changes nothing.

    Returns:
        A plain picture of mode "RGB" without metadata; the one that was given if it is that already.
    """
    if type(picture) is Image.Image and picture.mode == "RGB" and not picture.info:
        return picture  # an opened file holds more than its `info`
    profile = picture.info.get("icc_profile")
    picture = _plain(picture)
    if not picture.has_transparency_data:
        return _to_srgb(picture if picture.mode in ("RGB", "L", "CMYK") else picture.convert("RGB"), profile)
    layered = picture.convert("RGBA")
    colours = picture.convert("L") if picture.mode in ("L", "LA") else layered.convert("RGB")  # as the profile has them
    flat = Image.new("RGB", layered.size, "white")
    flat.paste(_to_srgb(colours, profile), mask=layered.getchannel("A"))
    return flat


def opacity(picture: Image.Image) -> Image.Image:
    """How opaque its pixels are, of mode "L"."""
    picture = _plain(picture)
    if not picture.has_transparency_data:
        return Image.new("L", picture.size, 255)
    return picture.convert("RGBA").getchannel("A")


def stretch(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Flat, at a reference size: Lanczos, no crop. Doing it twice changes nothing. It is a picture of its own."""
    return flat_rgb(photo).resize(size, Image.Resampling.LANCZOS)  # a copy where it has that size


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        orientation = picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged metadata must not cost anybody a good picture
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _plain(picture: Image.Image) -> Image.Image:
    """In a mode that Pillow converts to others as it should."""
    if picture.mode.startswith("I"):  # 16-bit gray: its own conversion clips instead of scaling
        levels, transparent = picture.convert("I"), picture.info.get("transparency")
        picture = levels.point(lambda level: level * (1 / 257) + 0.5).convert("L")
        if isinstance(transparent, int):
            picture.putalpha(_where_not(levels, transparent))
    if picture.mode in ("La", "RGBa"):  # colours times opacity, which go to nothing but their plain form
        picture = picture.convert(picture.mode.upper())
    return picture


def _where_not(levels: Image.Image, level: int) -> Image.Image:
    """255 where a picture of mode "I" has another level, else 0."""
    mask: Image.Image = ImageMath.lambda_eval(
        lambda given: given["convert"]((given["levels"] != level) * 255, "L"), levels=levels
    )
    return mask


def _to_srgb(picture: Image.Image, profile_bytes: object) -> Image.Image:
    """Apply an embedded colour profile. One that is damaged or fits another colour model is left out of account."""
    if isinstance(profile_bytes, bytes) and 0 < len(profile_bytes) <= PROFILE_BYTES_MAX:
        try:
            profile, target = ImageCms.ImageCmsProfile(BytesIO(profile_bytes)), ImageCms.createProfile("sRGB")
            if picture.mode != "RGB" or not _is_like(profile, target):
                converted = ImageCms.profileToProfile(picture, profile, target, outputMode="RGB")
                if converted is not None:
                    return _bare(converted)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return _bare(picture.convert("RGB"))


def _is_like(profile: ImageCms.ImageCmsProfile, target: Any) -> bool:
    """Whether colours stay as they are, but for rounding. Names tell nothing: "sRGB" is in those of linear profiles."""
    colours = bytes(value for level in range(0, 256, 15) for value in (level, level, level))
    colours += b"\xff\0\0\0\xff\0\0\0\xff"
    probe = Image.frombytes("RGB", (len(colours) // 3, 1), colours)
    converted = ImageCms.profileToProfile(probe, profile, target, outputMode="RGB")
    return converted is not None and max(ImageChops.difference(probe, converted).tobytes()) <= _ROUNDING


def _bare(picture: Image.Image) -> Image.Image:
    picture.info = {}
    return picture
