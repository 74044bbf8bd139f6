"""When a job will be done: what the fleet says of its own edits, and those that still wait in the database.

Knows no HTTP. Everything here is an estimate: of this process's fleet, and of what the other processes were last heard
to say of theirs. It asks neither them nor the database, so it takes microseconds.
"""

from __future__ import annotations

from typing import Final, Protocol

from rekontext.api.workbench import edit_request
from rekontext.contract import EditRequest, EngineFault, Estimate, Fleet, Progress
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job, Others, State

_NOW: Final = Estimate(position=0, wait_s=0.0, finish_s=0.0)


class Dispatching(Protocol):
    """What is asked of the dispatcher."""

    @property
    def edit_s(self) -> float: ...

    @property
    def place_s(self) -> float | None: ...

    @property
    def others(self) -> Others: ...

    def runs(self, job: Job) -> bool: ...

    def has_left_fleet(self, job: JobId) -> bool: ...

    def progress(self, job: Job) -> Progress | None: ...

    def place(self, job: Job) -> Estimate | None: ...

    def takes(self, account: AccountId) -> bool: ...


class Forecast:
    """Asks the fleet, and adds what waits before it. Of what other processes run it knows what they told."""

    def __init__(self, *, fleet: Fleet, dispatcher: Dispatching) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher

    @property
    def edit_s(self) -> float:
        """What an edit took lately, in seconds of engine time."""
        return self._dispatcher.edit_s

    def progress(self, job: Job) -> Progress | None:
        """The last step of a running job; None where it isn't known."""
        return self._dispatcher.progress(job)

    def of_new(self, request: EditRequest, *, ahead: int = 0) -> Estimate | None:
        """Of an edit submitted now, with `ahead` others that wait in the database. None if nothing can be said.

        Args:
            request: with its account; without its photo, whose size is enough.
        """
        return self._ask(request, ahead) if self._fleet.is_ready else None

    def of_job(self, job: Job, *, ahead: int | None) -> Estimate | None:
        """Of an accepted job; None when it has ended or nothing can be said."""
        if job.state is State.PROCESSING and not self._dispatcher.runs(job):
            progress = self._dispatcher.progress(job)
            left_s = None if progress is None else progress.remaining_s
            return self._dispatcher.place(job) if left_s is None else Estimate(position=0, wait_s=0.0, finish_s=left_s)
        if job.state.is_terminal:
            return None
        return self.at_place(job, ahead=0 if job.state is State.PROCESSING else ahead or 0)

    def at_place(self, job: Job, *, ahead: int = 0) -> Estimate | None:
        """Of a job that waits behind so many, or that this process works on, however long ago its row was read."""
        if self._dispatcher.has_left_fleet(job.id):
            return _NOW
        if not self._fleet.is_ready:
            return None
        return self._ask(edit_request(job.parameters, job=job.id, account=job.account, photo=None), ahead)

    def _ask(self, request: EditRequest, ahead: int) -> Estimate | None:
        try:
            own = self._fleet.estimate(request)
        except EngineFault:  # it was closed in this very moment
            return None
        place_s = self._dispatcher.place_s
        if place_s is None:  # nobody knows when a device will be there
            return None
        if self._dispatcher.takes(AccountId(request.account)):  # those before it wait for places that it doesn't need
            ahead = 0
        ahead += self._dispatcher.others.served_first
        waiting_s = ahead * place_s
        return Estimate(position=own.position + ahead, wait_s=own.wait_s + waiting_s, finish_s=own.finish_s + waiting_s)
