"""A SQLite database and its copies: one is made while a service writes, and put back while none has it open.

What SQLite wrote last is in `-wal`, beside the file. The two belong together: an older file with a newer `-wal`
beside it is damaged, or has again what came after it. Knows no tables.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_COMPANIONS: Final = ("-wal", "-shm", "-journal")
# SQLite's own locks: every connection has a part of these bytes (https://www.sqlite.org/fileformat2.html#lockbyte).
_LOCK_OFFSET: Final = 0x4000_0000
_LOCK_BYTES: Final = 512


class CopyRefused(ValueError):
    """A file that was named can't be the one that is meant; nothing was changed. The message says why."""


class CopyFailed(RuntimeError):
    """The copy can't be made or put back for now; nothing was changed. The message says why."""


def back_up(file: Path, to: Path) -> None:
    """Write the database's state of this moment into the one new file `to`, readable by its owner only.

    Services may go on writing meanwhile. On a large database the look for damage takes seconds.

    Raises:
        CopyRefused: there is no database, or `to` is there already.
        CopyFailed: one of them can't be read or written, or the database is damaged.
        PermissionError: this user may not look whether there is a database.
    """
    if not file.is_file():
        raise CopyRefused(f"there is no database {file}")
    _copy(file, to)
    # A copy has the damage too. Taken for good, it would in time take the place of the last one that is.
    try:
        if damage := _damage(to):
            raise CopyFailed(f"{file} is damaged ({damage}), so there is no new copy: keep the earlier ones")
    except BaseException:
        _remove(to)
        raise


def put_back(copy: Path, file: Path, *, check: Callable[[Path], None], now: datetime) -> Path | None:
    """Make `copy` the database. What was there is moved into a new folder beside it, with all that belongs to it.

    Looks for connections of other processes only: this one must have none.

    Args:
        check: is given a file like `copy`, and raises if that must not become the database.

    Returns:
        The folder; None if nothing was there.

    Raises:
        CopyRefused: there is no such copy.
        CopyFailed: a process has the database open, or one of the files can't be read or written.
        PermissionError: this user may not look whether there is such a copy.
    """
    if not copy.is_file():
        raise CopyRefused(f"there is no file {copy}")
    new = file.with_name(f"{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove(new)  # of an attempt that was killed
    except OSError as fault:
        raise CopyFailed(f"{file.parent} can't be written: {fault.strerror}") from fault
    _copy(copy, new)
    try:
        check(new)
        with _nobody_has(file):
            folder = _move_away(file, now)
            new.rename(file)
            _sync(file.parent)
    except OSError as fault:
        raise CopyFailed(f"{file} can't be replaced: {fault.strerror}") from fault
    finally:
        _remove(new)
    return folder


def _copy(source: Path, to: Path) -> None:
    try:
        os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as fault:
        raise CopyRefused(f"{to} is there already; give the name of a new file") from fault
    except OSError as fault:
        raise CopyFailed(f"{to} can't be written: {fault.strerror}") from fault
    try:
        with closing(_connect(source)) as old, closing(_connect(to)) as new:
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")  # the copy is this one file, nothing beside it
        _sync(to)
        _sync(to.absolute().parent)
    except (sqlite3.Error, OSError) as fault:
        _remove(to)
        raise CopyFailed(f"{source} can't be copied to {to}: {fault}") from fault
    except BaseException:
        _remove(to)
        raise


def _damage(copy: Path) -> str | None:
    """What SQLite finds wrong with a file, on one line; None if nothing."""
    try:
        with closing(_connect(copy)) as connection:
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as fault:
        return str(fault)
    return None if found == "ok" else " ".join(found.split())


def _connect(file: Path) -> sqlite3.Connection:
    """A connection to a file that is there; one that isn't is never made."""
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=10)


@contextmanager
def _nobody_has(file: Path) -> Iterator[None]:
    """Keep SQLite, in every other process, from opening the file.

    Raises:
        CopyFailed: one has it open.
    """
    try:
        handle = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCK_BYTES, _LOCK_OFFSET)
    except OSError as fault:
        os.close(handle)
        if fault.errno in (errno.EACCES, errno.EAGAIN):
            raise CopyFailed(f"{file} is in use: stop every server and command that has it open first") from fault
        raise
    try:
        yield
    finally:
        os.close(handle)


def _move_away(file: Path, now: datetime) -> Path | None:
    # What belongs to the file goes first: a kill in between must not leave it to the copy.
    found = [path for path in (*_companions(file), file) if path.exists()]
    if not found:
        return None
    folder = file.with_name(f"replaced-{now.astimezone(UTC):%Y-%m-%dT%H-%M-%S-%f}")
    folder.mkdir(mode=0o700)
    for path in found:
        path.rename(folder / path.name)
    return folder


def _companions(file: Path) -> tuple[Path, ...]:
    return tuple(file.with_name(file.name + ending) for ending in _COMPANIONS)


def _remove(file: Path) -> None:
    for path in (*_companions(file), file):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Of a folder: the names in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
