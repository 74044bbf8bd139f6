"""Bytes <-> pixels: fetch, sniff, decode, bound, encode. Knows nothing of users, models or HTTP requests."""

from rekontext.pictures.decode import (
    PIXELS_MAX,
    Marks,
    Photo,
    PhotoFormat,
    PictureLimits,
    decode,
    decode_mask,
    inspect,
    shown_size,
    sniff,
)
from rekontext.pictures.encode import (
    MEDIA_TYPES,
    OUTPUT_FORMATS,
    QUALITY_DEFAULT,
    QUALITY_MAX,
    QUALITY_MIN,
    OutputFormat,
    encode,
    encode_mask,
)
from rekontext.pictures.fetch import Fetcher, shown_address
from rekontext.pictures.refused import PictureRefused, PictureTooLarge, PictureUnreachable
from rekontext.pictures.source import PhotoReader, Shortcut, is_url
from rekontext.pictures.store import (
    LinkRefused,
    LinkSigner,
    ObjectExists,
    ObjectMissing,
    PictureStore,
    StoredObject,
    StoreUnavailable,
    open_store,
)
from rekontext.pictures.threads import CodecThreads

__all__ = [
    "MEDIA_TYPES",
    "OUTPUT_FORMATS",
    "PIXELS_MAX",
    "QUALITY_DEFAULT",
    "QUALITY_MAX",
    "QUALITY_MIN",
    "CodecThreads",
    "Fetcher",
    "LinkRefused",
    "LinkSigner",
    "Marks",
    "ObjectExists",
    "ObjectMissing",
    "OutputFormat",
    "Photo",
    "PhotoFormat",
    "PhotoReader",
    "PictureLimits",
    "PictureRefused",
    "PictureStore",
    "PictureTooLarge",
    "PictureUnreachable",
    "Shortcut",
    "StoreUnavailable",
    "StoredObject",
    "decode",
    "decode_mask",
    "encode",
    "encode_mask",
    "inspect",
    "is_url",
    "open_store",
    "shown_address",
    "shown_size",
    "sniff",
]
