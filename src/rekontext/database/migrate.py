"""Bring a database's tables to this version's shape, once, whoever comes first.

Knows Alembic and where the migrations lie; the whole upgrade is one transaction on both databases.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

_LOCK = 0x52_45_4B_4F  # any number that every process of ours agrees on


def config(connection: Connection) -> Config:
    """Alembic's settings for the migrations in this package, bound to an open connection."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    settings.attributes["connection"] = connection
    return settings


def upgrade(connection: Connection) -> None:
    """Apply every migration that is missing. Others who start at the same time wait for us.

    On SQLite the caller's `BEGIN IMMEDIATE` is the lock.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '5min'"))
        connection.execute(text("SET LOCAL statement_timeout = '30min'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    command.upgrade(config(connection), "head")
