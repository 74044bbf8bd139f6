"""Objects of a store as files on this machine, for programs that read files. Of objects that are never overwritten."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

_IN_USE_FOR_S: Final = 3600.0
"""A file that was asked for stays so long: whoever was told where it is may not have opened it yet."""
_CUT_OFF_AFTER_S: Final = 6 * 3600.0
"""Nobody writes for so long: it was a kill."""
_UNFINISHED: Final = "unfinished-"


class Store(Protocol):
    """What is asked of a store."""

    async def copy_to(self, file: Path, key: str) -> None:
        """As `PictureStore.copy_to`."""
        ...


class LocalCopies:
    """Those of one of the store's folders. For one event loop; several processes may share the files.

    Args:
        folder: made when something is first put there.
        bytes_max: of all files; those go first that weren't asked for for longest, and none that is in use.
    """

    def __init__(self, store: Store, folder: Path, *, bytes_max: int) -> None:
        self._store = store
        self._folder = folder
        self._bytes_max = bytes_max
        self._asked_at: dict[str, float] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def path(self, key: str) -> Path:
        """Where a copy of the object lies; made if there is none. Nobody writes to it.

        Raises:
            ObjectMissing: there is no such object, and no copy.
            StoreUnavailable, OSError: it can't be copied.
        """
        file = self._file(key)
        self._asked_at[file.name] = time.monotonic()
        # Whoever asks for one that is on its way waits for that.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if not await asyncio.to_thread(file.is_file):
                async with self.unfinished() as target:
                    await self._store.copy_to(target, key)
                    await asyncio.to_thread(self._take_in, target, file)
        return file

    @asynccontextmanager
    async def unfinished(self) -> AsyncIterator[Path]:
        """A name in the folder for a file that is still to be written; whatever has it at the end is removed."""
        target = await asyncio.to_thread(self._new_name)
        try:
            yield target
        finally:
            with suppress(OSError):
                target.unlink(missing_ok=True)

    async def adopt(self, file: Path, key: str) -> None:
        """Take a file in that has just been stored as this object. It loses its name."""
        target = self._file(key)
        self._asked_at[target.name] = time.monotonic()
        await asyncio.to_thread(self._take_in, file, target)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key.rpartition('/')[2]}.safetensors"

    def _new_name(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        for cut_off in self._folder.glob(f"{_UNFINISHED}*"):
            with suppress(FileNotFoundError):
                if cut_off.stat().st_mtime < time.time() - _CUT_OFF_AFTER_S:
                    cut_off.unlink()
        return Path(tempfile.mktemp(prefix=_UNFINISHED, dir=self._folder))  # noqa: S306 - the folder is ours alone

    def _take_in(self, file: Path, target: Path) -> None:
        file.replace(target)
        found = []
        for other in self._folder.iterdir():
            with suppress(FileNotFoundError):  # by another process
                about = other.stat()
                found.append((self._asked_at.get(other.name, 0.0), about.st_mtime, about.st_size, other))
        kept, now = sum(size for _, _, size, _ in found), time.monotonic()
        for asked_at, _, size, other in sorted(found, key=lambda each: each[:2]):
            if kept <= self._bytes_max or (asked_at and asked_at > now - _IN_USE_FOR_S):
                break
            other.unlink(missing_ok=True)
            self._asked_at.pop(other.name, None)
            kept -= size
