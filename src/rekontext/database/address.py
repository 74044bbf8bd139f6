"""Which database a URL names. Its text is never shown again: it may hold a password, wherever a slip has put that."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

ALLOWED_URLS: Final = "sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME"
_DRIVERS: Final = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def read_address(url: str) -> URL:
    """The parts of a URL, with the driver that we use, whichever it names.

    Raises:
        ValueError: it can't be read, or names no database that is supported.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter has in its text what stands where the port should
        raise ValueError(f"database url can't be read; allowed: {ALLOWED_URLS}") from None
    kind = parsed.get_backend_name()
    if kind not in _DRIVERS:
        raise ValueError(f"database url names {kind!r}; allowed: {ALLOWED_URLS}")
    if kind == "sqlite" and parsed.host:
        raise ValueError("database url names a host, but SQLite is a file: sqlite:///FILE, with three slashes")
    return parsed.set(drivername=_DRIVERS[kind])


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database; None where the URL names another kind, or none."""
    try:
        parsed = read_address(url)
    except ValueError:
        return None
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(parsed.database)
