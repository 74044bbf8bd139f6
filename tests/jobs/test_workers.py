"""What processes with devices write of themselves, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, update
from structlog.testing import capture_logs

from rekontext.contract import DeviceState, EditRequest, Estimate, OnProgress, Progress
from rekontext.database import Database, DatabaseUnavailable, JobId, tables
from rekontext.jobs import Lease, workers
from rekontext.jobs.workers import Reached, Worker
from rekontext.pictures.store import open_store
from rekontext.sources import SystemClock
from tests.fakes import FakeClock
from tests.jobs.office import Office
from tests.jobs.plant import FakeFleet, Gate, Plant


def worker(name: str, clock: FakeClock, **devices: DeviceState) -> Worker:
    return Worker(name=name, seen_at=clock.now(), devices=devices, edit_s=None, profile={"of": name})


def test_who_was_seen_lately_is_alive_and_the_last_is_remembered(database: Database, clock: FakeClock) -> None:
    """Without it a process that has no device couldn't accept edits while nobody is up."""
    began = clock.now()

    def work(tx: Connection) -> None:
        assert workers.latest(tx) is None
        workers.report(tx, worker("b", clock, gpu="ready"))
        clock.advance(10)
        workers.report(tx, worker("a", clock, gpu="ready", other="failed"))
        workers.report(tx, worker("a", clock, gpu="asleep", other="failed"))
        both = workers.alive(tx, since=began - timedelta(seconds=1))
        assert [(each.name, each.usable) for each in both] == [("a", 1), ("b", 1)]
        assert [each.name for each in workers.alive(tx, since=began)] == ["a"]
        assert workers.latest(tx) == worker("a", clock, gpu="asleep", other="failed")
        assert workers.forget(tx, clock.now()) == 1
        assert workers.latest(tx) == worker("a", clock, gpu="asleep", other="failed")

    database.transact_sync(work)


def test_progress_is_known_of_processes_that_are_alive(database: Database, clock: FakeClock) -> None:
    """Each tells of its own edits, by job and attempt; what one that is gone has told says nothing any more."""
    began = clock.now()
    place = Estimate(position=3, wait_s=2.5, finish_s=4.0)
    prepared = Progress(step=0, steps=4, remaining_s=None)
    first = {
        Lease(job=JobId("a"), attempt=1): Reached(progress=prepared, place=place),
        Lease(job=JobId("d"), attempt=1): Reached(progress=None, place=place),
        Lease(job=JobId("e"), attempt=1): Reached(progress=None, place=None),
    }
    made = Reached(progress=Progress(step=3, steps=4, remaining_s=1.5), place=None)
    second = {Lease(job=JobId(job), attempt=2): made for job in "bc"}

    def work(tx: Connection) -> None:
        assert not workers.tell_progress(tx, "one", first)  # it hasn't said that it is there
        workers.report(tx, worker("one", clock, gpu="ready"))
        clock.advance(10)
        workers.report(tx, worker("two", clock, gpu="ready"))
        assert workers.tell_progress(tx, "one", first)
        assert workers.tell_progress(tx, "two", second)
        workers.report(tx, worker("two", clock, gpu="ready"))  # which takes nothing back
        before = began - timedelta(seconds=1)
        assert workers.progress(tx, besides="front", since=before) == {**first, **second}
        assert workers.progress(tx, besides="two", since=before) == first
        assert workers.progress(tx, besides="front", since=began) == second
        assert workers.tell_progress(tx, "two", {})
        assert workers.progress(tx, besides="front", since=before) == first

    database.transact_sync(work)


def test_progress_of_another_version_is_passed_over(database: Database, clock: FakeClock) -> None:
    """It tells what it can; what isn't understood must not end a process that runs edits."""
    known = {"attempt": 1, "step": 2, "steps": 4, "remaining_s": 0.5}
    told: list[object] = [
        {"a": {**known, "later": "invented"}},
        {"b": {"attempt": 1, "step": 2}},
        {"b": None},
        ["b"],
        {"b": {**known, "step": "two"}},
        {"b": {**known, "position": 1}},
    ]

    def work(tx: Connection) -> None:
        before = clock.now() - timedelta(seconds=1)
        for number, each in enumerate(told):
            name = f"worker {number}"
            workers.report(tx, worker(name, clock, gpu="ready"))
            tx.execute(update(tables.workers).where(tables.workers.c.name == name).values(progress=each))
        assert workers.progress(tx, besides="", since=before) == {
            Lease(job=JobId("a"), attempt=1): Reached(progress=Progress(step=2, steps=4, remaining_s=0.5), place=None)
        }

    database.transact_sync(work)


@dataclass(kw_only=True)
class Without(FakeFleet):
    """No device here."""

    @property
    def devices(self) -> Mapping[str, DeviceState]:
        return {}


@pytest.mark.anyio
@pytest.mark.parametrize("fleet", [FakeFleet, Without])
async def test_a_clock_that_is_wrong_is_told_of_once(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fleet: type[FakeFleet]
) -> None:
    """One that is ahead takes the others' edits away, one that is behind isn't seen; and again when it is so again."""
    here = Plant(office=office, objects=open_store(f"file://{tmp_path}/objects"), worker="here", fleet=fleet())

    async def logged(ahead_s: float) -> list[float]:
        shared = office.clock.now() - timedelta(seconds=ahead_s)
        monkeypatch.setattr(workers, "shared_time", lambda _tx: shared)
        with capture_logs() as lines:
            await here.dispatcher.report()
            await here.dispatcher.report()
        assert {(line["event"], line["worker"]) for line in lines} <= {("clocks_differ", "here")}
        return [line["ahead_s"] for line in lines]

    told = [await logged(ahead_s) for ahead_s in (4, 60, 61, 0, -4, -60, -61)]
    assert told == [[], [60], [], [], [], [-60], []]


def test_the_clock_that_all_share_is_the_database_s(database: Database) -> None:
    """Of SQLite there is none besides the machine's own."""
    shared = database.read_sync(workers.shared_time)
    if database.dialect == "sqlite":
        assert shared is None
    else:
        assert shared is not None
        assert abs(shared - SystemClock().now()) < timedelta(minutes=1)


@pytest.mark.anyio
async def test_processes_reckon_with_each_others_devices(office: Office, tmp_path: Path) -> None:
    """How fast the queue moves on is what all of them do together, seen from each, and unknown while there is none."""
    store = open_store(f"file://{tmp_path}/objects")
    one, other = (Plant(office=office, objects=store, worker=name) for name in ("one", "other"))
    front = Plant(office=office, objects=store, worker="front", fleet=Without())
    assert front.dispatcher.place_s is None
    for plant in (one, other, front):
        await plant.dispatcher.report()
    await one.dispatcher.report()
    guessed_s = one.dispatcher.edit_s
    assert one.dispatcher.place_s == front.dispatcher.place_s == guessed_s / 2
    async with one.at_work():
        await one.ended(office.accept().job)
        await one.dispatcher.report()
    await front.dispatcher.report()
    assert front.dispatcher.place_s == one.dispatcher.edit_s / 2 == 0.25
    office.clock.advance(office.patience.lease_s + 1)
    await front.dispatcher.report()
    assert front.dispatcher.place_s is None
    await other.dispatcher.report()
    await front.dispatcher.report()
    assert front.dispatcher.place_s == other.dispatcher.edit_s


@pytest.mark.anyio
async def test_a_process_without_devices_reckons_with_edits_that_run_elsewhere(office: Office, tmp_path: Path) -> None:
    """A device takes many at once, which nobody who comes after them is done before. Those with devices see theirs."""
    store = open_store(f"file://{tmp_path}/objects")
    gate = Gate()
    back = Plant(office=office, objects=store, worker="back", fleet=FakeFleet(behaviours=[gate]), running_max=6)
    front = Plant(office=office, objects=store, worker="front", fleet=Without(), running_max=0, poll_s=0.01)
    for _ in range(3):
        office.accept()
    async with back.at_work(), front.at_work():
        async with asyncio.timeout(20):
            while front.dispatcher.others.served_first != 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await back.dispatcher.report()
        assert back.dispatcher.others.served_first == 0
        another = Plant(office=office, objects=store, worker="another")
        await another.dispatcher.report()
        await front.dispatcher.report()
        assert front.dispatcher.others.served_first == 2  # on two devices, one that runs alone keeps nobody waiting
        gate.open.set()


@pytest.mark.anyio
async def test_a_process_tells_how_far_its_edits_are_and_sees_those_of_others(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that is left goes on between two looks, and an edit that has ended is told of no more."""
    store = open_store(f"file://{tmp_path}/objects")
    half_way, go_on = asyncio.Event(), asyncio.Event()

    async def behave(request: EditRequest, on_progress: OnProgress) -> None:
        on_progress(Progress(step=2, steps=4, remaining_s=1000.0))
        half_way.set()
        await go_on.wait()

    async def later_by_hand() -> None:
        """Its own first round, begun before the edit, may otherwise be written down after ours."""

    back = Plant(office=office, objects=store, worker="back", fleet=FakeFleet(behaviours=[behave]))
    monkeypatch.setattr(back.dispatcher, "share_progress", later_by_hand)
    front = Plant(office=office, objects=store, worker="front", fleet=Without(), running_max=0)
    job = office.accept().job
    async with asyncio.timeout(20), back.at_work():
        await half_way.wait()
        monkeypatch.undo()
        running = await front.desk.job(job.id, account=None)
        lease = running.lease
        for plant in (back, back, front, front):  # in the first round nobody knows of anybody
            await plant.dispatcher.report()
            await plant.dispatcher.share_progress()
        seen = front.dispatcher.others.progress(lease)
        assert seen is not None
        assert (seen.step, seen.steps) == (2, 4)
        for plant in (back, front):
            progress = plant.dispatcher.progress(running)
            assert progress is not None
            assert (progress.step, plant.dispatcher.runs(running)) == (2, plant is back)
        assert back.dispatcher.others.progress(lease) is None  # its own
        await asyncio.sleep(0.01)
        await front.dispatcher.share_progress()
        later = front.dispatcher.others.progress(lease)
        assert later is not None
        assert 980 < (later.remaining_s or 0) < (seen.remaining_s or 0) <= 1000
        go_on.set()
        await back.ended(job)
        await back.dispatcher.share_progress()
        await front.dispatcher.share_progress()
        assert front.dispatcher.others.progress(lease) is None


@dataclass(kw_only=True)
class Busy(FakeFleet):
    """Others go before whatever comes."""

    def estimate(self, request: EditRequest) -> Estimate:
        return Estimate(position=3, wait_s=500.0, finish_s=1000.0)


@pytest.mark.anyio
async def test_a_process_tells_when_what_it_has_not_begun_will_be_done(office: Office, tmp_path: Path) -> None:
    """A device takes many edits at once: those that wait for it have no step to tell the others of."""
    store = open_store(f"file://{tmp_path}/objects")
    taken, go_on = asyncio.Event(), asyncio.Event()

    async def behave(_request: EditRequest, _on_progress: OnProgress) -> None:
        taken.set()
        await go_on.wait()

    back = Plant(office=office, objects=store, worker="back", fleet=Busy(behaviours=[behave]))
    front = Plant(office=office, objects=store, worker="front", fleet=Without(), running_max=0)
    job = office.accept().job
    async with asyncio.timeout(20), back.at_work():
        await taken.wait()
        waiting = await front.desk.job(job.id, account=None)
        for plant in (back, back, front, front):  # in the first round nobody knows of anybody
            await plant.dispatcher.report()
            await plant.dispatcher.share_progress()
        place = front.dispatcher.place(waiting)
        assert place is not None
        assert (place.position, front.dispatcher.progress(waiting)) == (3, None)
        assert 480 < place.wait_s < 500
        assert 980 < place.finish_s < 1000
        assert back.dispatcher.place(waiting) is None  # its fleet says so itself
        go_on.set()
        await back.ended(job)


@pytest.mark.anyio
async def test_a_process_alone_looks_for_no_others(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one whose edits are no further than they were writes nothing: most services are one process."""
    store = open_store(f"file://{tmp_path}/objects")
    alone = Plant(office=office, objects=store)
    await alone.dispatcher.report()
    await alone.dispatcher.share_progress()

    async def refused(_: object, *, lane: str = "") -> object:
        raise DatabaseUnavailable("it was asked")

    monkeypatch.setattr(office.database, "transact", refused)
    monkeypatch.setattr(office.database, "read", refused)
    await alone.dispatcher.share_progress()
