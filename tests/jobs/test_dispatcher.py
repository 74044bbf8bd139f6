"""Jobs are run, stopped, tried again and settled, whatever the fleet does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from rekontext.contract import EditRefused, EngineFault, Progress
from rekontext.jobs import Patience, State, input_key
from rekontext.pictures.store import PictureStore
from tests.jobs.office import ALICE, BOB, Office
from tests.jobs.plant import FakeFleet, Gate, Plant, at_once, raising, submit

pytestmark = pytest.mark.anyio


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


async def test_whatever_an_engine_s_words_are_the_job_ends_with_them(plant: Plant) -> None:
    """They may have a stranger's in them: no database holds half a character, or NUL."""
    plant.fleet.behaviours = [raising(EditRefused("a\ud800b\0c" + "x" * 5000))]  # type: ignore[list-item]
    async with plant.at_work():
        failed = await plant.ended(await submit(plant))
    assert failed.error is not None
    assert (failed.error[:9], len(failed.error), failed.attempt) == ("a\\ud800bc", 1002, 1)


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


async def test_an_edit_of_several_pictures_has_that_time_for_each(office: Office, store: PictureStore) -> None:
    """It takes as many times as long."""
    office.patience = Patience(faults_max=1)
    plant = Plant(office=office, objects=store, run_s_max=0.2, fleet=FakeFleet(behaviours=[Gate()]))
    order = office.order()
    async with plant.at_work():
        began_s = asyncio.get_running_loop().time()
        accepted = await plant.desk.submit(replace(order, parameters={**order.parameters, "num_images": 3}))
        failed = await plant.ended(accepted.job)
        took_s = asyncio.get_running_loop().time() - began_s
    assert (failed.error_code, failed.error) == ("edit_timeout", "The edit was not done within 0.6 s.")
    assert took_s >= 0.6


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
