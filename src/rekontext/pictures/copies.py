"""Objects of a store as files on this machine, for programs that read files. Of objects that are never overwritten."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

from rekontext.pictures.store import ObjectMissing, StoreUnavailable

_IN_USE_FOR_S: Final = 3600.0
"""A file that was asked for stays so long: whoever was told where it is may not have opened it yet."""
_CUT_OFF_AFTER_S: Final = 6 * 3600.0
"""Nobody writes for so long: it was a kill."""
_FREE_MAX: Final = 0.05
_UNFINISHED: Final = "unfinished-"
_COPY: Final = "copy-"
_ENDING: Final = ".safetensors"


class Store(Protocol):
    """What is asked of a store."""

    async def copy_to(self, file: Path, key: str) -> None:
        """As `PictureStore.copy_to`."""
        ...

    async def has(self, key: str) -> bool:
        """As `PictureStore.has`."""
        ...


class Unfinished:
    """A new file that is being written.

    Attributes:
        path: where it lies.
        size: how many bytes it has.
    """

    def __init__(self, path: Path, *, free_bytes_min: int) -> None:
        self.path = path
        self.size = 0
        self._free_bytes_min = free_bytes_min
        self._digest = hashlib.sha256()
        self._file = path.open("xb", buffering=0)
        # A thread goes on writing when whoever waits for it is cancelled: its handle may not be another file's by then.
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """Of what it has, hex SHA-256."""
        return self._digest.hexdigest()

    async def write(self, piece: bytes) -> None:
        """Write at its end.

        Raises:
            StoreUnavailable: the disk is full, or as full as it may be.
        """
        await asyncio.to_thread(self._write, piece)

    def _write(self, piece: bytes) -> None:
        with self._lock, _in_words_of_a_store(self.path.parent):
            if self._file.closed:
                return
            disk = shutil.disk_usage(self.path.parent)
            if disk.free < (left_free := min(self._free_bytes_min, int(disk.total * _FREE_MAX))):
                raise StoreUnavailable(
                    f"{self.path.parent} has {disk.free} bytes free, and {left_free} are left for others"
                )
            left = memoryview(piece)
            while left:
                left = left[self._file.write(left) :]
            self._digest.update(piece)
            self.size += len(piece)

    def close(self) -> None:
        """Waits for a piece that is being written."""
        with self._lock:
            self._file.close()


class LocalCopies:
    """Those of one of the store's folders. For one event loop; several processes may share the files.

    Args:
        folder: made when something is first put there.
        bytes_max: of all files; those go first that weren't asked for for longest, and none that is in use.
        free_bytes_min: so many of the disk stay free of what is written here, or `_FREE_MAX` of a small one.
    """

    def __init__(self, store: Store, folder: Path, *, bytes_max: int, free_bytes_min: int = 0) -> None:
        self._store = store
        self._folder = folder
        self._bytes_max = bytes_max
        self._free_bytes_min = free_bytes_min
        self._asked_at: dict[str, float] = {}
        self._passing: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def path(self, key: str) -> Path:
        """Where a copy of the object lies; made if there is none. Nobody writes to it.

        Raises:
            ObjectMissing: there is no such object (any more). Then there is no copy either.
            StoreUnavailable: it can't be looked at or copied.
        """
        file = self._file(key)
        if not await self._store.has(key):
            await self.forget(key)
            raise ObjectMissing(f"there is no object {key!r}")
        self._asked_at[file.name] = time.monotonic()
        # Whoever asks for one that is on its way waits for that.
        async with self._locks.setdefault(key, asyncio.Lock()):
            if not await asyncio.to_thread(file.is_file):
                async with self._name() as target:
                    await self._store.copy_to(target, key)
                    await asyncio.to_thread(self._take_in, target, file)
        return file

    @asynccontextmanager
    async def unfinished(self) -> AsyncIterator[Unfinished]:
        """A new file in the folder; unless it is adopted before the end, it is removed.

        Raises:
            StoreUnavailable: the folder can't be written.
        """
        async with self._name() as path:
            with _in_words_of_a_store(self._folder):
                file = await asyncio.to_thread(Unfinished, path, free_bytes_min=self._free_bytes_min)
            try:
                yield file
            finally:
                await asyncio.to_thread(file.close)

    async def adopt(self, file: Unfinished, key: str) -> None:
        """Take a file in that has just been stored as this object. It loses its name.

        It isn't in use by that: whoever comes to need it asks for it.
        """
        target = self._file(key)
        self._asked_at.setdefault(target.name, time.monotonic() - _IN_USE_FOR_S)
        await asyncio.to_thread(self._take_in, file.path, target)

    async def forget(self, key: str) -> None:
        """Remove the copy of an object that is gone. Who has it open keeps what is in it."""
        file = self._file(key)
        self._asked_at.pop(file.name, None)
        with _in_words_of_a_store(self._folder):
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def clear(self, folder: str) -> int:
        """Remove the copies whose objects are gone, whoever removed them. Returns how many.

        Args:
            folder: the store's, of which these are copies.
        """
        names = await asyncio.to_thread(self._names)
        self._asked_at = {name: at for name, at in self._asked_at.items() if name in names}
        removed = 0
        for name in names:
            key = f"{folder}/{name.removeprefix(_COPY).removesuffix(_ENDING)}"
            if not await self._store.has(key):
                await self.forget(key)
                removed += 1
        return removed

    def _file(self, key: str) -> Path:
        return self._folder / f"{_COPY}{key.rpartition('/')[2]}{_ENDING}"

    def _names(self) -> set[str]:
        return {file.name for file in self._folder.glob(f"{_COPY}*")}

    @asynccontextmanager
    async def _name(self) -> AsyncIterator[Path]:
        """A name in the folder for a file that is still to be written; whatever has it at the end is removed."""
        with _in_words_of_a_store(self._folder):
            target = await asyncio.to_thread(self._new_name)
        self._passing.add(target.name)
        try:
            yield target
        finally:
            self._passing.discard(target.name)
            with suppress(OSError):
                await asyncio.to_thread(target.unlink, missing_ok=True)  # a large one takes a while

    def _new_name(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        for cut_off in self._folder.glob(f"{_UNFINISHED}*"):
            with suppress(FileNotFoundError):
                # Not by its mtime: a second name of an object has that of the object.
                is_old = cut_off.stat().st_ctime < time.time() - _CUT_OFF_AFTER_S
                if is_old and cut_off.name not in self._passing:
                    cut_off.unlink()
        return self._folder / f"{_UNFINISHED}{secrets.token_hex(8)}"

    def _take_in(self, file: Path, target: Path) -> None:
        with _in_words_of_a_store(self._folder):
            file.replace(target)
            self._make_room()

    def _make_room(self) -> None:
        kept, copies = 0, []
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):  # by another process
                about = file.stat()
                kept += about.st_size
                if file.name.startswith(_COPY):
                    copies.append((self._asked_at.get(file.name, 0.0), about.st_mtime, about.st_size, file))
        now = time.monotonic()
        for asked_at, _, size, file in sorted(copies, key=lambda each: each[:2]):
            if kept <= self._bytes_max or (asked_at and asked_at > now - _IN_USE_FOR_S):
                break
            file.unlink(missing_ok=True)
            self._asked_at.pop(file.name, None)
            kept -= size


@contextmanager
def _in_words_of_a_store(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise StoreUnavailable(f"{folder} can't be written: {fault}") from fault
