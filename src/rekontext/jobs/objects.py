"""What jobs need of an object store. `pictures/store.py` has one for folders and clouds; tests may bring their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final, Protocol

import structlog

from rekontext.database import JobId
from rekontext.pictures.store import StoredObject

_log = structlog.get_logger(__name__)

INPUTS_FOLDER: Final = "inputs"
MASKS_FOLDER: Final = "masks"
ASSETS_FOLDER: Final = "assets"
OUTPUTS_FOLDER: Final = "outputs"


class Objects(Protocol):
    """Bytes under names, written whole or not at all."""

    async def put(self, key: str, data: bytes, *, content_type: str, is_first: bool = False) -> None:
        """Write an object, replacing what was there.

        Args:
            is_first: replace nothing.

        Raises:
            ObjectExists: there is one that `is_first` would have replaced.
        """
        ...

    async def has(self, key: str) -> bool:
        """Whether there is an object."""
        ...

    async def get(self, key: str) -> bytes:
        """Read an object whole.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove an object. Removing what isn't there is not an error."""
        ...

    def list(self, folder: str) -> AsyncIterator[StoredObject]:
        """Every object whose key starts with `folder` and a slash."""
        ...

    async def clear_cut_off(self, folder: str, *, before: datetime, at_most: int) -> int:
        """Remove what kills cut off while it was written, `before` or earlier. Returns how many."""
        ...


async def clear_away(objects: Objects, *keys: str) -> None:
    """Remove what belongs to nobody. A failure is only logged: the sweeper comes by, and whoever asks has another."""
    for key in keys:
        try:
            await objects.delete(key)
        except Exception as fault:
            _log.warning("object_left_behind", key=key, fault=str(fault))


def input_key(job: JobId) -> str:
    """Where a job's input picture lies."""
    return f"{INPUTS_FOLDER}/{job}"


def mask_key(job: JobId) -> str:
    """Where a job's mask lies."""
    return f"{MASKS_FOLDER}/{job}"


def asset_key(asset: str) -> str:
    """Where an uploaded file's bytes lie."""
    return f"{ASSETS_FOLDER}/{asset}"


def output_folder(job: JobId) -> str:
    """Under which all that a job's attempts made lies."""
    return f"{OUTPUTS_FOLDER}/{job}"


def output_key(job: JobId, attempt: int, file_name: str) -> str:
    """Where one attempt puts one picture: two attempts never write to the same place."""
    return f"{output_folder(job)}/{attempt}/{file_name}"
