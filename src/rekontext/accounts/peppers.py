"""Under which pepper this database's API keys are hashed. Beside another one every key is unknown, so that must not go
unseen until the first customer complains: a database keeps a mark of its pepper, from which the pepper can't be found.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, exists, select, update
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


def is_known(tx: Connection) -> bool:
    """Whether the database has a mark. One with keys from before there were marks has none."""
    return tx.execute(select(exists().select_from(installation))).scalar_one()


def fits(tx: Connection, pepper: bytes) -> bool | None:
    """Whether the keys were hashed under it; None if that isn't known."""
    found = tx.execute(_MARK).scalar_one_or_none()
    return None if found is None else found == _mark(pepper)


def claim_or_require(tx: Connection, pepper: bytes) -> None:
    """Return if a key may be hashed under it. While there are no keys, the first pepper that comes is the right one.

    Raises:
        PepperChanged: the keys are hashed under another one.
    """
    if not tx.execute(select(exists().select_from(api_keys))).scalar_one():
        _claim(tx, pepper)
    # Until the key is written no reset goes on: it would not see that key.
    if tx.execute(_MARK.with_for_update(read=True)).scalar_one_or_none() not in (None, _mark(pepper)):
        raise PepperChanged


def reset(tx: Connection, pepper: bytes, *, now: datetime) -> int:
    """The old pepper is lost: close every key, and hash new ones under this.

    Returns:
        How many keys were open.
    """
    _claim(tx, pepper)
    tx.execute(update(installation).values(pepper_mark=_mark(pepper)))
    return tx.execute(update(api_keys).where(api_keys.c.revoked_at.is_(None)).values(revoked_at=now)).rowcount


def _claim(tx: Connection, pepper: bytes) -> None:
    tx.execute(_CLAIM[tx.dialect.name], {"id": _ONLY, "pepper_mark": _mark(pepper)})


def _mark(pepper: bytes) -> str:
    return keys.digest("which pepper is this?", pepper)
