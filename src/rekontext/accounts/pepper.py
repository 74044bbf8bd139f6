"""Under which pepper this database's API keys are hashed. Beside another one every key is unknown, so that must not go
unseen until the first customer complains: a database keeps a mark of its pepper, from which the pepper can't be found.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rekontext.accounts import keys
from rekontext.accounts.errors import PepperChanged
from rekontext.database.tables import api_keys, installation

_ONLY: Final = 1
_MARK: Final = select(installation.c.pepper_mark)
_CLAIM: Final = {
    "sqlite": sqlite.insert(installation).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(installation).on_conflict_do_nothing(),
}


def fits(tx: Connection, pepper: bytes) -> bool:
    """Whether the keys were hashed under it, or no pepper is known yet."""
    found = tx.execute(_MARK).scalar_one_or_none()
    return found is None or found == _mark(pepper)


def require(tx: Connection, pepper: bytes) -> None:
    """Return if the keys are hashed under it. The first pepper that comes is the right one.

    Raises:
        PepperChanged: they are hashed under another one.
    """
    tx.execute(_CLAIM[tx.dialect.name], {"id": _ONLY, "pepper_mark": _mark(pepper)})
    if not fits(tx, pepper):
        raise PepperChanged


def reset(tx: Connection, pepper: bytes, *, now: datetime) -> int:
    """The old pepper is lost: close every key, and hash new ones under this.

    Returns:
        How many keys were open.
    """
    closed = tx.execute(update(api_keys).where(api_keys.c.revoked_at.is_(None)).values(revoked_at=now)).rowcount
    tx.execute(update(installation).values(pepper_mark=_mark(pepper)))
    return closed


def _mark(pepper: bytes) -> str:
    return keys.digest("which pepper is this?", pepper)
