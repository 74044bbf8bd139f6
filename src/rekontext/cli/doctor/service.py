"""Is there what a service keeps and asks: database, books, secret, store, the check of pictures."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rekontext.cli.doctor.finding import Finding
from rekontext.settings import Settings, variable

if TYPE_CHECKING:
    from rekontext.database import Database

_TRIED_KEY: Final = "doctor/tried"
_FAULTS_SHOWN_MAX: Final = 5


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    """The database as it is: looking changes no table.

    Raises:
        ValueError: the URL names none.
    """
    from rekontext.database import Database

    database = Database.open(settings.database, connections=1, migrate=False)
    try:
        yield database
    finally:
        database.close()


def _readers(file: Path) -> str:
    """Who can read a file besides its owner, by its mode and those of the folders on the way; "" for nobody."""
    its, folders = file.stat(), [folder.stat() for folder in file.resolve().parents]
    if its.st_mode & stat.S_IROTH and all(folder.st_mode & stat.S_IXOTH for folder in folders):
        return "every user of this machine can read it"
    enters = (folder.st_mode & (stat.S_IXGRP if folder.st_gid == its.st_gid else stat.S_IXOTH) for folder in folders)
    return "its group can read it" if its.st_mode & stat.S_IRGRP and all(enters) else ""


def look_at_database(settings: Settings) -> Finding:
    from rekontext.database import DatabaseUnavailable
    from rekontext.database.address import sqlite_file
    from rekontext.installation import unmade_database

    subject = "database"
    path = settings.database_file
    file = sqlite_file(settings.database)
    missing = unmade_database(settings)
    for place in () if file is None else (file.parent, file):
        if place.exists() and not os.access(place, os.W_OK):  # reading alone, as below, would go well
            says = f"{place} can't be written; run this as the service's user, which must be able to write there"
            return Finding(subject=subject, verdict="broken", says=says)
    if missing:
        if settings.database_url and not missing.parent.is_dir():  # only the data folder is made by a start
            says = f"there is no folder {missing.parent}; make it, or set {variable('database_url')}"
            return Finding(subject=subject, verdict="broken", says=says)
        return Finding(subject=subject, verdict="ok", says=f"SQLite, {missing} (to be made)")
    try:
        with _opened(settings) as database:
            database.check_sync()
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=f"{fault}; set {variable('database_url')}")
    except DatabaseUnavailable as fault:
        where = str(path) if settings.database_url is None else f"see {variable('database_url')}"
        return Finding(subject=subject, verdict="broken", says=f"{fault} ({where})")
    says = f"SQLite, {path}" if settings.database_url is None else f"{database.dialect} answers"
    if file is not None and (readers := _readers(file)):
        return Finding(subject=subject, verdict="note", says=f"{says}; {readers}: chmod go= {file}*")
    return Finding(subject=subject, verdict="ok", says=says)


def look_at_books(settings: Settings) -> Finding:
    """Adds up every entry of the ledger, at one moment of a service that goes on."""
    from sqlalchemy import Connection, func, inspect, select

    from rekontext.accounts import integrity
    from rekontext.database import DatabaseUnavailable, unhurried
    from rekontext.database.tables import balances, transfers
    from rekontext.installation import unmade_database

    def look(tx: Connection) -> tuple[str, list[str]]:
        if not inspect(tx).has_table(transfers.name):
            return "none yet", []
        unhurried(tx)
        accounts, booked = (
            tx.execute(select(func.count()).select_from(table)).scalar_one() for table in (balances, transfers)
        )
        return f"{booked} transfers of {accounts} accounts", integrity.faults(tx)

    subject = "books"
    if unmade_database(settings):
        return Finding(subject=subject, verdict="ok", says="none yet")
    try:
        with _opened(settings) as database:
            read, faults = database.read_sync(look)
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=str(fault))
    except DatabaseUnavailable as fault:
        return Finding(subject=subject, verdict="broken", says=f"not read: {fault}")
    if faults:
        more = len(faults) - _FAULTS_SHOWN_MAX
        shown = "; ".join(faults[:_FAULTS_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")
        says = f"{read}, in micro-dollars: {shown}; no command mends this: put back a backup that is right"
        return Finding(subject=subject, verdict="broken", says=says)
    right = "each adds up to 0, balances are what they say, what is held is what unfinished edits cost"
    return Finding(subject=subject, verdict="ok", says=read if read == "none yet" else f"{read}: {right}")


def look_at_secret(settings: Settings) -> Finding:
    """Whether it is the one under which the database's keys are hashed. Makes none: that is the first start's."""
    from sqlalchemy import Connection, inspect

    from rekontext.accounts import peppers
    from rekontext.database import DatabaseUnavailable
    from rekontext.database.tables import installation
    from rekontext.installation import has_secret, pepper_of, secret_of, unmade_database, where_secret, wrong_secret
    from rekontext.secret import FILE_NAME

    subject, where = "secret", where_secret(settings)
    is_there = has_secret(settings)
    unknown = Finding(subject=subject, verdict="ok", says=where if is_there else f"{where} (to be made)")
    if unmade_database(settings):
        return unknown

    def look(tx: Connection) -> bool | None:
        if not inspect(tx).has_table(installation.name):
            return None
        if mine is None:
            return False if peppers.is_known(tx) else None
        return peppers.fits(tx, mine)

    try:
        mine = pepper_of(secret_of(settings)) if is_there else None
        with _opened(settings) as database:
            fits = database.read_sync(look)
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=str(fault))
    except DatabaseUnavailable:
        return Finding(subject=subject, verdict="note", says=f"{where}; the database can't say whether it fits")
    if fits is None:
        return unknown
    if fits:
        if settings.secret is None and (readers := _readers(settings.data_dir / FILE_NAME)):
            says = f"{where} fits the database; {readers}: chmod go= {where}"
            return Finding(subject=subject, verdict="note", says=says)
        return Finding(subject=subject, verdict="ok", says=f"{where} fits the database")
    return Finding(subject=subject, verdict="broken", says=str(wrong_secret(settings)))


def look_at_rate_limits(settings: Settings) -> Finding:
    from rekontext.accounts import RequestLimiter
    from rekontext.accounts.limits import CountsNotShared
    from rekontext.sources import SystemClock

    async def check() -> None:
        limiter = RequestLimiter(clock=SystemClock(), storage=settings.rate_limits_url)
        try:
            await limiter.check()
        finally:
            await limiter.close()

    subject, name = "rate limits", variable("rate_limits_url")
    try:
        asyncio.run(check())
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=f"{fault}; set {name}")
    except CountsNotShared as fault:
        says = f"{fault}; until it does, each process counts by itself; see {name}"
        return Finding(subject=subject, verdict="note", says=says)
    where = "memory" if settings.rate_limits_url == "memory://" else "Redis"
    return Finding(subject=subject, verdict="ok", says=f"counted in {where}")


def look_at_safety(settings: Settings) -> Finding:
    """Shows the check a gray picture."""
    from PIL import Image

    from rekontext.assembly import safety_of
    from rekontext.pictures import MEDIA_TYPES, encode
    from rekontext.safety import PictureWithheld, SafetyUnavailable

    subject, check = "safety check", safety_of(settings)
    if check is None:
        return Finding(
            subject=subject, verdict="ok", says=f"none: pictures go out as they are; see {variable('safety_url')}"
        )

    async def try_it() -> None:
        gray = encode(Image.new("RGB", (64, 64), (128, 128, 128)), "png")
        async with check:
            await check.clear(gray, content_type=MEDIA_TYPES["png"], prompt="gray", request_id="doctor", pauses_s=())

    try:
        asyncio.run(try_it())
    except PictureWithheld as refusal:
        return Finding(subject=subject, verdict="note", says=f"it answers, but lets no gray picture out: {refusal}")
    except SafetyUnavailable as fault:
        return Finding(
            subject=subject, verdict="broken", says=f"{fault}: no edit would be done; see {variable('safety_url')}"
        )
    return Finding(subject=subject, verdict="ok", says="it answers")


def look_at_store(settings: Settings) -> Finding:
    """Writes a small object and removes it, as the service will."""
    from rekontext.pictures import open_store

    async def try_it() -> None:
        store = open_store(settings.store)
        await store.put(_TRIED_KEY, b"rekontext doctor was here", content_type="text/plain")
        await store.get(_TRIED_KEY)
        await store.delete(_TRIED_KEY)

    subject, folder = "store", settings.data_dir.absolute() / "store"
    if settings.store_url is None and not folder.exists():  # made by the first start; the disk's finding says if it can
        return Finding(subject=subject, verdict="ok", says=f"{folder} (to be made)")
    where = "" if settings.store_url else f"{folder}: "
    try:
        asyncio.run(try_it())
    except Exception as fault:  # each store fails in ways of its own
        why = str(fault).strip().partition("\n")[0] or type(fault).__name__
        if settings.store_url:
            todo = f"see {variable('store_url')} and the store's credentials"
        else:
            todo = "make room there" if os.strerror(errno.ENOSPC) in why else "let this user write there"
        return Finding(subject=subject, verdict="broken", says=f"{where}{why}; {todo}")
    return Finding(subject=subject, verdict="ok", says=f"{where}an object can be written, read and removed")
