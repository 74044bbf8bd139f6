"""The processes that have devices, as each has written of itself: so those that share a database know of each other.

One that was seen within a lease is taken to be alive, and how far its edits are is known by what it told. The newest
is remembered for as long as it takes: by it a process without devices knows what it accepts edits for, while no other
is up.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rekontext.contract import DeviceState, Estimate, Progress
from rekontext.database import JobId
from rekontext.database.tables import workers
from rekontext.jobs.model import Lease

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


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far an edit is.

    Attributes:
        progress: its last step; None for one that has not begun.
        place: what its device expects of it; None once its own steps say that.
    """

    progress: Progress | None
    place: Estimate | None


_ABOUT: Final = tuple(workers.c[each.name] for each in fields(Worker))


def report(tx: Connection, worker: Worker) -> None:
    """Write down that a process is alive, and what it has."""
    values = vars(worker)
    statement = _INSERTS[tx.dialect.name](workers).values(**values)
    tx.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def alive(tx: Connection, *, since: datetime) -> list[Worker]:
    """Those that were seen since then, by name."""
    found = select(*_ABOUT).where(workers.c.seen_at > since).order_by(workers.c.name)
    return [Worker(**row) for row in tx.execute(found).mappings()]


def latest(tx: Connection) -> Worker | None:
    """The one that was seen last, however long ago."""
    found = tx.execute(select(*_ABOUT).order_by(workers.c.seen_at.desc()).limit(1)).mappings().first()
    return None if found is None else Worker(**found)


def shared_time(tx: Connection) -> datetime | None:
    """The time by the clock of the database's machine; None on SQLite, whose processes have one clock."""
    if tx.dialect.name == "sqlite":
        return None
    shared: datetime = tx.execute(select(func.clock_timestamp())).scalar_one()
    return shared


def tell_progress(tx: Connection, name: str, edits: Mapping[Lease, Reached]) -> bool:
    """Write down how far the edits of a process are. False if it hasn't reported yet: nothing is written then."""
    told = {lease.job: {"attempt": lease.attempt} | _written(reached) for lease, reached in edits.items()}
    return tx.execute(update(workers).where(workers.c.name == name).values(progress=told)).rowcount > 0


def progress(tx: Connection, *, besides: str, since: datetime) -> dict[Lease, Reached]:
    """How far the edits are of those processes, but for one, that were seen since then."""
    told = select(workers.c.progress).where(workers.c.seen_at > since, workers.c.name != besides)
    found: dict[Lease, Reached] = {}
    for edits in tx.execute(told).scalars():
        # One of another version may tell something else, or more.
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            for job, its in edits.items():
                found[Lease(job=JobId(job), attempt=int(its["attempt"]))] = _read(its)
    return found


def _written(reached: Reached) -> dict[str, object]:
    return {name: value for each in (reached.progress, reached.place) if each for name, value in asdict(each).items()}


def _read(its: Mapping[str, Any]) -> Reached:
    progress = place = None
    if "step" in its:
        left_s = its["remaining_s"]
        progress = Progress(
            step=int(its["step"]),
            steps=int(its["steps"]),
            remaining_s=None if left_s is None else float(left_s),
        )
    if "position" in its:
        place = Estimate(position=int(its["position"]), wait_s=float(its["wait_s"]), finish_s=float(its["finish_s"]))
    return Reached(progress=progress, place=place)


def forget(tx: Connection, before: datetime) -> int:
    """Remove those that weren't seen since then, but for the latest. Returns how many."""
    last = select(workers.c.name).order_by(workers.c.seen_at.desc()).limit(1).scalar_subquery()
    return tx.execute(delete(workers).where(workers.c.seen_at <= before, workers.c.name != last)).rowcount
