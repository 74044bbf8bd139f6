"""An `input_image` in any of its forms -> a checked `Photo`.

Forms: http(s) URL, data URI, bare base64 (white space and the URL-safe alphabet welcome, padding optional), or the
raw bytes of an uploaded file. Knows nothing of HTTP requests or JSON.
"""

from __future__ import annotations

import binascii
from collections.abc import Awaitable, Callable, Hashable
from typing import Final
from urllib.parse import unquote_to_bytes

from rekontext.pictures.decode import Photo, PictureLimits, inspect
from rekontext.pictures.fetch import Fetcher
from rekontext.pictures.refused import PictureRefused, PictureTooLarge
from rekontext.pictures.threads import CodecThreads

_FORMS: Final = "an http(s) URL, a data URI or the base64 of a jpeg, png, gif or webp file"
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE: Final = b" \t\r\n\v\f"
_INLINE_BYTES_MAX: Final = 2**16
"""Up to here decoding on the event loop is cheaper than a thread hop."""


Shortcut = Callable[[str], Awaitable[bytes | None]]
"""Reads a URL without fetching it, or returns None for one that must be fetched. Raises `PictureRefused`."""


class PhotoReader:
    """Reads pictures from whatever a caller may send, within `limits`."""

    def __init__(self, *, limits: PictureLimits, fetcher: Fetcher, threads: CodecThreads) -> None:
        self._limits = limits
        self._fetcher = fetcher
        self._threads = threads

    async def read(self, source: str | bytes, *, caller: Hashable = None, shortcut: Shortcut | None = None) -> Photo:
        """Fetch or decode, then check the header.

        Args:
            caller: for whom; one caller's fetches don't hold up another's.
            shortcut: for URLs that lead back to this server.

        Raises:
            PictureRefused: or one of its kinds; the message is a sentence for the caller.
        """
        if isinstance(source, str):
            text = source.strip()
            if is_url(text):
                own = None if shortcut is None else await shortcut(text)
                if own is None:
                    own = await self._fetcher.fetch(text, bytes_max=self._limits.bytes_max, caller=caller)
                source = own
            elif len(text) <= _INLINE_BYTES_MAX:
                source = bytes_from_text(text, self._limits)
            else:
                source = await self._threads.run(bytes_from_text, text, self._limits)
        return await self._threads.run(inspect, source, self._limits)


def is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def bytes_from_text(text: str, limits: PictureLimits) -> bytes:
    """The bytes in a data URI or in bare base64.

    Raises:
        PictureTooLarge: more than `limits.bytes_max` bytes.
        PictureRefused: neither form.
    """
    if text[:5].lower() == "data:":
        header, comma, payload = text.partition(",")
        if not comma:
            raise PictureRefused('the data URI has no "," between its type and its data')
        if "".join(header.lower().split()).endswith(";base64"):
            # A percent sign can't be base64: such a payload was escaped for use inside a URL.
            plain = unquote_to_bytes(payload) if "%" in payload else _ascii(payload)
            return _from_base64(plain, limits)
        return unquote_to_bytes(payload)
    if not text:
        raise PictureRefused(f"the text is empty; send {_FORMS}")
    if "://" in text[:64]:
        raise PictureRefused(f'"{text[:64]}" has a scheme that is not fetched; send {_FORMS}')
    return _from_base64(_ascii(text), limits)


def _ascii(text: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as fault:
        raise PictureRefused(f'"{text[:40]}" is not base64; send {_FORMS}') from fault


def _from_base64(encoded: bytes, limits: PictureLimits) -> bytes:
    digits = encoded.translate(_URL_SAFE, delete=_WHITE_SPACE).rstrip(b"=")
    size = len(digits) * 3 // 4
    if size > limits.bytes_max:
        raise PictureTooLarge(f"the picture has {size} bytes; at most {limits.bytes_max} are allowed")
    try:
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
    except binascii.Error as fault:
        start = encoded[:40].decode("ascii", "replace")
        raise PictureRefused(f'"{start}" is not base64 ({fault}); send {_FORMS}') from fault
