"""`rekontext backup` and `rekontext restore`: a copy of the SQLite database, and back."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import typer
from sqlalchemy import Connection, inspect

from rekontext.cli.failure import CommandFailed, not_permitted
from rekontext.cli.settings import keep_private, settings_of
from rekontext.database import Database, DatabaseUnavailable
from rekontext.database.address import sqlite_file
from rekontext.database.copies import CopyFailed, CopyRefused, back_up, put_back
from rekontext.database.tables import accounts
from rekontext.installation import where_secret
from rekontext.settings import Settings, variable
from rekontext.sources import SystemClock


def run_backup(to: Path, *, data_dir: Path | None) -> None:
    """Write a copy of the database while the service goes on.

    Raises:
        CommandFailed: there is no SQLite database, it is damaged or another user's, or the copy can't be written.
    """
    settings, file = _find(data_dir)
    try:
        back_up(file, to)
    except CopyRefused as fault:
        raise CommandFailed(str(fault)) from fault
    except CopyFailed as fault:
        raise CommandFailed(str(fault), exit_code=1) from fault
    except PermissionError as fault:
        raise CommandFailed(not_permitted(fault), exit_code=1) from fault
    typer.echo(
        f"{file} is copied to {to}. Its keys open nothing without the secret: keep {where_secret(settings)} too."
    )


def run_restore(copy: Path, *, data_dir: Path | None) -> None:
    """Make a copy the database. The service must be stopped.

    Raises:
        CommandFailed: a process has the database open, or the copy isn't one of ours, is damaged or too new.
    """
    settings, file = _find(data_dir)
    try:
        replaced = put_back(copy, file, check=lambda new: _check(new, copy), now=SystemClock().now())
    except CopyRefused as fault:
        raise CommandFailed(str(fault)) from fault
    except CopyFailed as fault:
        raise CommandFailed(str(fault), exit_code=1) from fault
    except PermissionError as fault:
        raise CommandFailed(not_permitted(fault), exit_code=1) from fault
    was = "" if replaced is None else f" What was there is in {replaced}."
    typer.echo(f"{file} is {copy} again.{was} It goes with the secret of its time: {where_secret(settings)}.")


def _find(data_dir: Path | None) -> tuple[Settings, Path]:
    keep_private()
    settings = settings_of(data_dir=data_dir)
    file = sqlite_file(settings.database)
    if file is None:
        raise CommandFailed(
            f"{variable('database_url')} names no SQLite file: PostgreSQL is backed up with pg_dump and put back with "
            "pg_restore"
        )
    return settings, file


def _check(new: Path, copy: Path) -> None:
    database = Database.open(f"sqlite:///{quote(str(new))}", connections=1, migrate=False)
    try:
        database.check_sync()
        is_ours = database.read_sync(_has_accounts)
    except DatabaseUnavailable as fault:
        raise CommandFailed(f"{copy} can't be put back: {fault}") from fault
    finally:
        database.close()
    if not is_ours:
        raise CommandFailed(f"{copy} is no database of Rekontext")


def _has_accounts(tx: Connection) -> bool:
    return inspect(tx).has_table(accounts.name)
