"""What an installation keeps, by its settings: its secret and its database, opened alike by service and commands.

Knows nothing of HTTP, jobs and pictures, so that a command which needs none of them is quick.
"""

from __future__ import annotations

from pathlib import Path

from rekontext.accounts import peppers
from rekontext.database import Database, DatabaseUnavailable
from rekontext.database.address import sqlite_file
from rekontext.secret import FILE_NAME, SecretError, derive, open_secret
from rekontext.settings import Settings, variable
from rekontext.sources import random_bytes


def secret_of(settings: Settings, *, old_is_lost: bool = False) -> bytes:
    """The installation's secret, made if there is none.

    Args:
        old_is_lost: make one also beside a database whose keys were hashed under another.

    Raises:
        SecretError: it can't be read or kept, or it should be there: a database has keys that were hashed under it.
        ValueError, DatabaseUnavailable: as `open_database`.
    """
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    if not old_is_lost and not has_secret(settings) and _is_marked(settings):
        raise wrong_secret(settings)
    return open_secret(settings.data_dir, randomness=random_bytes)


def has_secret(settings: Settings) -> bool:
    """Whether there is one already."""
    return settings.secret is not None or (settings.data_dir / FILE_NAME).exists()


def _is_marked(settings: Settings) -> bool:
    if unmade_database(settings):
        return False
    database = open_database(settings)
    try:
        return database.read_sync(peppers.is_known)
    finally:
        database.close()


def where_secret(settings: Settings) -> str:
    """Which variable or file has it."""
    return variable("secret") if settings.secret is not None else str(settings.data_dir / FILE_NAME)


def wrong_secret(settings: Settings) -> SecretError:
    """The database's keys were hashed under a secret that these settings don't have: what to do."""
    where = where_secret(settings)
    whose = f"another secret than {where}" if has_secret(settings) else f"a secret, and {where} is not there"
    return SecretError(
        f"the API keys in the database were hashed under {whose}: every key would be refused. Put the old secret back; "
        "or, if it is lost, close all keys with `rekontext keys reset` and make new ones"
    )


def pepper_of(secret: bytes) -> bytes:
    """Under which API keys are hashed."""
    return derive(secret, "api keys")


def unmade_database(settings: Settings) -> Path | None:
    """SQLite's file while there is none: opening it would make it. None for a database that is there, or on a server.

    Raises:
        PermissionError: this user may not look there.
    """
    file = sqlite_file(settings.database)
    return None if file is None or file.exists() else file


def open_database(settings: Settings) -> Database:
    """The database, with its tables up to date; on SQLite its folder is made.

    Raises:
        ValueError: the URL names no database.
        DatabaseUnavailable: it can't be reached, is damaged, or was upgraded by a newer version.
    """
    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return Database.open(settings.database)
    except ValueError as fault:
        raise ValueError(f"{variable('database_url')} can't be used: {fault}") from fault
    except DatabaseUnavailable as fault:
        where = variable("database_url") if settings.database_url else settings.database_file
        raise DatabaseUnavailable(f"{fault} ({where})") from fault
