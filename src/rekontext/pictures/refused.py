"""Why a picture was not taken: the caller's faults, each with a stable code.

Knows nothing of HTTP: the wire decides which status a code gets.
"""

from __future__ import annotations

from typing import ClassVar


class PictureRefused(ValueError):
    """The bytes are no picture that can be edited. The message is one sentence for the caller."""

    code: ClassVar[str] = "unreadable_picture"


class PictureTooLarge(PictureRefused):
    """More bytes or pixels than the limits allow."""

    code: ClassVar[str] = "picture_too_large"


class PictureUnreachable(PictureRefused):
    """The URL could not be fetched, or may not be."""

    code: ClassVar[str] = "unreachable_picture"
