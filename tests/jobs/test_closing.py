"""A process that ends gives back what it holds, and waits for nothing that does not come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from rekontext.database import DatabaseUnavailable
from rekontext.jobs import Job, State
from rekontext.pictures.store import PictureStore
from tests.jobs.office import Office
from tests.jobs.plant import FakeFleet, Gate, Plant, at_once, submit

pytestmark = pytest.mark.anyio


async def test_closing_hands_running_jobs_back(plant: Plant, store: PictureStore) -> None:
    """The next process runs them at once, and no fault is counted."""
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
    left = plant.office.job(job.id)
    assert (left.state, left.faults, gate.stopped.is_set()) == (State.QUEUED, 0, True)
    after = Plant(office=plant.office, objects=store, worker="restarted")
    async with after.at_work():
        assert (await after.ended(job)).state is State.COMPLETED


async def test_closing_may_wait_for_running_jobs(plant: Plant) -> None:
    """A drain lets them end, and takes no new ones."""
    gate = Gate()
    plant.fleet.behaviours = [gate, at_once]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        closing = asyncio.create_task(plant.dispatcher.close(drain_s=10))
        await asyncio.sleep(0)
        late = await submit(plant)
        gate.open.set()
        await asyncio.wait_for(closing, 10)
    assert plant.office.job(job.id).state is State.COMPLETED
    assert plant.office.job(late.id).state is State.QUEUED


async def test_what_a_claim_in_doubt_took_is_handed_back_by_a_close(
    office: Office, store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orderly end counts no fault, and nobody waits for the lease of what was never begun."""
    plant, transact, broke = Plant(office=office, objects=store), office.database.transact, asyncio.Event()

    async def break_off(work: Callable[[Connection], object], *, lane: str = "") -> object:
        done = await transact(work)
        if getattr(work, "__name__", "") != "claim":
            return done
        broke.set()
        raise DatabaseUnavailable("broke off in the commit", is_in_doubt=True)

    monkeypatch.setattr(office.database, "transact", break_off)
    job = office.accept().job
    running = asyncio.create_task(plant.dispatcher.run())
    await asyncio.wait_for(broke.wait(), 10)
    while plant.dispatcher._doubted is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.wait_for(plant.dispatcher.close(), 10)
    found = office.job(job.id)
    assert (found.state, found.attempt, found.faults) == (State.QUEUED, 1, 0)
    await asyncio.wait_for(running, 10)


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_job_that_is_claimed_while_closing_is_handed_back_at_once(plant: Plant, is_cancelled: bool) -> None:
    """It was never begun, and nobody has to wait for its lease; not even if the loop is cancelled meanwhile."""
    claim, claiming, may_go_on = plant.office.database.transact, asyncio.Event(), asyncio.Event()

    async def slow(work: object, *, lane: str) -> object:
        done: object = await claim(work)  # type: ignore[arg-type]
        if isinstance(done, list) and any(isinstance(each, Job) for each in done) and not may_go_on.is_set():
            claiming.set()
            await may_go_on.wait()
        return done

    job = plant.office.accept().job
    running = asyncio.create_task(plant.dispatcher.run())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plant.office.database, "transact", slow)
        await asyncio.wait_for(claiming.wait(), 10)
        closing = asyncio.create_task(plant.dispatcher.close())
        await asyncio.sleep(0)
        if is_cancelled:
            running.cancel()
        may_go_on.set()
        await asyncio.wait_for(closing, 10)
        left = plant.office.job(job.id)
        await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 10)
    assert (left.state, left.attempt, left.faults) == (State.QUEUED, 1, 0)
    assert plant.fleet.requests == []


@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize("drain_s", [0, 0.1])
async def test_a_closing_dispatcher_waits_for_no_database_for_long(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, is_silent: bool, drain_s: float
) -> None:
    """Somebody wants the process to go: the lease runs out by itself, and another runs the job."""
    monkeypatch.setattr("rekontext.jobs.dispatcher.CLOSING_S_MAX", 0.1)
    gate, tried = Gate(), 0
    plant = Plant(
        office=plant.office,
        objects=plant.objects,
        poll_s=0.001,
        fleet=FakeFleet(behaviours=[gate]),
        running_max=1,  # full: a claim would be what waits for ever
    )

    async def away(_work: object, *, lane: str) -> None:
        nonlocal tried
        tried += 1
        if is_silent:
            await asyncio.Event().wait()
        raise DatabaseUnavailable("gone")

    job = plant.office.accept().job
    async with plant.at_work():
        await asyncio.wait_for(gate.begun.wait(), 10)
        with monkeypatch.context() as broken:
            broken.setattr(plant.office.database, "transact", away)
            if drain_s:
                gate.open.set()
            await asyncio.wait_for(plant.dispatcher.close(drain_s=drain_s), 10)
    assert tried > 0
    assert plant.office.job(job.id).state is State.PROCESSING


async def test_a_closing_dispatcher_waits_for_no_claim_for_long(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that swallows every word keeps no process alive."""
    monkeypatch.setattr("rekontext.jobs.dispatcher.CLOSING_S_MAX", 0.1)
    asked = asyncio.Event()

    async def silent(_work: object, *, lane: str) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(plant.office.database, "transact", silent)
    claiming = asyncio.create_task(plant.dispatcher.claim())
    await asyncio.wait_for(asked.wait(), 10)
    for _ in range(2):
        await asyncio.wait_for(plant.dispatcher.close(), 10)
    claiming.cancel()
    await asyncio.wait([claiming])
