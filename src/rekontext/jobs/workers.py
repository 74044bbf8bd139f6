"""The processes that have devices, as each has written of itself: so those that share a database know of each other.

One that was seen within a lease is taken to be alive. The newest is remembered for as long as it takes: by it a
process without devices knows what it accepts edits for, while no other is up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from rekontext.contract import DeviceState
from rekontext.database.tables import workers

_INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process.

    Attributes:
        name: as it stands in the jobs that it runs.
        devices: their states by name.
        edit_s: what an edit took there lately, in seconds of engine time; None before the first.
        profile: as `rekontext.contract.Fleet.profile`.
    """

    name: str
    seen_at: datetime
    devices: Mapping[str, DeviceState]
    edit_s: float | None
    profile: Mapping[str, Any]

    @property
    def usable(self) -> int:
        """On how many devices edits run now, or would after a start."""
        return sum(state != "failed" for state in self.devices.values())


def report(tx: Connection, worker: Worker) -> None:
    """Write down that a process is alive, and what it has."""
    values = vars(worker)
    statement = _INSERTS[tx.dialect.name](workers).values(**values)
    tx.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def alive(tx: Connection, *, since: datetime) -> list[Worker]:
    """Those that were seen since then, by name."""
    found = select(workers).where(workers.c.seen_at > since).order_by(workers.c.name)
    return [Worker(**row) for row in tx.execute(found).mappings()]


def latest(tx: Connection) -> Worker | None:
    """The one that was seen last, however long ago."""
    found = tx.execute(select(workers).order_by(workers.c.seen_at.desc()).limit(1)).mappings().first()
    return None if found is None else Worker(**found)


def forget(tx: Connection, before: datetime) -> int:
    """Remove those that weren't seen since then, but for the latest. Returns how many."""
    last = select(workers.c.name).order_by(workers.c.seen_at.desc()).limit(1).scalar_subquery()
    return tx.execute(delete(workers).where(workers.c.seen_at <= before, workers.c.name != last)).rowcount
