"""RGB pixels -> png, jpg or webp bytes that say where they come from, masks -> png. Synchronous: for threads, not the
event loop.
"""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Final, Literal, get_args

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

OutputFormat = Literal["webp", "jpg", "png"]
OUTPUT_FORMATS: Final[tuple[OutputFormat, ...]] = get_args(OutputFormat)
QUALITY_MIN: Final = 0
QUALITY_MAX: Final = 100
QUALITY_DEFAULT: Final = 90
MEDIA_TYPES: Final[dict[OutputFormat, str]] = {"webp": "image/webp", "jpg": "image/jpeg", "png": "image/png"}

# https://cv.iptc.org/newscodes/digitalsourcetype/: "edited using generative AI". In XMP, which all three formats carry.
_SOURCE: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def encode(picture: Image, output_format: OutputFormat, quality: int = QUALITY_DEFAULT) -> bytes:
    """Encode one RGB picture that a model made. The file says so, for programs that look.

    Args:
        quality: `QUALITY_MIN`..`QUALITY_MAX` for jpg and webp; png is lossless and takes no notice of it.
    """
    assert QUALITY_MIN <= quality <= QUALITY_MAX, f"quality {quality} was not checked"
    target = BytesIO()
    # `save` leaves its options on the Image it is given, where another thread's `save` of it would find them.
    own = picture.copy()
    match output_format:
        case "png":
            source = PngInfo()
            source.add_itxt("XML:com.adobe.xmp", _SOURCE)
            # Run-length matching at level 1: a third of the default's time for the same size on photos.
            own.save(target, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=source)
        case "jpg":
            own.save(target, "JPEG", quality=max(quality, 1), xmp=_SOURCE.encode())  # to Pillow 0 means its own default
        case "webp":
            own.save(target, "WEBP", quality=quality, xmp=_SOURCE.encode())
    return target.getvalue()


def encode_mask(mask: Image) -> bytes:
    """Encode a mask, as png, of which nothing gets lost."""
    target = BytesIO()
    mask.copy().save(target, "PNG")
    return target.getvalue()
