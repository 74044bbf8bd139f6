"""The loop that gives waiting jobs to the fleet and brings each to its end.

It claims jobs as places become free, runs each in a task of its own, keeps their leases alive, and settles them.
Many dispatchers may share one database; leases and attempt numbers keep them apart. It learns of new jobs at once
when they come through this process (`wake`), else by polling. Knows neither HTTP nor tensors.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

import structlog
from sqlalchemy import Connection

from rekontext.contract import EngineFault, Estimate, Fleet, Progress
from rekontext.database import AccountId, Database, DatabaseUnavailable, JobId
from rekontext.jobs import queries
from rekontext.jobs.attempt import Attempts
from rekontext.jobs.events import EventHub
from rekontext.jobs.life import RECOVERED_PER_TRANSACTION, JobLife
from rekontext.jobs.model import Job, Lease, State
from rekontext.jobs.objects import Objects
from rekontext.jobs.others import Others
from rekontext.jobs.outage import Outage
from rekontext.jobs.running import Runner, Running
from rekontext.jobs.workbench import Workbench
from rekontext.jobs.workers import Reached, Worker
from rekontext.sources import Clock

_log = structlog.get_logger(__name__)

CLOSING_S_MAX: Final = 10.0
"""For how long `close` waits for the database, beyond its drain."""
_LOOKS_WHILE_CLOSING: Final = 10
_HEARTBEATS_PER_LEASE: Final = 3
_FIRST_GUESS_S: Final = 5.0
_PER_FREE_PLACE: Final = 2
"""An account that holds so many places for each that is free gets no more: alone it takes about two thirds of them."""

_Found = TypeVar("_Found")


class Dispatcher:
    """Runs jobs on a fleet. Use `run` in a task of its own, call `begin` when the fleet is ready, and `close` to end.

    Args:
        worker: names this process in the database. Jobs left under the same name by an earlier process are taken back
            at once, so two that run at the same time must not share it.
        running_max: jobs that are with the fleet at the same time.
        run_s_max: an attempt that takes longer, for each of its pictures, is a fault of ours.
        poll_s: how long a job that came through another process may go unseen.
    """

    def __init__(
        self,
        *,
        database: Database,
        life: JobLife,
        fleet: Fleet,
        objects: Objects,
        workbench: Workbench,
        hub: EventHub,
        clock: Clock,
        worker: str,
        running_max: int,
        run_s_max: float,
        poll_s: float = 1.0,
    ) -> None:
        self._database = database
        self._life = life
        self._fleet = fleet
        self._workbench = workbench
        self._clock = clock
        self._outage = Outage(by="dispatcher", clock=clock, log=_log)
        self._worker = worker
        self._running_max = running_max
        self._poll_s = poll_s
        self._running: dict[Lease, Running] = {}
        self._claiming: asyncio.Task[list[Job]] | None = None
        self._doubted: datetime | None = None  # the moment of a claim that may have happened
        self._news = asyncio.Event()
        self._closing = False
        self._until = math.inf  # in loop time, once it closes
        self._more_may_wait = True
        self._begun = asyncio.Event()
        self._runner = Runner(
            database=database,
            life=life,
            attempts=Attempts(fleet=fleet, objects=objects, workbench=workbench, run_s_max=run_s_max),
            objects=objects,
            workbench=workbench,
            hub=hub,
            clock=clock,
            wake=self.wake,
            retry_s=poll_s,
        )
        self._others = Others(
            database=database, clock=clock, worker=worker, devices=len(fleet.devices), lease_s=life.patience.lease_s
        )

    @property
    def worker(self) -> str:
        """The name of this process in the database."""
        return self._worker

    @property
    def running(self) -> int:
        """Jobs in work here."""
        return len(self._running)

    @property
    def edit_s(self) -> float:
        """What an edit took lately, in seconds of engine time, here or where one was made."""
        known = (self._runner.edit_s, self._others.edit_s)
        return next((seconds for seconds in known if seconds is not None), _FIRST_GUESS_S)

    @property
    def place_s(self) -> float | None:
        """About how long until the queue moves on by a place, with the devices of all processes. None without any."""
        return self.edit_s / self._others.usable if self._others.usable else None

    @property
    def others(self) -> Others:
        """What is known of the processes that share the database."""
        return self._others

    def runs(self, job: Job) -> bool:
        """Whether the job is in work in this process, as far as its row tells."""
        return job.state is State.PROCESSING and job.worker == self._worker

    def holds(self, job: Job) -> bool:
        """Whether this process works on that attempt at this moment, whatever the row said when it was read."""
        return job.state is State.PROCESSING and job.lease in self._running

    def has_left_fleet(self, job: JobId) -> bool:
        """Whether the edit is done, or failed, and only its end is still to be written."""
        return any(running.job.id == job and running.traces.has_left_fleet for running in self._running.values())

    def progress(self, job: Job) -> Progress | None:
        """The last step of the attempt that is in work, here or in another process. None where it isn't known."""
        if job.state is not State.PROCESSING:
            return None
        running = self._running.get(job.lease)
        return self._others.progress(job.lease) if running is None else running.progress

    def place(self, job: Job) -> Estimate | None:
        """What another process expects of an edit that it has and that has made no step yet; None if nobody knows."""
        is_elsewhere = job.state is State.PROCESSING and job.lease not in self._running
        return self._others.place(job.lease) if is_elsewhere else None

    def takes(self, account: AccountId) -> bool:
        """Whether there is a place for a job of this account, however many others' wait."""
        free = self._running_max - len(self._running)
        return free > 0 and account not in self._served(free)

    def wake(self) -> None:
        """Look for new jobs now."""
        self._news.set()

    def stop(self, job: JobId) -> None:
        """Stop a job whose cancel was just asked for, if it runs here, without waiting for the next heartbeat."""
        for running in list(self._running.values()):
            if running.job.id == job:
                running.stop("cancelled")

    def begin(self) -> None:
        """The fleet has started: tell the other processes of it, and give it jobs. Returns at once."""
        self._begun.set()
        self.wake()

    async def run(self) -> None:
        """Work until `close`. Faults of the database are waited out.

        Without a fleet that is ready, be it for ever, jobs are still taken back, and those that wait too long end.
        """
        lease_s = self._life.patience.lease_s
        await self._survive(lambda: self.recover(after_restart=True))
        if self._fleet.is_ready:
            self.begin()
        try:
            async with asyncio.TaskGroup() as loops:
                beats = [
                    loops.create_task(self._every(lease_s / _HEARTBEATS_PER_LEASE, self.heartbeat)),
                    loops.create_task(self._once_begun(self._report_s, self.report)),
                    loops.create_task(self._every(lease_s / 2, self.recover)),
                    loops.create_task(self._once_begun(self._poll_s, self.share_progress)),
                ]
                while not self._closing:
                    self._news.clear()
                    await self._survive(self.claim)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._poll_s):
                            await self._news.wait()
                # Leases are kept alive until the last job has ended.
                while self._running:
                    await asyncio.wait(self._tasks())
                for beat in beats:
                    beat.cancel()
        finally:
            await self.close()

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Take no new jobs, let running ones end for `drain_s`, then put the rest back into the queue.

        What the database hasn't taken after `CLOSING_S_MAX` more is left: the leases run out.
        """
        loop = asyncio.get_running_loop()
        self._close_within(drain_s)
        if self._doubted is not None:  # what it took is begun, or handed back below
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S_MAX):
                    await self._survive(partial(self._look_after, self._doubted))
        if self._running and drain_s > 0:
            await asyncio.wait(self._tasks(), timeout=drain_s)
        for running in list(self._running.values()):
            running.stop("closing")
        claiming = set() if self._claiming is None else {self._claiming}
        while coming := {*self._tasks(), *(claim for claim in claiming if not claim.done())}:
            if loop.time() >= self._until and not self._running:
                return
            await asyncio.wait(coming, timeout=CLOSING_S_MAX / _LOOKS_WHILE_CLOSING)
            self._give_up_settling()

    def hurry(self) -> None:
        """Cut the drain short, also one that is yet to begin: what runs goes back into the queue now. See `close`."""
        self._close_within(0.0)
        for running in list(self._running.values()):
            running.stop("closing")

    def _close_within(self, drain_s: float) -> None:
        self._until = min(self._until, asyncio.get_running_loop().time() + drain_s + CLOSING_S_MAX)
        self._closing = True
        self.wake()

    def _give_up_settling(self) -> None:
        """Leave endings that the database had `CLOSING_S_MAX` for. One that it takes in the end counts all the same."""
        now = asyncio.get_running_loop().time()
        for running in self._running.values():
            since = running.settling_since
            if since is not None and now >= max(self._until, since + CLOSING_S_MAX) and running.task is not None:
                fault = "the process ends, and the database doesn't answer"
                _log.error("settle_failed", job=running.job.id, attempt=running.job.attempt, fault=fault)
                running.task.cancel()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [running.task for running in self._running.values() if running.task is not None]

    async def claim(self) -> None:
        """Start waiting jobs in the free places, but leave some of these for accounts that may come.

        A fleet that is not ready gets none: another process may have one that is.

        Cancelling it stops no transaction that is under way: what that claims is started, and `close` waits for it.
        """
        if self._doubted is not None:
            await self._look_after(self._doubted)
        self._more_may_wait = True
        while not self._closing and self._fleet.is_ready and (free := self._running_max - len(self._running)) > 0:
            held, served = self._held(), self._served(free)
            # So many that no account, whosever they are, takes more of the places than it may.
            most = max((places for account, places in held.items() if account not in served), default=0)
            limit = math.ceil((_PER_FREE_PLACE * free - most) / (_PER_FREE_PLACE + 1))
            self._claiming = asyncio.create_task(self._take(limit, besides=sorted(served)))
            jobs = await asyncio.shield(self._claiming)
            if len(jobs) < limit:
                self._more_may_wait = bool(served)
                return

    async def _take(self, limit: int, *, besides: Sequence[AccountId]) -> list[Job]:
        at = self._clock.now()

        def claim(tx: Connection) -> list[Job]:
            nonlocal at
            # The moment is the transaction's: one that waited for it would give a lease that is shorter, or over.
            at = self._clock.now()
            return self._life.claim(tx, worker=self._worker, limit=limit, now=at, besides=besides)

        try:
            jobs = await self._answered(self._database.transact(claim, lane="leases"))
        except DatabaseUnavailable as fault:
            self._doubted = at if fault.is_in_doubt else None
            raise
        for job in jobs:
            self._start(job)
        return jobs

    async def _look_after(self, doubted: datetime) -> None:
        """Start what a claim took, if it happened: else those jobs would wait for their leases, and count a fault."""
        look = partial(queries.claimed, worker=self._worker, at=doubted)
        jobs = await self._answered(self._database.read(look))
        self._doubted = None
        for job in jobs:
            if job.lease not in self._running:
                self._start(job)

    def _start(self, job: Job) -> None:
        assert job.lease_until is not None, f"job {job.id} was claimed without a lease"
        running = Running(job=job, lease_until=job.lease_until)
        self._running[job.lease] = running
        running.task = asyncio.create_task(self._see_through(running), name=f"job {job.id}")
        if self._closing:  # `close` came while the claim was under way
            running.stop("closing")

    async def _see_through(self, running: Running) -> None:
        try:
            await self._runner.run(running)
        finally:
            del self._running[running.job.lease]
            if self._more_may_wait:
                self.wake()

    def _held(self) -> Counter[AccountId]:
        return Counter(running.job.account for running in self._running.values())

    def _served(self, free: int) -> set[AccountId]:
        """Accounts that hold their part of the places; the more others come, the smaller it is."""
        return {account for account, places in self._held().items() if places >= _PER_FREE_PLACE * free}

    async def heartbeat(self) -> None:
        """Keep the leases of running jobs alive; stop those that are lost or whose cancel was asked for."""
        leases = list(self._running)
        if not leases:
            return
        try:
            # The moment is the transaction's, as in `claim`.
            renewed = await self._answered(
                self._database.transact(lambda tx: self._life.renew(tx, leases, now=self._clock.now()), lane="leases")
            )
        except DatabaseUnavailable:
            # Others may take these jobs from now on, so the work on them is for nothing.
            for running in list(self._running.values()):
                if running.lease_until <= self._clock.now():
                    running.stop("lost")
            raise
        for lease in leases:
            running_still = self._running.get(lease)
            if running_still is None:
                continue
            job = renewed.get(lease)
            if job is None:
                running_still.stop("lost")
            elif job.cancel_requested_at is not None:
                running_still.stop("cancelled")
            elif job.lease_until is not None:
                running_still.lease_until = job.lease_until
        if len(renewed) < len(leases):
            # One may have gone back into the queue just then: a claim has passed over it while this held its row.
            self.wake()

    async def recover(self, *, after_restart: bool = False) -> None:
        """Take back the jobs of workers that are gone."""
        if not after_restart:
            # Ours first: if the whole machine slept, our own leases have run out as well.
            await self.heartbeat()
        now, worker = self._clock.now(), self._worker if after_restart else None
        more_may_come = True
        while more_may_come:  # one transaction takes only so many
            changed = await self._answered(
                self._database.transact(lambda tx: self._life.recover(tx, now=now, worker=worker), lane="endings")
            )
            for taken in changed:
                job = taken.job
                _log.warning(
                    "job_recovered",
                    job=job.id,
                    state=job.state.value,
                    attempt=job.attempt,
                    worker=taken.worker,
                    code=taken.code,
                    error=job.error,
                )
                self._runner.tell(job, code=taken.code)
            more_may_come = len(changed) >= RECOVERED_PER_TRANSACTION

    async def report(self) -> None:
        """Write down what this process has, if it has devices, and see what all of them have together."""
        await self._answered(self._others.report(await self._own()))

    async def share_progress(self) -> None:
        """Tell how far the edits here are, and see how far those elsewhere are."""
        await self._others.share_progress({lease: self._reached(running) for lease, running in self._running.items()})

    def _reached(self, running: Running) -> Reached:
        progress, place = running.progress, None
        if (progress is None or progress.remaining_s is None) and not running.traces.has_left_fleet:
            with suppress(EngineFault):  # it is being closed
                place = self._fleet.estimate(self._workbench.outline(running.job))
        return Reached(progress=progress, place=place)

    @property
    def _report_s(self) -> float:
        """Without devices there is nothing to write, and what is running elsewhere is known by looking only."""
        return self._life.patience.lease_s / _HEARTBEATS_PER_LEASE if self._fleet.devices else self._poll_s

    async def _own(self) -> Worker | None:
        if not (self._fleet.is_ready and self._fleet.devices):
            return None
        return Worker(
            name=self._worker,
            seen_at=self._clock.now(),
            devices=dict(self._fleet.devices),
            edit_s=self._runner.edit_s,
            profile=await self._fleet.profile(),
        )

    async def _once_begun(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        await self._begun.wait()
        await self._survive(work)
        await self._every(seconds, work)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._survive(work)

    async def _survive(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`; if the database is away, the next round tries again."""
        try:
            await work()
        except DatabaseUnavailable as fault:
            self._outage.met(fault)

    async def _answered(self, asked: Awaitable[_Found]) -> _Found:
        """What the database says to a round. Only here is it known to be back: many a round asks it nothing."""
        found = await asked
        self._outage.over()
        return found
