"""A store that remembers what it has just written, since that is what is read next.

An edit reads its input right after it was stored, and a waiting client its output: from memory, that saves a trip to
the disk or the cloud each time. For stores whose keys are written once. Knows nothing of what the objects are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import datetime

from rekontext.pictures.store import PictureStore, StoredObject


class RecentStore:
    """`PictureStore` with a memory of at most `bytes_max` bytes; the oldest are forgotten first. For one event loop.

    Args:
        besides: a folder whose objects are not remembered, since other processes remove them.
    """

    def __init__(self, store: PictureStore, *, bytes_max: int, besides: str) -> None:
        self._store = store
        self._besides = f"{besides}/"
        self._bytes_max = bytes_max
        self._bytes = 0
        self._recent: OrderedDict[str, bytes] = OrderedDict()

    async def put(self, key: str, data: bytes, *, content_type: str, is_first: bool = False) -> None:
        """As `PictureStore.put`."""
        if not is_first:
            self._forget(key)
        await self._store.put(key, data, content_type=content_type, is_first=is_first)
        if not key.startswith(self._besides):
            self._remember(key, data)

    async def has(self, key: str) -> bool:
        """As `PictureStore.has`."""
        return await self._store.has(key)

    async def get(self, key: str) -> bytes:
        """As `PictureStore.get`."""
        recent = self._recent.get(key)
        return await self._store.get(key) if recent is None else recent

    async def delete(self, key: str) -> None:
        """As `PictureStore.delete`."""
        self._forget(key)
        await self._store.delete(key)

    def list(self, folder: str) -> AsyncIterator[StoredObject]:
        """As `PictureStore.list`."""
        return self._store.list(folder)

    async def clear_cut_off(self, folder: str, *, before: datetime, at_most: int) -> int:
        """As `PictureStore.clear_cut_off`."""
        return await self._store.clear_cut_off(folder, before=before, at_most=at_most)

    def _remember(self, key: str, data: bytes) -> None:
        self._forget(key)
        self._recent[key] = data
        self._bytes += len(data)
        while self._bytes > self._bytes_max:
            _, oldest = self._recent.popitem(last=False)
            self._bytes -= len(oldest)

    def _forget(self, key: str) -> None:
        forgotten = self._recent.pop(key, None)
        if forgotten is not None:
            self._bytes -= len(forgotten)
