"""What a process knows of the others on its database: their devices, and how far the edits are that they run.

Each tells of itself and looks at what the others told; between two looks this is what was seen last. Runs no edits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection

from rekontext.contract import Estimate, Progress
from rekontext.database import Database
from rekontext.jobs import queries, workers
from rekontext.jobs.model import Lease, State
from rekontext.jobs.workers import Reached, Worker
from rekontext.sources import Clock

WRONG_S_MAX: Final = 5.0
"""By so much the clocks of machines differ that are kept right over a network, and more."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """How far an edit is, and since when that is known here, in seconds of this machine's own clock."""

    reached: Reached
    since: float

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since


class Others:
    """Tells of one process and looks at the others. For one event loop.

    Args:
        worker: the name of this process.
        devices: how many it has. One that has none also counts the edits that the others run.
        lease_s: a process that was silent for so long is taken to be gone.
    """

    def __init__(self, *, database: Database, clock: Clock, worker: str, devices: int, lease_s: float) -> None:
        self._database = database
        self._clock = clock
        self._worker = worker
        self._has_devices = devices > 0
        self._lease_s = lease_s
        self._usable = devices
        self._edit_s: float | None = None
        self._running = 0
        self._are_there = False
        self._is_clock_wrong = False
        self._told: Mapping[Lease, Reached] | None = None  # an earlier process of this name may have told something
        self._seen: Mapping[Lease, _Seen] = {}

    @property
    def alive_since(self) -> datetime:
        """A process that was not seen since then is taken to be gone."""
        return self._clock.now() - timedelta(seconds=self._lease_s)

    @property
    def usable(self) -> int:
        """Devices of all processes, this one's too, that aren't failed."""
        return self._usable

    @property
    def edit_s(self) -> float | None:
        """What an edit took lately where one was made, in seconds of engine time."""
        return self._edit_s

    @property
    def served_first(self) -> int:
        """How many of the others' running edits a new one waits for. A fleet with devices says so itself: 0 then."""
        return max(0, self._running - max(0, self._usable - 1))

    def progress(self, lease: Lease) -> Progress | None:
        """How far an edit is that another process runs; None if nothing was told of it."""
        seen = self._seen.get(lease)
        progress = None if seen is None else seen.reached.progress
        if seen is None or progress is None or progress.remaining_s is None:
            return progress
        return replace(progress, remaining_s=max(0.0, progress.remaining_s - seen.age_s))

    def place(self, lease: Lease) -> Estimate | None:
        """What is expected of an edit that another process has and whose steps don't say it; None if it isn't known."""
        seen = self._seen.get(lease)
        if seen is None or (place := seen.reached.place) is None:
            return None
        wait_s, finish_s = (max(0.0, told_s - seen.age_s) for told_s in (place.wait_s, place.finish_s))
        return replace(place, wait_s=wait_s, finish_s=finish_s)

    async def report(self, own: Worker | None) -> None:
        """Write down what this process has, if it can be said, and see what all of them have together.

        Raises:
            DatabaseUnavailable: what was seen before is still known.
        """

        def look(tx: Connection) -> tuple[list[Worker], int, float]:
            shared = workers.shared_time(tx)
            ahead_s = 0.0 if shared is None else (self._clock.now() - shared).total_seconds()
            if own is not None:
                workers.report(tx, replace(own, seen_at=self._clock.now()))
            running = 0 if self._has_devices else queries.unfinished_by_state(tx)[State.PROCESSING]
            return workers.alive(tx, since=self.alive_since), running, ahead_s

        ask = self._database.read if own is None else partial(self._database.transact, lane="leases")
        found, self._running, ahead_s = await ask(look)
        self._usable = sum(worker.usable for worker in found)
        self._edit_s = next((each.edit_s for each in found if each.edit_s is not None), None)
        self._are_there = any(worker.name != self._worker for worker in found)
        self._judge_clock(ahead_s)

    def _judge_clock(self, ahead_s: float) -> None:
        """Say once that the clock here is wrong: by one that is ahead the others' leases run out early, and what one
        that is behind writes of itself is old already."""
        is_wrong = abs(ahead_s) > WRONG_S_MAX
        if is_wrong and not self._is_clock_wrong:
            _log.warning("clocks_differ", worker=self._worker, ahead_s=round(ahead_s, 1))
        self._is_clock_wrong = is_wrong

    async def share_progress(self, here: Mapping[Lease, Reached]) -> None:
        """Write down how far the edits of this process are, and see how far the others' are. Asks only where it must.

        Raises:
            DatabaseUnavailable: as `report`.
        """
        if (
            self._has_devices
            and here != self._told
            and await self._database.transact(lambda tx: workers.tell_progress(tx, self._worker, here), lane="leases")
        ):
            self._told = here
        if not self._are_there:
            self._seen = {}
            return
        found = await self._database.read(lambda tx: workers.progress(tx, besides=self._worker, since=self.alive_since))
        now, before = time.monotonic(), self._seen
        self._seen = {
            lease: old
            if (old := before.get(lease)) is not None and old.reached == reached
            else _Seen(reached=reached, since=now)
            for lease, reached in found.items()
        }
