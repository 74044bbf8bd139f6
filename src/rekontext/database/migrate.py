"""Bring a database's tables to this version's shape, once, whoever comes first.

Knows Alembic and where the migrations lie; the whole upgrade is one transaction on both databases.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

_LOCK = 0x52_45_4B_4F  # any number that every process of ours agrees on


class TablesUnknown(RuntimeError):
    """The tables have a shape that this version doesn't know: a newer version made it."""


def config(connection: Connection) -> Config:
    """Alembic's settings for the migrations in this package, bound to an open connection."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    settings.attributes["connection"] = connection
    return settings


def require_known(connection: Connection) -> None:
    """Return if this version knows the shape of the tables, or there are none yet.

    Raises:
        TablesUnknown: it doesn't.
    """
    known = [script.revision for script in ScriptDirectory.from_config(config(connection)).walk_revisions()]
    strange = set(MigrationContext.configure(connection).get_current_heads()) - set(known)
    if strange:
        raise TablesUnknown(
            f"the database was upgraded by a newer Rekontext: its tables are at {', '.join(sorted(strange))}, this "
            f"version knows them up to {known[0]}; install the newer version again, or put back a backup from before"
        )


def is_current(connection: Connection) -> bool:
    """Whether no migration is missing. Only reads, so that it waits for nobody.

    Raises:
        TablesUnknown: a newer version was here.
    """
    require_known(connection)
    newest = ScriptDirectory.from_config(config(connection)).get_heads()
    return set(MigrationContext.configure(connection).get_current_heads()) == set(newest)


def upgrade(connection: Connection) -> None:
    """Apply every migration that is missing. Others who start at the same time wait for us.

    On SQLite the caller's `BEGIN IMMEDIATE` is the lock.

    Raises:
        TablesUnknown: a newer version was here; nothing is changed.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '5min'"))
        connection.execute(text("SET LOCAL statement_timeout = '30min'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    require_known(connection)
    command.upgrade(config(connection), "head")
