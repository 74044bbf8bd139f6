"""Jobs are kept while they run, and taken back, whatever becomes of processes, of the database and of time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from rekontext.contract import DeviceState, EditRequest, EngineFault, OnProgress
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import Job, JobLife, Lease, Patience, State
from rekontext.jobs.outage import REMINDER_S
from rekontext.pictures.store import PictureStore
from tests.jobs.office import PHOTO_KEY, Office
from tests.jobs.plant import FakeFleet, Gate, Plant, at_once, submit

pytestmark = pytest.mark.anyio


async def test_whose_edit_was_taken_back_is_in_the_log(office: Office, store: PictureStore) -> None:
    """Its row doesn't say any more which worker died, nor why it waits again."""
    office.start()
    office.clock.advance(60)
    with capture_logs() as lines:
        await Plant(office=office, objects=store, worker="another").dispatcher.recover()
    told = [(line["event"], line.get("worker"), line["code"]) for line in lines]
    assert told == [("job_recovered", "worker", "worker_lost"), ("edit_waits_again", None, "worker_lost")]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_job_that_a_heartbeat_held_while_it_could_be_claimed_is_claimed_afterwards(
    office: Office, store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attempt has just failed; a claim passes over the rows that others look at, and nothing else would wake it."""
    office.patience = Patience(backoff_s=0)
    gate, failing, passed_over = Gate(), threading.Event(), threading.Event()
    fail, renew, claim = JobLife.fail, JobLife.renew, JobLife.claim

    def slow_fail(life: JobLife, tx: Connection, lease: Lease, **how: Any) -> Job:
        job = fail(life, tx, lease, **how)
        failing.set()
        for _ in range(500):  # until the heartbeat waits for this row
            if tx.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one():
                break
            tx.execute(text("SELECT pg_sleep(0.01)"))
        return job

    def slow_renew(life: JobLife, tx: Connection, leases: Sequence[Lease], **how: Any) -> dict[Lease, Job]:
        renewed = renew(life, tx, leases, **how)
        assert passed_over.wait(20)
        return renewed

    def seen_claim(life: JobLife, tx: Connection, **how: Any) -> list[Job]:
        claimed = claim(life, tx, **how)
        if failing.is_set():
            passed_over.set()
        return claimed

    async def broken(request: EditRequest, on_progress: OnProgress) -> None:
        await gate(request, on_progress)
        raise EngineFault("CUDA said no")

    plant = Plant(office=office, objects=store, fleet=FakeFleet(behaviours=[broken, at_once]))
    for name, method in (("fail", slow_fail), ("renew", slow_renew), ("claim", seen_claim)):
        monkeypatch.setattr(JobLife, name, method)
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        gate.open.set()
        assert await asyncio.to_thread(failing.wait, 10)
        await plant.dispatcher.heartbeat()
        assert (await plant.ended(job)).state is State.COMPLETED


async def test_heartbeats_keep_long_edits_alive(plant: Plant) -> None:
    """An edit may take many times its lease."""
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        for _ in range(5):
            plant.office.clock.advance(20)
            await plant.dispatcher.heartbeat()
            assert plant.office.recover() == []
        gate.open.set()
        assert (await plant.ended(job)).state is State.COMPLETED


async def test_a_worker_that_slept_through_its_lease_stops_and_leaves_the_job_alone(plant: Plant) -> None:
    """Another has it by now; its result counts, once."""
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        plant.office.clock.advance(60)
        plant.office.recover()
        plant.office.clock.advance(60)
        [taken] = plant.office.claim("another")
        await plant.dispatcher.heartbeat()
        await asyncio.wait_for(gate.stopped.wait(), 10)
        plant.office.complete(taken.lease)
    done = plant.office.job(job.id)
    assert (done.state, done.attempt) == (State.COMPLETED, 2)
    assert plant.office.money() == (9, 0, 1)


async def test_a_result_that_comes_too_late_is_thrown_away(plant: Plant, store: PictureStore) -> None:
    """The worker finished without having noticed that its lease was lost."""
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        plant.office.clock.advance(60)
        plant.office.recover()
        plant.office.clock.advance(60)
        [taken] = plant.office.claim("another")
        gate.open.set()
        await plant.dispatcher.close(drain_s=10)
        assert plant.office.job(job.id) == taken
        assert [found.key async for found in store.list("outputs")] == []
        plant.office.complete(taken.lease)
    assert plant.office.money() == (9, 0, 1)


@pytest.mark.parametrize("happened", [True, False])
async def test_a_claim_in_doubt_is_looked_after(
    office: Office, store: PictureStore, monkeypatch: pytest.MonkeyPatch, happened: bool
) -> None:
    """If it did happen, its job is begun in that attempt: it waits for no lease, and counts no fault."""
    plant, transact, claims = Plant(office=office, objects=store, poll_s=0.01), office.database.transact, 0

    async def break_off(work: Callable[[Connection], object], *, lane: str = "") -> object:
        nonlocal claims
        claims += (is_claim := getattr(work, "__name__", "") == "claim")
        if not is_claim or claims > 1:
            return await transact(work)
        if happened:
            await transact(work)
        raise DatabaseUnavailable("broke off in the commit", is_in_doubt=True)

    monkeypatch.setattr(office.database, "transact", break_off)
    job = office.accept().job
    async with plant.at_work():
        done = await plant.ended(job)
    assert claims > 1
    assert (done.state, done.attempt, done.faults, len(plant.fleet.requests)) == (State.COMPLETED, 1, 0, 1)


async def test_a_killed_process_finds_its_jobs_again_when_it_restarts(office: Office, store: PictureStore) -> None:
    """Without waiting for their leases: they carry its name."""
    office.patience = Patience(backoff_s=0)
    job = office.start()
    restarted = Plant(office=office, objects=store)
    async with restarted.at_work():
        done = await restarted.ended(job)
    assert (done.state, done.attempt) == (State.COMPLETED, 2)


async def test_a_killed_process_finds_all_its_jobs_again(
    office: Office, store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ran, though one transaction takes few."""
    for module in ("life", "dispatcher"):
        monkeypatch.setattr(f"rekontext.jobs.{module}.RECOVERED_PER_TRANSACTION", 2)
    jobs = [office.start() for _ in range(5)]
    await Plant(office=office, objects=store).dispatcher.recover(after_restart=True)
    assert [office.job(job.id).state for job in jobs] == [State.QUEUED] * 5


@pytest.mark.parametrize("times", [3, 25])
async def test_a_database_that_goes_away_for_a_while_loses_nothing(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The result is kept until it can be written, for as long as a lease lasts at the least."""
    gate, transact, refused = Gate(), plant.office.database.transact, 0

    async def flaky(work: object, *, lane: str = "") -> object:
        nonlocal refused
        if gate.open.is_set() and refused < times:
            refused += 1
            raise DatabaseUnavailable("gone for a moment")
        return await transact(work)  # type: ignore[arg-type]

    plant = Plant(office=plant.office, objects=plant.objects, poll_s=0.01, fleet=FakeFleet(behaviours=[gate]))
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        monkeypatch.setattr(plant.office.database, "transact", flaky)
        gate.open.set()
        done = await plant.ended(job)
    assert (done.state, done.attempt, refused) == (State.COMPLETED, 1, times)


async def test_a_worker_without_a_database_stops_when_its_lease_is_over(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have its jobs by then; the GPU has better things to do."""
    gate = Gate()
    plant.fleet.behaviours = [gate]

    async def away(_work: object, *, lane: str) -> None:
        raise DatabaseUnavailable("gone")

    async with plant.at_work():
        await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        with monkeypatch.context() as broken:
            broken.setattr(plant.office.database, "transact", away)
            with pytest.raises(DatabaseUnavailable):
                await plant.dispatcher.heartbeat()
            assert not gate.stopped.is_set()
            plant.office.clock.advance(31)
            with pytest.raises(DatabaseUnavailable):
                await plant.dispatcher.heartbeat()
            await asyncio.wait_for(gate.stopped.wait(), 10)


class NoDevices(FakeFleet):
    """What a process has that only takes orders."""

    @property
    def devices(self) -> Mapping[str, DeviceState]:
        return {}


async def test_an_outage_is_said_once_where_most_rounds_ask_the_database_nothing(
    office: Office, store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim without a fleet that is ready, or a heartbeat without leases, is no answer of the database."""
    plant = Plant(office=office, objects=store, poll_s=0.001, fleet=NoDevices(is_ready=False))
    looked, read, is_away = asyncio.Semaphore(0), office.database.read, True

    async def flaky(work: object) -> object:
        looked.release()
        if is_away:
            raise DatabaseUnavailable("gone")
        return await read(work)  # type: ignore[arg-type]

    async def look(times: int) -> None:
        async with asyncio.timeout(20):
            for _ in range(times):
                await looked.acquire()

    monkeypatch.setattr(office.database, "read", flaky)
    with capture_logs() as lines:
        async with plant.at_work():
            plant.dispatcher.begin()  # the fleet was ready, once
            await look(5)
            assert [line["event"] for line in lines] == ["database_unavailable"]
            is_away = False
            await look(5)
            office.clock.advance(REMINDER_S)
            await look(5)
        assert [line["event"] for line in lines] == ["database_unavailable", "database_answers_again"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_edits_are_kept_and_ended_however_many_submits_wait(plant: Plant) -> None:
    """For a row that somebody has locked, say: else everyone's leases would run out meanwhile."""
    gate, may_end = Gate(), threading.Event()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        waiting = [asyncio.ensure_future(plant.office.database.transact(lambda tx: may_end.wait(60))) for _ in range(9)]
        plant.office.clock.advance(1)
        await asyncio.wait_for(plant.dispatcher.recover(), 10)  # which renews first
        lease_s = timedelta(seconds=plant.office.patience.lease_s)
        assert plant.office.job(job.id).lease_until == plant.office.clock.now() + lease_s
        gate.open.set()
        assert (await plant.ended(job)).state is State.COMPLETED
        assert not any(each.done() for each in waiting)
        may_end.set()
        assert await asyncio.gather(*waiting) == [True] * 9


async def test_a_machine_that_slept_goes_on_where_it_was(plant: Plant) -> None:
    """After a pause of the whole machine its own leases have run out: it doesn't take its own jobs for abandoned."""
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        plant.office.clock.advance(3600)
        await plant.dispatcher.recover()
        gate.open.set()
        done = await plant.ended(job)
    assert (done.state, done.attempt, done.faults) == (State.COMPLETED, 1, 0)


async def test_leases_begin_when_they_are_written(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waited for the database longer than a lease lasts takes none of its own jobs away."""
    transact, lease_s = plant.office.database.transact, plant.office.patience.lease_s

    async def stalled(work: object, *, lane: str) -> object:
        plant.office.clock.advance(lease_s + 1)
        return await transact(work)  # type: ignore[arg-type]

    gate = Gate()
    plant = Plant(office=plant.office, objects=plant.objects, running_max=1, fleet=FakeFleet(behaviours=[gate]))
    await plant.objects.put(PHOTO_KEY, b"photo", content_type="image/png")
    job = plant.office.accept().job
    with monkeypatch.context() as patch:
        patch.setattr(plant.office.database, "transact", stalled)
        await plant.dispatcher.claim()
    for _ in range(2):
        claimed = plant.office.job(job.id)
        assert claimed.lease_until == plant.office.clock.now() + timedelta(seconds=lease_s)
        with monkeypatch.context() as patch:
            patch.setattr(plant.office.database, "transact", stalled)
            await plant.dispatcher.heartbeat()
    assert plant.office.recover() == []
    gate.open.set()
    await plant.dispatcher.close(drain_s=10)
    assert plant.office.job(job.id).state is State.COMPLETED
