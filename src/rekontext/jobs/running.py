"""What happens to one job in work here, from its attempt to its end in the database. Knows nothing of the other jobs.

`Dispatcher` decides which jobs these are, keeps their leases alive, and says when one must stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, Literal

import structlog

from rekontext.contract import Preview, Progress
from rekontext.database import Database, DatabaseUnavailable
from rekontext.jobs.attempt import Attempts, Ending, Failed, HandedBack, Made, Stopped, Traces, settle
from rekontext.jobs.errors import ATTEMPT_FAULTS, LeaseLost
from rekontext.jobs.events import EventHub
from rekontext.jobs.life import JobLife
from rekontext.jobs.model import Job, State
from rekontext.jobs.objects import Objects, clear_away
from rekontext.jobs.workbench import Workbench
from rekontext.sources import Clock

_log = structlog.get_logger(__name__)

SETTLE_TRIES_MIN: Final = 10
_LATEST_WEIGHS: Final = 0.2

_Why = Literal["cancelled", "lost", "closing"]


@dataclass(kw_only=True, eq=False)
class Running:
    """A job in work here.

    Attributes:
        stopped_for: set once; its task is cancelled then, unless it hasn't begun and sees it by itself.
        settling_since: in loop time; then its ending is being written and can't be stopped any more.
        progress: its last step.
    """

    job: Job
    lease_until: datetime
    task: asyncio.Task[None] | None = None
    stopped_for: _Why | None = None
    has_begun: bool = False
    settling_since: float | None = None
    traces: Traces = field(default_factory=Traces)
    progress: Progress | None = None

    def stop(self, why: _Why) -> None:
        if self.settling_since is not None or self.stopped_for is not None:
            return
        self.stopped_for = why
        if self.has_begun and self.task is not None:
            self.task.cancel()


class Runner:
    """Runs jobs, each in the task that calls `run` for it.

    Args:
        wake: called when a job went back into the queue.
        retry_s: how long after a try to write an end that the database didn't take comes the next.
    """

    def __init__(
        self,
        *,
        database: Database,
        life: JobLife,
        attempts: Attempts,
        objects: Objects,
        workbench: Workbench,
        hub: EventHub,
        clock: Clock,
        wake: Callable[[], None],
        retry_s: float,
    ) -> None:
        self._database = database
        self._life = life
        self._attempts = attempts
        self._objects = objects
        self._workbench = workbench
        self._hub = hub
        self._clock = clock
        self._wake = wake
        self._retry_s = retry_s
        self._edit_s: float | None = None

    @property
    def edit_s(self) -> float | None:
        """What an edit took here lately, in seconds of engine time; None before the first."""
        return self._edit_s

    async def run(self, running: Running) -> None:
        """Bring a job to its end, or to where another process takes it up. Raises nothing of the job's."""
        running.has_begun = True
        try:
            ending = await self._attempt(running) if running.stopped_for is None else self._after_stop(running)
            running.settling_since = asyncio.get_running_loop().time()
            if ending is None or not await self._settle(running.job, ending):
                await clear_away(self._objects, *running.traces.stored)
        except Exception:
            # The lease runs out and the job is tried again, a bounded number of times.
            _log.exception("job_abandoned", job=running.job.id, attempt=running.job.attempt)

    def tell(self, job: Job, *, code: str | None) -> None:
        """Log where a job went and publish it, and count what failed.

        Args:
            code: why its attempt failed, which a job that waits again has not.
        """
        _log.info(
            "edit_waits_again" if job.state is State.QUEUED else "edit_ended",
            job=job.id,
            account=job.account,
            state=job.state.value,
            attempt=job.attempt,
            faults=job.faults,
            **{name: round(value, 3) for name, value in _took(job).items() if value is not None},
            **({} if code is None else {"code": code}),
        )
        if code in ATTEMPT_FAULTS:
            self._hub.faulted(code)
        if job.state is State.QUEUED:
            self._hub.publish(job.id, "queued", {"ahead": None})
            self._wake()
        else:
            self._hub.end(job)

    async def _attempt(self, running: Running) -> Ending | None:
        job = running.job
        self._hub.publish(job.id, "processing", {"attempt": job.attempt})
        try:
            ending = await self._attempts.run(
                job, on_progress=lambda news: self._progress(running, news), traces=running.traces
            )
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if running.stopped_for is None or current is None:
                raise  # not by us: the loop itself is going down
            current.uncancel()
            return self._after_stop(running)
        if isinstance(ending, Made):
            before_s = ending.inference_s if self._edit_s is None else self._edit_s
            self._edit_s = before_s + _LATEST_WEIGHS * (ending.inference_s - before_s)
        return ending

    def _after_stop(self, running: Running) -> Ending | None:
        """None for a lost lease: the job is another's."""
        assert running.stopped_for is not None
        endings: dict[_Why, Ending | None] = {"cancelled": Stopped(), "closing": HandedBack(), "lost": None}
        return endings[running.stopped_for]

    async def _settle(self, job: Job, ending: Ending) -> bool:
        """Write the end of an attempt. If the database stays away, the lease runs out and the job is run again.

        Tried for as long as a lease lasts, since so long the job is ours, unless the dispatcher closes.

        Returns:
            False if the job was not ours any more.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._life.patience.lease_s
        tried = 0
        while tried < SETTLE_TRIES_MIN or loop.time() < until:
            tried += 1
            now = self._clock.now()
            try:
                settled = await self._database.transact(
                    partial(settle, life=self._life, lease=job.lease, ending=ending, now=now), lane="endings"
                )
            except LeaseLost as lost:
                _log.warning("lease_lost", job=job.id, attempt=job.attempt, why=str(lost))
                # It may be lost because an earlier try did happen: then the outputs are the job's.
                return tried > 1
            except DatabaseUnavailable as fault:
                if tried == 1:  # each edit that ends meanwhile tries every second
                    _log.error("settle_failed", job=job.id, attempt=job.attempt, fault=str(fault))
                await asyncio.sleep(self._retry_s)
            else:
                self.tell(settled, code=ending.code if isinstance(ending, Failed) else None)
                return True
        return True

    def _progress(self, running: Running, news: Progress | Preview) -> None:
        job = running.job
        if isinstance(news, Preview):
            self._hub.publish(job.id, "preview", self._workbench.preview(news))
            return
        running.progress = news
        self._hub.publish(job.id, "progress", {"attempt": job.attempt, **asdict(news)})


def _took(job: Job) -> dict[str, float | None]:
    """Seconds, as far as they are known."""
    return {"queue_s": job.queue_s, "inference_s": job.inference_s, "total_s": job.total_s}
