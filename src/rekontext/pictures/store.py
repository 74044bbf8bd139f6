"""Pictures at rest: a local folder, S3, Google or Azure storage behind one small class, by URL.

Also the links that open one object for a while without a key: wherever it lies, we sign them (`LinkSigner`), and the
wire checks them and reads the object. Knows nothing of jobs or accounts.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import hmac
import os
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

SECRET_BYTES_MIN: Final = 16
_SIGNATURE_BYTES: Final = 24
_CUT_OFF: Final = re.compile(r"#\d+")
"""How the name ends under which a file is written before it has its own. The library takes no such key."""
_DISK: Final = ThreadPoolExecutor(4, thread_name_prefix="store")
"""Waits for local disks, which may stall: nothing else waits with it."""
_RETRIED_FOR: Final = timedelta(seconds=15)  # not the library's three minutes: somebody waits for the answer


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    bytes: int
    written_at: datetime


class ObjectMissing(LookupError):
    """No object has this key (any more)."""


class ObjectExists(Exception):
    """An object has this key already."""


class StoreUnavailable(RuntimeError):
    """The store is full, can't be reached, or refuses us. The message is for the log: it may name folders and hosts."""


class LinkRefused(Exception):
    """The link opens nothing: forged, or its time is over."""


class PictureStore:
    """Bytes under names, written whole or not at all. Usable from any event loop.

    Made by `open_store`. Whatever is asked of it may raise `StoreUnavailable`.
    """

    def __init__(self, store: Any, *, folder: Path | None) -> None:
        self._store = store
        self._folder = folder  # None for a cloud

    async def put(self, key: str, data: bytes, *, content_type: str, is_first: bool = False) -> None:
        """Write an object, replacing what was there. In a folder, too, it then outlives the machine's end.

        Args:
            is_first: replace nothing.

        Raises:
            ObjectExists: there is one that `is_first` would have replaced.
        """
        mode: Literal["create", "overwrite"] = "create" if is_first else "overwrite"
        with _in_our_words("write", key):
            try:
                if self._folder is None:
                    kind = {"Content-Type": content_type}
                    await obstore.put_async(self._store, key, data, attributes=kind, mode=mode)
                else:  # which has no place for the type
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(_DISK, _write_to_disk, self._store, self._folder, key, data, mode)
            except AlreadyExistsError as error:
                raise ObjectExists(f"there is an object {key!r}") from error

    async def has(self, key: str) -> bool:
        """Whether there is an object."""
        with _in_our_words("look at", key):
            try:
                await obstore.head_async(self._store, key)
            except FileNotFoundError:
                return False
        return True

    async def get(self, key: str) -> bytes:
        """Read an object whole.

        Raises:
            ObjectMissing: there is none.
        """
        with _in_our_words("read", key):
            try:
                found = await obstore.get_async(self._store, key)
                return bytes(await found.bytes_async())
            except FileNotFoundError as error:
                raise ObjectMissing(f"there is no object {key!r}") from error

    async def delete(self, key: str) -> None:
        """Remove an object. Removing what isn't there is not an error."""
        with _in_our_words("remove", key), suppress(FileNotFoundError):
            await obstore.delete_async(self._store, key)

    async def list(self, folder: str) -> AsyncIterator[StoredObject]:
        """Every object whose key starts with `folder` and a slash, in no order."""
        batches = obstore.list(self._store, prefix=folder).__aiter__()
        while True:
            with _in_our_words("list", folder):
                batch = await anext(batches, None)
            if batch is None:
                return
            for found in batch:
                yield StoredObject(key=found["path"], bytes=found["size"], written_at=found["last_modified"])

    async def clear_cut_off(self, folder: str, *, before: datetime, at_most: int) -> int:
        """Remove what kills cut off while it was written, `before` or earlier. Returns how many.

        No listing shows it. Only in a local folder: a cloud has rules of its own for uploads that weren't completed.
        """
        if self._folder is None:
            return 0
        with _in_our_words("clear", folder):
            return await asyncio.to_thread(_clear_cut_off, self._folder, folder, before, at_most)


def _write_to_disk(store: Any, root: Path, key: str, data: bytes, mode: Literal["create", "overwrite"]) -> None:
    """Return once the object, its name and the folders above it are on the disk: the library leaves that open.

    A folder that was there may have been made a moment ago, by whoever is about to sync it as well: so all are synced.
    """
    obstore.put(store, key, data, mode=mode)
    file = root / key
    try:
        for path in (file, *(root / folder for folder in Path(key).parents)):  # each has its name in the one after it
            _sync(path, is_folder=path != file)
    except OSError:
        with suppress(OSError):
            file.unlink()  # whole or not at all
        raise


def _sync(path: Path, *, is_folder: bool) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as fault:
        if not (is_folder and fault.errno == errno.EINVAL):  # not every file system can do it with a folder
            raise
    finally:
        os.close(handle)


def _clear_cut_off(root: Path, folder: str, before: datetime, at_most: int) -> int:
    """As `PictureStore.clear_cut_off`; what can't be removed counts, and is raised when all else is done."""
    fault: OSError | None = None
    tried = 0
    for path in _cut_off(root / folder, before):
        if tried == at_most:
            break
        tried += 1
        try:
            path.unlink()
        except FileNotFoundError:
            continue  # by another process
        except OSError as error:
            fault = fault or error
            continue
        with suppress(OSError):  # it has others: then they stay
            for made_for_it in path.relative_to(root).parents[:-2]:
                (root / made_for_it).rmdir()
    if fault is not None:
        raise fault
    return tried


def _cut_off(folder: Path, before: datetime) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if _CUT_OFF.fullmatch(name[name.rfind("#") :]) is None:
                continue
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                if datetime.fromtimestamp(path.lstat().st_mtime, UTC) <= before:
                    yield path


@contextmanager
def _in_our_words(what: str, key: str) -> Iterator[None]:
    """Raise `StoreUnavailable` for whatever keeps the store from doing `what`; its library has no one error for it."""
    try:
        yield
    except (BaseError, OSError) as fault:
        why = str(fault).strip().partition("\n")[0] or type(fault).__name__  # the lines below it are the library's own
        raise StoreUnavailable(f"the store could not {what} {key!r}: {why}") from fault


def open_store(url: str) -> PictureStore:
    """Open the store at `url`: `file:///folder` (made if it isn't there), `s3://bucket/prefix`, `gs://...`, `az://...`.

    A cloud's endpoint, region and credentials the library takes from where that cloud's own tools look for them.

    Raises:
        ValueError: the URL names no store, or the folder can't be made.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(f"object store {url!r} is no URL; allowed: file:///FOLDER, s3://BUCKET, gs://BUCKET, az://BOX")
    if scheme == "file":
        folder = Path(rest)
        if not folder.is_absolute():
            raise ValueError(f"object store {url!r} must name an absolute folder: file:///FOLDER")
        try:
            return PictureStore(LocalStore(folder, mkdir=True, automatic_cleanup=True), folder=folder)
        except Exception as error:
            raise ValueError(f"object store {url!r} can't be opened: {error}") from error
    try:
        return PictureStore(from_url(url, retry_config={"retry_timeout": _RETRIED_FOR}), folder=None)
    except Exception as error:
        raise ValueError(f"object store {url!r} can't be opened: {error}") from error


class LinkSigner:
    """Signs links to objects and checks them: a key, a moment until which it opens, an HMAC-SHA256 over both."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise ValueError(f"a secret of {len(secret)} bytes is too short to sign links; at least {SECRET_BYTES_MIN}")
        self._secret = secret

    def sign(self, key: str, *, until: datetime) -> str:
        """The relative part of a link: the key and a query, quoted, without a leading slash."""
        expires = int(until.timestamp())
        return f"{quote(key)}?expires={expires}&signature={self._signature(key, expires)}"

    def verify(self, key: str, *, expires: str, signature: str, now: datetime) -> None:
        """Return if the link is ours and its time isn't over.

        Raises:
            LinkRefused: it isn't, or it is.
        """
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12):
            raise LinkRefused("This link is not valid.")
        expected = self._signature(key, int(expires))
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise LinkRefused("This link is not valid.")
        if now.timestamp() >= int(expires):
            raise LinkRefused("This link has expired.")

    def _signature(self, key: str, expires: int) -> str:
        # The key may hold any character, so the number, which can't hold a newline, comes first.
        signed = hmac.new(self._secret, f"{expires}\n{key}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(signed[:_SIGNATURE_BYTES]).decode()
