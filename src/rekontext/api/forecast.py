"""When a job will be done: what the fleet says of its own edits, and those that still wait in the database.

Knows no HTTP. Everything here is an estimate of this process's fleet and takes microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final, Protocol

from rekontext.api.workbench import Parameters, edit_request, stand_in
from rekontext.contract import EngineFault, Estimate, Fleet, Progress
from rekontext.database import AccountId, JobId
from rekontext.jobs import EventHub, EventKind, Job, Others, State

_NEW: Final = JobId("")
_REMEMBERED_MAX: Final = 4096


class Works(Protocol):
    """What is asked of the dispatcher."""

    @property
    def worker(self) -> str: ...

    @property
    def edit_s(self) -> float: ...

    @property
    def place_s(self) -> float | None: ...

    @property
    def others(self) -> Others: ...

    def takes(self, account: AccountId) -> bool: ...


class Progresses(EventHub):
    """The event hub, remembering how far each running job is."""

    def __init__(self, *, epoch: str) -> None:
        super().__init__(epoch=epoch)
        self._progress: dict[JobId, Mapping[str, object]] = {}

    def publish(self, job: JobId, kind: EventKind, data: Mapping[str, object]) -> None:
        """As `EventHub.publish`."""
        if kind == "progress":
            self._progress[job] = {name: value for name, value in data.items() if name != "attempt"}
            if len(self._progress) > _REMEMBERED_MAX:  # jobs that were lost to another process never end here
                del self._progress[next(iter(self._progress))]
        elif kind != "preview":
            self._progress.pop(job, None)
        super().publish(job, kind, data)

    def progress(self, job: JobId) -> Mapping[str, object] | None:
        """The last step of a job that runs here: step, steps, remaining_s."""
        return self._progress.get(job)


class Forecast:
    """Asks the fleet, and adds what waits before it. Of what other processes run it knows what they told."""

    def __init__(self, *, fleet: Fleet, works: Works, progresses: Progresses) -> None:
        self._fleet = fleet
        self._works = works
        self._progresses = progresses

    @property
    def edit_s(self) -> float:
        """What an edit took lately, in seconds of engine time."""
        return self._works.edit_s

    def progress(self, job: Job) -> Mapping[str, object] | None:
        """The last step of a running job: step, steps, remaining_s. None where it isn't known."""
        if self._runs_here(job):
            return self._progresses.progress(job.id)
        progress = self._elsewhere(job)
        return None if progress is None else asdict(progress)

    def of_new(self, parameters: Parameters, *, account: AccountId, ahead: int = 0) -> Estimate | None:
        """Of an edit submitted now, with `ahead` others that wait in the database. None if nothing can be said."""
        if not self._fleet.is_ready:
            return None
        return self._ask(_NEW, parameters, account, ahead)

    def of_job(self, job: Job, *, ahead: int | None) -> Estimate | None:
        """Of an accepted job; None when it has ended or nothing can be said."""
        progress = self._elsewhere(job)
        if progress is not None and progress.remaining_s is not None:
            return Estimate(position=0, wait_s=0.0, finish_s=progress.remaining_s)
        if not (job.state is State.QUEUED or self._runs_here(job)) or not self._fleet.is_ready:
            return None
        return self._ask(job.id, job.parameters, job.account, 0 if job.state is State.PROCESSING else ahead or 0)

    def _runs_here(self, job: Job) -> bool:
        return job.state is State.PROCESSING and job.worker == self._works.worker

    def _elsewhere(self, job: Job) -> Progress | None:
        """How far a job is that another process runs."""
        is_elsewhere = job.state is State.PROCESSING and job.worker != self._works.worker
        return self._works.others.progress(job.lease) if is_elsewhere else None

    def _ask(self, job: JobId, parameters: Parameters, account: AccountId, ahead: int) -> Estimate | None:
        request = edit_request(parameters, job=job, account=account, photo=stand_in(parameters))
        try:
            own = self._fleet.estimate(request)
        except EngineFault:  # it was closed in this very moment
            return None
        place_s = self._works.place_s
        if place_s is None:  # nobody knows when a device will be there
            return None
        if self._works.takes(account):  # those before it wait for places that it doesn't need
            ahead = 0
        ahead += self._works.others.served_first
        waiting_s = ahead * place_s
        return Estimate(position=own.position + ahead, wait_s=own.wait_s + waiting_s, finish_s=own.finish_s + waiting_s)
