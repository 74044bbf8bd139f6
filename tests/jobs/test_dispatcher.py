"""Jobs are run, kept alive, stopped, tried again and settled, whatever the fleet and the database do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from rekontext.contract import DeviceState, EditRefused, EditRequest, EngineFault, OnProgress, Progress
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import Job, JobLife, Lease, Patience, State, input_key
from rekontext.jobs.outage import REMINDER_S
from rekontext.pictures.store import PictureStore, open_store
from tests.jobs.office import ALICE, BOB, PHOTO_KEY, Office
from tests.jobs.plant import FakeFleet, Gate, Plant, at_once

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return open_store(f"file://{tmp_path}/objects")


@pytest.fixture
def plant(office: Office, store: PictureStore) -> Plant:
    return Plant(office=office, objects=store)


async def submit(plant: Plant) -> Job:
    return (await plant.desk.submit(plant.office.order())).job


def raising(fault: Exception) -> object:
    async def behave(_request: EditRequest, _on_progress: OnProgress) -> None:
        raise fault

    return behave


async def test_a_submitted_job_is_run_and_its_picture_stored(plant: Plant, store: PictureStore) -> None:
    """From order to charged output, without a poll."""
    order = plant.office.order()
    order = plant.office.order(input_key=input_key(order.job))
    await store.put(order.input_key, b"photo", content_type="image/png")
    async with plant.at_work():
        accepted = await plant.desk.submit(order)
        done = await plant.ended(accepted.job)
    assert done.state is State.COMPLETED
    assert plant.workbench.photos == [b"photo"]
    assert done.outputs is not None
    [output] = done.outputs
    assert output.key == f"outputs/{done.id}/1/0.png"
    assert await store.get(output.key) == b"picture 7"
    assert (output.bytes, output.content_type, output.width) == (9, "image/png", 8)
    assert done.made == {
        "seed": 7,
        "steps": 4,
        "passes": 4,
        "acceleration": "none",
        "model": "fake",
        "is_mini": True,
    }
    assert (done.inference_s, done.timings) == (0.5, {"wait": 0.0, "denoise": 0.25})
    assert plant.office.money() == (9, 0, 1)


async def test_a_fleet_that_is_not_ready_gets_no_jobs(plant: Plant) -> None:
    """Another process may have one that is; and one that is at its end would use up their tries."""
    plant.fleet.is_ready = False
    job = await submit(plant)
    await plant.dispatcher.claim()
    assert plant.dispatcher.running == 0
    plant.fleet.is_ready = True
    async with plant.at_work():
        assert (await plant.ended(job)).state is State.COMPLETED


async def test_no_more_jobs_run_than_may(plant: Plant) -> None:
    """The others wait in the database, not in memory, and start as places become free."""
    gates = [Gate(), Gate(), Gate()]
    plant.fleet.behaviours = [*gates]
    async with plant.at_work():
        jobs = [await submit(plant) for _ in range(3)]
        await asyncio.wait_for(asyncio.gather(gates[0].begun.wait(), gates[1].begun.wait()), 10)
        assert plant.dispatcher.running == 2
        assert plant.office.job(jobs[2].id).state is State.QUEUED
        gates[0].open.set()
        await asyncio.wait_for(gates[2].begun.wait(), 10)
        for gate in gates:
            gate.open.set()
        for job in jobs:
            assert (await plant.ended(job)).state is State.COMPLETED


async def test_progress_is_that_of_the_attempt_in_work(plant: Plant) -> None:
    """One that lost its lease, or has ended, no longer says how far the job is; a new one has not begun to."""
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        running = plant.office.job(job.id)
        assert plant.dispatcher.progress(running) == Progress(step=0, steps=4, remaining_s=None)
        for other in (replace(running, attempt=2), replace(running, state=State.QUEUED)):
            assert plant.dispatcher.progress(other) is None
        gate.open.set()
        done = await plant.ended(job)
    assert plant.dispatcher.progress(done) is None
    assert plant.dispatcher.progress(running) is None


async def test_no_account_takes_all_the_places(office: Office, store: PictureStore) -> None:
    """However much it orders, another's edit is handed to the fleet at once, and the scheduler there decides."""
    office.open_account(BOB)
    plant = Plant(office=office, objects=store, running_max=6)
    gates = [Gate() for _ in range(9)]
    plant.fleet.behaviours = [*gates]
    async with plant.at_work():
        many = [await submit(plant) for _ in range(8)]
        await asyncio.wait_for(gates[3].begun.wait(), 10)
        assert (plant.dispatcher.takes(ALICE), plant.dispatcher.takes(BOB)) == (False, True)
        one = (await plant.desk.submit(office.order(BOB))).job
        await asyncio.wait_for(gates[4].begun.wait(), 10)
        assert plant.fleet.requests[4].id == one.id
        assert [office.job(job.id).state for job in many] == [State.PROCESSING] * 4 + [State.QUEUED] * 4
        for gate in gates:
            gate.open.set()
        for job in (*many, one):
            assert (await plant.ended(job)).state is State.COMPLETED


@pytest.mark.parametrize(("places", "held"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (16, 11)])
async def test_an_account_alone_leaves_a_third_of_the_places(
    office: Office, store: PictureStore, places: int, held: int
) -> None:
    """But of one or two it may take all. What it has waiting goes on as its own places become free."""
    office.open_account(BOB, edits=20)
    plant = Plant(office=office, objects=store, running_max=places)
    gates = [Gate() for _ in range(20)]
    plant.fleet.behaviours = [*gates]
    async with plant.at_work():
        jobs = [(await plant.desk.submit(office.order(BOB))).job for _ in range(20)]
        await asyncio.wait_for(gates[held - 1].begun.wait(), 10)
        await plant.dispatcher.claim()
        assert (plant.dispatcher.running, plant.dispatcher.takes(BOB)) == (held, False)
        for gate in gates:
            gate.open.set()
        for job in jobs:
            assert (await plant.ended(job)).state is State.COMPLETED


async def test_bad_input_fails_with_the_engines_words_and_is_not_tried_again(plant: Plant) -> None:
    """The caller reads what is allowed instead."""
    plant.fleet.behaviours = [raising(EditRefused("the photo is all sky")), at_once]  # type: ignore[list-item]
    async with plant.at_work():
        failed = await plant.ended(await submit(plant))
    assert (failed.state, failed.error_code, failed.error) == (State.FAILED, "edit_refused", "the photo is all sky")
    assert failed.attempt == 1
    assert plant.office.money() == (10, 0, 0)


@pytest.mark.parametrize("fault", [EngineFault("CUDA said no"), RuntimeError("a bug"), OSError("disk")])
async def test_a_fault_of_ours_is_tried_again_and_kept_to_ourselves(plant: Plant, fault: Exception) -> None:
    """The caller sees a success, or after all tries a sentence without our internals."""
    plant.office.patience = Patience(faults_max=2, backoff_s=0)
    plant = Plant(office=plant.office, objects=plant.objects)
    plant.fleet.behaviours = [raising(fault), at_once]  # type: ignore[list-item]
    async with plant.at_work():
        done = await plant.ended(await submit(plant))
        assert (done.state, done.attempt, done.faults) == (State.COMPLETED, 2, 1)
        plant.fleet.behaviours = [raising(fault)]  # type: ignore[list-item]
        failed = await plant.ended(await submit(plant))
    assert (failed.state, failed.error) == (State.FAILED, "The edit failed through a fault of ours.")
    assert plant.office.money() == (9, 0, 1)


async def test_a_missing_input_picture_is_a_fault_of_ours(plant: Plant) -> None:
    """It was there when the order was accepted."""
    plant.office.patience = Patience(faults_max=1)
    plant = Plant(office=plant.office, objects=plant.objects)
    async with plant.at_work():
        accepted = await plant.desk.submit(plant.office.order(input_key="inputs/none"))
        assert (await plant.ended(accepted.job)).error_code == "engine_fault"


async def test_an_edit_that_never_ends_is_stopped(office: Office, store: PictureStore) -> None:
    """Every attempt has a time limit."""
    office.patience = Patience(faults_max=1)
    gate = Gate()
    plant = Plant(office=office, objects=store, run_s_max=0.5, fleet=FakeFleet(behaviours=[gate]))
    async with plant.at_work():
        failed = await plant.ended(await submit(plant))
    assert (failed.error_code, gate.stopped.is_set()) == ("edit_timeout", True)
    assert failed.error == "The edit was not done within 0.5 s."


async def test_why_an_attempt_failed_is_in_the_log_though_the_edit_is_tried_again(
    office: Office, store: PictureStore
) -> None:
    """The job has no error then; and whoever logs nothing below warnings hears of it too."""
    office.patience = Patience(faults_max=2, backoff_s=0)
    plant = Plant(office=office, objects=store, run_s_max=0.5, fleet=FakeFleet(behaviours=[Gate(), at_once]))
    with capture_logs() as lines:
        async with plant.at_work():
            done = await plant.ended(await submit(plant))
    assert (done.state, done.attempt) == (State.COMPLETED, 2)
    told = [(line["event"], line["log_level"], line["attempt"], line.get("code")) for line in lines]
    assert told == [
        ("edit_failed", "error", 1, "edit_timeout"),
        ("edit_waits_again", "info", 1, "edit_timeout"),
        ("edit_ended", "info", 2, None),
    ]


async def test_whose_edit_was_taken_back_is_in_the_log(office: Office, store: PictureStore) -> None:
    """Its row doesn't say any more which worker died, nor why it waits again."""
    office.start()
    office.clock.advance(60)
    with capture_logs() as lines:
        await Plant(office=office, objects=store, worker="another").dispatcher.recover()
    told = [(line["event"], line.get("worker"), line["code"]) for line in lines]
    assert told == [("job_recovered", "worker", "worker_lost"), ("edit_waits_again", None, "worker_lost")]


async def test_cancelling_a_running_job_stops_it_at_once(plant: Plant) -> None:
    """Without waiting for a heartbeat; the place is free for the next."""
    gate = Gate()
    plant.fleet.behaviours = [gate, at_once]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        await plant.desk.cancel(job.id, account=job.account)
        ended = await plant.ended(job)
        assert (ended.state, gate.stopped.is_set()) == (State.CANCELLED, True)
        assert (await plant.ended(await submit(plant))).state is State.COMPLETED
    assert plant.office.money() == (9, 0, 1)


async def test_a_cancel_from_another_process_arrives_with_the_heartbeat(plant: Plant) -> None:
    """The database carries it."""
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        job = await submit(plant)
        await asyncio.wait_for(gate.begun.wait(), 10)
        plant.office.cancel(job.id)
        await plant.dispatcher.heartbeat()
        assert (await plant.ended(job)).state is State.CANCELLED
        assert gate.stopped.is_set()


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


async def test_two_dispatchers_share_the_work(office: Office, store: PictureStore) -> None:
    """Each job is run once, by one of them."""
    office.bounds = type(office.bounds)(in_flight_max=100)
    one = Plant(office=office, objects=store, worker="one", poll_s=0.01)
    two = Plant(office=office, objects=store, worker="two", poll_s=0.01)
    async with one.at_work(), two.at_work():
        jobs = [(await one.desk.submit(office.order())).job for _ in range(10)]
        done = [await one.ended(job) for job in jobs]
    assert {(job.state, job.attempt) for job in done} == {(State.COMPLETED, 1)}
    assert len(one.fleet.requests) + len(two.fleet.requests) == 10
    assert office.money() == (0, 0, 10)
