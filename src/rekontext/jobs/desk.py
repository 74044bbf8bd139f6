"""The front of the jobs: what the wire calls. Submit, look, wait, listen, cancel.

Each call is one or two short transactions. What an account asks for that isn't its own is unknown to it.
Knows no HTTP and nothing of how edits are run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Protocol

from sqlalchemy import Connection

from rekontext.accounts import audit
from rekontext.contract import Estimate, Progress
from rekontext.database import AccountId, Database, DatabaseUnavailable, JobId
from rekontext.jobs import idempotency, queries
from rekontext.jobs.events import Event, EventHub
from rekontext.jobs.life import Accepted, JobLife, replay
from rekontext.jobs.lookout import Lookout, Places
from rekontext.jobs.model import Idempotency, Job, Order, State
from rekontext.sources import Clock


class Dispatching(Protocol):
    """What the desk needs of a dispatcher in its own process."""

    def runs(self, job: Job) -> bool: ...

    def holds(self, job: Job) -> bool: ...

    def progress(self, job: Job) -> Progress | None: ...

    def place(self, job: Job) -> Estimate | None: ...

    def wake(self) -> None: ...

    def stop(self, job: JobId) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a job stands.

    Attributes:
        ahead: waiting jobs before it; None unless it is QUEUED.
    """

    job: Job
    ahead: int | None


class Desk:
    """Takes orders and answers questions. For one event loop.

    Args:
        works: the dispatcher of this process.
        poll_s: how long the news of another process may take to be seen here.
    """

    def __init__(
        self,
        *,
        database: Database,
        life: JobLife,
        hub: EventHub,
        clock: Clock,
        dispatcher: Dispatching,
        poll_s: float = 1.0,
    ) -> None:
        self._database = database
        self._life = life
        self._hub = hub
        self._clock = clock
        self._dispatcher = dispatcher
        self._poll_s = poll_s
        self._lookout = Lookout(database=database, hub=hub, every_s=poll_s)
        self._places = Places(database=database, every_s=poll_s)
        self._is_letting_go = False

    @property
    def has_let_go(self) -> bool:
        """Whether `let_go` was called."""
        return self._is_letting_go

    def let_go(self) -> None:
        """End every `wait`, now and from now on: the process goes down, and its jobs go on without it."""
        self._is_letting_go = True

    async def submit(self, order: Order) -> Accepted:
        """Accept an order; once this returns, the edit can't be lost.

        Raises:
            what `JobLife.accept` raises: nothing was held or queued.
            DatabaseUnavailable: the same, unless it is in doubt; an idempotency key makes asking again safe.
        """
        now = self._clock.now()
        accepted = await self._database.transact(lambda tx: self._life.accept(tx, order, now=now))
        if not accepted.replayed:
            if self._hub.newest(accepted.job.id) is None:  # else a dispatcher has it already
                self._hub.publish(accepted.job.id, "queued", {"ahead": accepted.ahead})
            self._dispatcher.wake()
        return accepted

    async def earlier(self, account: AccountId, promise: Idempotency) -> Accepted | None:
        """What `submit` answers to an order with this idempotency key, if one came before. None: the key is free.

        Raises:
            IdempotencyKeyReused: that one had another body.
        """

        def look(tx: Connection) -> Accepted | None:
            found = idempotency.find(tx, account, promise)
            return None if found is None else replay(tx, found, account=account)

        return await self._database.read(look)

    async def job(self, job: JobId, *, account: AccountId | None) -> Job:
        """The job as it is now; `account` None sees everyone's.

        Raises:
            JobUnknown: the account has no such job.
        """
        return await self._database.read(lambda tx: queries.get(tx, job, account=account))

    async def standing(self, job: JobId, *, account: AccountId | None) -> Standing:
        """The job and its place in the queue.

        Raises:
            JobUnknown: the account has no such job.
        """

        def look(tx: Connection) -> tuple[Job, int | None]:
            found = queries.get(tx, job, account=account)
            return found, queries.place(tx, found)

        found, ahead = await self._database.read(look)
        return Standing(job=found, ahead=ahead)

    async def cancel(self, job: JobId, *, account: AccountId | None, actor: str | None = None) -> Job:
        """Cancel a job; from this moment it is free. See `JobLife.cancel`.

        Args:
            actor: the operator whose act it is, for the audit log; None for the account itself.

        Raises:
            JobUnknown: the account has no such job.
        """
        now = self._clock.now()

        def work(tx: Connection) -> Job:
            cancelled = self._life.cancel(tx, job, account=account, now=now)
            if actor is not None and now in (cancelled.finished_at, cancelled.cancel_requested_at):  # by this very call
                about = {"account": cancelled.account}
                audit.record(tx, actor=actor, action="request.cancel", subject=job, now=now, details=about)
            return cancelled

        found = await self._database.transact(work)
        if found.finished_at == now:  # by this very call; else it had ended before
            self._hub.end(found)
        elif found.state.is_terminal:
            self._hub.end(found, is_ours=False)
        else:
            self._dispatcher.stop(job)
        return found

    async def wait(self, job: JobId, *, account: AccountId | None, timeout_s: float, known: Job | None = None) -> Job:
        """Return the job when it has ended, or as it is after `timeout_s` or `let_go`. That doesn't touch the job.

        Args:
            known: the job as `submit` or a look has just returned it, which saves the first look.

        Raises:
            JobUnknown: the account has no such job.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        found = await self.job(job, account=account) if known is None else known
        if found.state.is_terminal or self._is_letting_go:
            return found
        with self._lookout.watching(job):
            while not self._is_letting_go and (left_s := deadline - loop.time()) > 0:
                # Not wait_for: before Python 3.12 it loses a cancel that comes together with the end.
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(self._poll_s, left_s)):
                        return await self._hub.wait_ended(job)
        with suppress(DatabaseUnavailable):  # the job is safe: whoever is told otherwise orders another
            found = await self.job(job, account=account)
        return found

    def newest(self, job: JobId) -> Event | None:
        """What listeners of the job heard last, as far as it is remembered."""
        return self._hub.newest(job)

    async def listen(self, job: JobId, *, account: AccountId | None, after: str | None = None) -> AsyncIterator[Event]:
        """The job's events from now to its end, beginning with those that are remembered since `after`.

        "quiet" comes again and again while a job that runs here makes no step: others may go first on its device, and
        its place there changes.

        Raises:
            JobUnknown: the account has no such job, or its record went while listening.
        """
        found = await self._tell_what_is_known(job, account)
        events = self._hub.listen(job, after=after)
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait([coming], timeout=self._poll_s)
                if not done:
                    with suppress(DatabaseUnavailable):
                        found = await self._tell_what_is_new(found, account)
                    newest = self._hub.newest(job)
                    if newest is not None and self._dispatcher.holds(found):
                        yield Event(id=newest.id, kind="quiet", data={})
                    continue
                event = coming.result()
                if event is None:
                    return
                yield event
                coming = asyncio.ensure_future(anext(events, None))
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError):
                await coming
            await events.aclose()

    async def _tell_what_is_new(self, job: Job, account: AccountId | None) -> Job:
        """As `_tell_what_is_known`, of a job as it was. What one look for all shows needs none of its own."""
        if self._dispatcher.holds(job):
            return job  # whatever happens to it is told here
        known = self._hub.newest(job.id)
        if job.state is State.QUEUED and known is not None and known.kind == "queued":
            ahead = await self._places.of(job.id)
            if ahead is not None and self._hub.newest(job.id) is known:
                self._tell_place(job.id, ahead, known)
                return job
        return await self._tell_what_is_known(job.id, account)

    async def _tell_what_is_known(self, job: JobId, account: AccountId | None) -> Job:
        """Tell what only the database knows: the place in the queue, and how a job fares in another process."""
        known = self._hub.newest(job)
        standing = await self.standing(job, account=account)
        found = standing.job
        if found.state.is_terminal:
            if not self._hub.has_ended(job):
                self._hub.end(found, is_ours=False)
            return found
        if self._hub.newest(job) is not known or self._dispatcher.runs(found):
            return found  # what was seen may be over, or is told by whoever runs it
        if standing.ahead is not None:
            self._tell_place(job, standing.ahead, known)
            return found
        # What is known already isn't told again: each listener would tell it to all.
        told = {} if known is None else known.data
        place = self._dispatcher.place(found)
        news = {"attempt": found.attempt} | ({} if place is None else {"queue_position": place.position})
        has_moved = place is not None and "step" not in told and told.get("queue_position") != place.position
        if told.get("attempt") != found.attempt or has_moved:
            self._hub.publish(job, "processing", news, is_ours=False)
            told = {}
        progress = self._dispatcher.progress(found)
        if progress is not None and told.get("step") != progress.step:
            self._hub.publish(job, "progress", {"attempt": found.attempt, **asdict(progress)}, is_ours=False)
        return found

    def _tell_place(self, job: JobId, ahead: int, known: Event | None) -> None:
        if known is None or known.data.get("ahead") != ahead:
            self._hub.publish(job, "queued", {"ahead": ahead}, is_ours=False)
