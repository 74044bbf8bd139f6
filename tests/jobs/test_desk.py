"""What a client sees of its job: an end to wait for, a place in the queue, events that can be taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image
from sqlalchemy import Connection

from rekontext.contract import EditRequest, Estimate, OnProgress, Preview, Progress
from rekontext.database import AccountId, DatabaseUnavailable, JobId
from rekontext.jobs import (
    Accepted,
    Desk,
    Event,
    EventHub,
    IdempotencyKeyReused,
    Job,
    JobUnknown,
    Lease,
    Standing,
    State,
    events,
)
from rekontext.jobs.lookout import Places
from rekontext.pictures.store import open_store
from tests.jobs.office import ALICE, BOB, Office
from tests.jobs.plant import Gate, Plant, at_once

pytestmark = pytest.mark.anyio
Found = TypeVar("Found")
JOB = JobId("job")


@pytest.fixture
def plant(office: Office, tmp_path: Path) -> Plant:
    return Plant(office=office, objects=open_store(f"file://{tmp_path}/objects"), running_max=1)


class OthersSaid:
    """The dispatcher of a process that runs nothing itself, and what it has seen of the others' edits."""

    def __init__(self) -> None:
        self.said: dict[Lease, Progress] = {}
        self.places: dict[Lease, Estimate] = {}

    def runs(self, job: Job) -> bool:
        return False

    def holds(self, job: Job) -> bool:
        return False

    def progress(self, job: Job) -> Progress | None:
        return self.said.get(job.lease)

    def place(self, job: Job) -> Estimate | None:
        return self.places.get(job.lease)

    def wake(self) -> None:
        return

    def stop(self, job: JobId) -> None:
        return


def the_end(job: JobId) -> Job:
    """A completed job, as far as the hub looks at it."""
    row: dict[str, Any] = dict.fromkeys((each.name for each in fields(Job)), None)
    return Job(**row | {"id": job, "state": State.COMPLETED})


async def all_of(coming: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(20):
        return [event async for event in coming]


async def test_waiting_ends_with_the_job(plant: Plant) -> None:
    """Woken by the end, not by a poll."""
    async with plant.at_work():
        accepted = await plant.desk.submit(plant.office.order())
        done = await plant.desk.wait(accepted.job.id, account=ALICE, timeout_s=20)
    assert done.state is State.COMPLETED


async def test_waiting_for_a_job_that_is_known_asks_no_database(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submit has just returned it, and its end is told in memory."""
    looked = Flaky(plant.office, looks=0)
    gate = Gate()
    plant.fleet.behaviours = [gate]
    async with plant.at_work():
        accepted = await plant.desk.submit(plant.office.order())
        await asyncio.wait_for(gate.begun.wait(), 10)
        monkeypatch.setattr(plant.office.database, "read", looked)
        waiting = asyncio.create_task(plant.desk.wait(accepted.job.id, account=ALICE, timeout_s=20, known=accepted.job))
        await asyncio.sleep(0)
        gate.open.set()
        assert (await waiting).state is State.COMPLETED
    assert not looked.refused.is_set()


class Flaky:
    """A database's `read` that answers so many looks, then fails until it is back."""

    def __init__(self, office: Office, *, looks: int) -> None:
        self._read = office.database.read
        self._looks = looks
        self.refused = asyncio.Event()
        self.is_back = False

    async def __call__(self, work: Callable[[Connection], object]) -> object:
        if self._looks > 0 or self.is_back:
            self._looks -= 1
            return await self._read(work)
        self.refused.set()
        raise DatabaseUnavailable("gone for a moment")


async def test_waiting_outlasts_a_database_that_is_away(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is safe and goes on: a caller told otherwise would order, and pay for, another."""
    here = Plant(office=plant.office, objects=plant.objects, poll_s=0.001)
    job, flaky = plant.office.start(), Flaky(plant.office, looks=1)
    monkeypatch.setattr(here.office.database, "read", flaky)
    waiting = asyncio.create_task(here.desk.wait(job.id, account=ALICE, timeout_s=20))
    await asyncio.wait_for(flaky.refused.wait(), 10)
    plant.office.complete(job.lease)
    flaky.is_back = True
    assert (await waiting).state is State.COMPLETED


async def test_listening_outlasts_it_too(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream goes on where it was."""
    here = Plant(office=plant.office, objects=plant.objects, poll_s=0.001)
    job, flaky = plant.office.start(), Flaky(plant.office, looks=1)
    monkeypatch.setattr(here.office.database, "read", flaky)
    listening = asyncio.create_task(all_of(here.desk.listen(job.id, account=ALICE)))
    await asyncio.wait_for(flaky.refused.wait(), 10)
    plant.office.complete(job.lease)
    flaky.is_back = True
    assert [event.kind for event in await listening] == ["ended"]


async def test_waiting_gives_up_and_the_job_goes_on(plant: Plant) -> None:
    """The answer is the job as it is."""
    accepted = await plant.desk.submit(plant.office.order())
    found = await plant.desk.wait(accepted.job.id, account=ALICE, timeout_s=0.01)
    assert found == accepted.job


async def test_the_end_in_another_process_is_seen_by_polling(plant: Plant) -> None:
    """Only the database knows of it here."""
    here = Plant(office=plant.office, objects=plant.objects, poll_s=0.01)
    job = plant.office.start()
    waiting = asyncio.create_task(here.desk.wait(job.id, account=ALICE, timeout_s=20))
    listening = asyncio.create_task(all_of(here.desk.listen(job.id, account=ALICE)))
    await asyncio.sleep(0)
    plant.office.complete(job.lease)
    assert (await waiting).state is State.COMPLETED
    assert [(event.kind, event.data) for event in await listening][-1] == ("ended", {"status": "COMPLETED"})


async def test_ends_in_another_process_are_looked_for_together(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait, each second asks for some hundreds at once, and none when nobody waits any more."""
    monkeypatch.setattr("rekontext.jobs.lookout.AT_ONCE_MAX", 4)
    here = Plant(office=plant.office, objects=plant.objects, worker="here", poll_s=0.01)
    database, read, looks, enough = plant.office.database, plant.office.database.read, 0, asyncio.Event()

    async def counted(work: Callable[[Connection], object]) -> object:
        nonlocal looks
        looks += 1
        if looks >= 20:
            enough.set()
        return await read(work)

    monkeypatch.setattr(database, "read", counted)
    before, started = asyncio.all_tasks(), [plant.office.start() for _ in range(8)]
    waiting = [
        asyncio.create_task(here.desk.wait(job.id, account=ALICE, timeout_s=20, known=job)) for job in started * 3
    ]
    await asyncio.wait_for(enough.wait(), 20)
    for job in started:
        plant.office.complete(job.lease)
    looks = 0
    found = await asyncio.gather(*waiting)
    assert [(job.id, job.state) for job in found] == [(job.id, State.COMPLETED) for job in started * 3]
    assert looks <= 4  # two rounds: one may have begun before
    for left in asyncio.all_tasks() - before:
        await asyncio.wait([left], timeout=10)
    assert asyncio.all_tasks() == before


async def test_another_accounts_job_is_unknown_at_the_desk(plant: Plant) -> None:
    """To look at, wait for, listen to or cancel."""
    accepted = await plant.desk.submit(plant.office.order())
    job = accepted.job.id
    for call in (
        plant.desk.job(job, account=BOB),
        plant.desk.standing(job, account=BOB),
        plant.desk.wait(job, account=BOB, timeout_s=1),
        plant.desk.cancel(job, account=BOB),
        all_of(plant.desk.listen(job, account=BOB)),
    ):
        with pytest.raises(JobUnknown):
            await call


async def test_what_an_idempotency_key_has_made_is_found_before_anything_is_ordered(plant: Plant) -> None:
    """As a second submit would answer it, by that account only, and never for another body."""
    first = plant.office.order(key="k")
    promise = first.idempotency
    assert promise is not None
    assert await plant.desk.earlier(ALICE, promise) is None
    plant.office.accept(first)
    earlier = await plant.desk.earlier(ALICE, promise)
    assert earlier is not None
    assert (earlier.job.id, earlier.replayed, earlier.ahead) == (first.job, True, 0)
    assert earlier == await plant.desk.submit(plant.office.order(key="k"))
    assert await plant.desk.earlier(BOB, promise) is None
    with pytest.raises(IdempotencyKeyReused):
        await plant.desk.earlier(ALICE, replace(promise, body_digest="another"))
    plant.office.claim()
    running = await plant.desk.earlier(ALICE, promise)
    assert running is not None
    assert (running.job.state, running.ahead) == (State.PROCESSING, None)


async def test_a_waiting_job_knows_its_place(plant: Plant) -> None:
    """A running one has none."""
    gate = Gate()
    plant.fleet.behaviours = [gate, at_once]
    async with plant.at_work():
        first = (await plant.desk.submit(plant.office.order())).job
        await asyncio.wait_for(gate.begun.wait(), 10)
        jobs = [(await plant.desk.submit(plant.office.order())).job for _ in range(3)]
        standings = [await plant.desk.standing(job.id, account=ALICE) for job in jobs]
        assert [standing.ahead for standing in standings] == [0, 1, 2]
        running = await plant.desk.standing(first.id, account=ALICE)
        assert (running.job.state, running.ahead) == (State.PROCESSING, None)
        gate.open.set()


async def test_a_listener_hears_everything_in_order(plant: Plant) -> None:
    """Queue, start, every step, end."""
    shown = asyncio.Event()

    async def behave(request: EditRequest, on_progress: OnProgress) -> None:
        await at_once(request, on_progress)
        on_progress(Preview(step=2, steps=4, picture=Image.new("RGB", (2, 3))))
        await shown.wait()  # after the end there is none

    plant.fleet.behaviours = [behave]
    async with plant.at_work():
        accepted = await plant.desk.submit(plant.office.order())
        heard = list[Event]()
        async with asyncio.timeout(20):
            async for event in plant.desk.listen(accepted.job.id, account=ALICE):
                heard.append(event)
                if event.kind == "preview":
                    shown.set()
    assert [event.kind for event in heard] == ["queued", "processing", *["progress"] * 5, "preview", "ended"]
    assert heard[0].data["ahead"] == 0
    assert heard[3].data == {"attempt": 1, "step": 1, "steps": 4, "remaining_s": 3.0}
    assert heard[-2].data == {"step": 2, "size": [2, 3]}
    assert heard[-1].data == {"status": "COMPLETED"}


async def test_a_listener_that_comes_back_misses_nothing_and_hears_nothing_twice(plant: Plant) -> None:
    """It names the last event it has."""
    async with plant.at_work():
        accepted = await plant.desk.submit(plant.office.order())
        await plant.ended(accepted.job)
        heard = await all_of(plant.desk.listen(accepted.job.id, account=ALICE))
        for position, event in enumerate(heard):
            rest = await all_of(plant.desk.listen(accepted.job.id, account=ALICE, after=event.id))
            assert rest == heard[position + 1 :]


async def test_a_listener_of_an_ended_job_hears_its_end_even_after_a_restart(plant: Plant) -> None:
    """From another process's memory nothing is left but the row."""
    job = plant.office.start()
    plant.office.complete(job.lease)
    restarted = Plant(office=plant.office, objects=plant.objects, worker="restarted")
    heard = await all_of(restarted.desk.listen(job.id, account=ALICE, after="worker-5"))
    assert [(event.kind, event.data) for event in heard] == [("ended", {"status": "COMPLETED"})]


async def test_what_a_slow_look_saw_is_not_told_after_what_came_later(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job doesn't seem to go back into the queue because a database took its time."""
    job = plant.office.accept().job
    honest, looked = plant.desk.standing, asyncio.Event()

    async def slow(job: JobId, *, account: AccountId | None) -> Standing:
        seen = await honest(job, account=account)
        if plant.hub.newest(job) is None:
            plant.hub.publish(job, "processing", {"attempt": 1})
        looked.set()
        return seen

    monkeypatch.setattr(plant.desk, "standing", slow)
    listening = asyncio.create_task(all_of(plant.desk.listen(job.id, account=ALICE)))
    await asyncio.wait_for(looked.wait(), 20)
    plant.hub.end(the_end(job.id))
    assert [event.kind for event in await listening] == ["processing", "ended"]


async def test_a_job_that_is_claimed_before_its_submit_returns_is_not_told_to_wait(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dispatcher may be quicker than the news of the commit."""
    transact = plant.office.database.transact

    async def overtaken(work: Callable[[Connection], Accepted]) -> Accepted:
        accepted = await transact(work)
        plant.hub.publish(accepted.job.id, "processing", {"attempt": 1})
        return accepted

    monkeypatch.setattr(plant.office.database, "transact", overtaken)
    accepted = await plant.desk.submit(plant.office.order())
    plant.hub.end(the_end(accepted.job.id))
    assert [event.kind for event in await all_of(plant.hub.listen(accepted.job.id))] == ["processing", "ended"]


async def test_many_listeners_hear_each_place_once(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look serves them all; whoever sees it first tells the others."""
    here = Plant(office=plant.office, objects=plant.objects, poll_s=0.01)
    before, job = plant.office.accept().job, plant.office.accept().job
    honest, looks = here.office.database.read, 0

    async def counted(work: Callable[[Connection], Found]) -> Found:
        nonlocal looks
        seen = await honest(work)
        looks += 1
        return seen

    async def all_look() -> None:
        enough = looks + 10
        async with asyncio.timeout(20):
            while looks < enough:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    monkeypatch.setattr(here.office.database, "read", counted)
    listening = [asyncio.create_task(all_of(here.desk.listen(job.id, account=ALICE))) for _ in range(5)]
    await all_look()
    plant.office.cancel(before.id)
    await all_look()
    plant.office.cancel(job.id)
    async with asyncio.timeout(20):
        heard = await asyncio.gather(*listening)
    places = [("queued", {"ahead": 1}), ("queued", {"ahead": 0}), ("ended", {"status": "CANCELLED"})]
    assert [[(event.kind, event.data) for event in each] for each in heard] == [places] * 5


async def test_however_many_ask_for_places_one_look_serves_them(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand streams of waiting edits, each with a look of its own, had a core to themselves."""
    waiting = [office.accept().job for _ in range(3)]
    office.cancel(waiting[0].id)
    honest, looks = office.database.read, 0

    async def counted(work: Callable[[Connection], Found]) -> Found:
        nonlocal looks
        looks += 1
        return await honest(work)

    monkeypatch.setattr(office.database, "read", counted)
    places = Places(database=office.database, every_s=60)
    asked = [job.id for job in waiting] * 5
    assert await asyncio.gather(*map(places.of, asked)) == [None, 0, 1] * 5
    assert looks == 1
    slow, may_go_on = Places(database=office.database, every_s=0), asyncio.Event()

    async def held(work: Callable[[Connection], Found]) -> Found:
        await may_go_on.wait()
        return await counted(work)

    monkeypatch.setattr(office.database, "read", held)
    asking = [asyncio.create_task(slow.of(job)) for job in asked]
    await asyncio.sleep(0.01)
    may_go_on.set()
    assert await asyncio.gather(*asking) == [None, 0, 1] * 5
    assert looks == 2, "one that takes long is waited for"


async def test_a_waiting_listener_is_told_when_it_moves_up(plant: Plant) -> None:
    """Its place in the queue is looked up again and again."""
    here = Plant(office=plant.office, objects=plant.objects, poll_s=0.01)
    jobs = [plant.office.accept().job for _ in range(3)]
    heard: list[object] = []
    async with asyncio.timeout(20):
        async for event in here.desk.listen(jobs[2].id, account=ALICE):
            heard.append(event.data.get("ahead", event.data.get("status")))
            if heard[-1] == 2:
                plant.office.claim()
            elif heard[-1] == 1:
                plant.office.cancel(jobs[2].id)
    assert heard == [2, 1, "CANCELLED"]


async def test_listeners_hear_the_steps_that_another_process_tells(plant: Plant) -> None:
    """As it has written them down: each once, however many listen, and those of a new attempt after its start."""
    elsewhere = OthersSaid()
    desk = Desk(
        database=plant.office.database,
        life=plant.office.life,
        hub=plant.hub,
        clock=plant.office.clock,
        dispatcher=elsewhere,
        poll_s=0.01,
    )
    job = plant.office.accept().job
    listening = [asyncio.create_task(all_of(desk.listen(job.id, account=ALICE))) for _ in range(3)]

    def is_told(kind: str, data: Mapping[str, object]) -> bool:
        newest = plant.hub.newest(job.id)
        return newest is not None and newest.kind == kind and newest.data.items() >= data.items()

    async def told(kind: str, **data: object) -> None:
        while not is_told(kind, data):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # time enough to tell it again

    async with asyncio.timeout(20):
        await told("queued")
        for attempt, steps in ((1, (0, 3)), (2, (3, 4))):
            (job,) = plant.office.claim()
            await told("processing", attempt=attempt)
            for position in (3, 2) if attempt == 1 else ():
                elsewhere.places[job.lease] = Estimate(position=position, wait_s=1.0, finish_s=2.0)
                await told("processing", attempt=attempt, queue_position=position)
            for step in steps:
                elsewhere.said[job.lease] = Progress(step=step, steps=4, remaining_s=None)
                await told("progress", attempt=attempt, step=step)
            if attempt == 1:
                plant.office.hand_back(job.lease)
                await told("queued")
        plant.office.complete(job.lease)
        heard = await asyncio.gather(*listening)
    taken = [(1, None)] * 3  # first its place there isn't known, then it changes
    expected = ["queued", *taken, (1, 0), (1, 3), "queued", (2, None), (2, 3), (2, 4), "ended"]
    for each in heard:
        numbers = [(event.data.get("attempt"), event.data.get("step")) for event in each]
        assert [
            event.kind if attempt is None else (attempt, step)
            for event, (attempt, step) in zip(each, numbers, strict=True)
        ] == expected


async def test_a_listener_hears_when_another_process_begins_and_gives_back(plant: Plant) -> None:
    """Also one that tells no steps: that it doesn't wait any more is in the database, told once for each attempt."""
    here = Plant(office=plant.office, objects=plant.objects, worker="here", poll_s=0.01)
    job = plant.office.accept().job
    heard: list[tuple[str, object]] = []
    async with asyncio.timeout(20):
        async for event in here.desk.listen(job.id, account=ALICE):
            match event.kind:
                case "queued":
                    (job,) = plant.office.claim()
                case "processing" if job.attempt == 1:
                    plant.office.hand_back(job.lease)
                case "processing":
                    plant.office.complete(job.lease)
            heard.append((event.kind, event.data.get("attempt")))
    assert heard == [("queued", None), ("processing", 1), ("queued", None), ("processing", 2), ("ended", None)]


async def test_a_slow_listener_misses_steps_but_never_the_end() -> None:
    """It holds nobody up: what is remembered is bounded."""
    hub = EventHub(epoch="e")
    for step in range(10 * events.EVENTS_PER_JOB_MAX):
        hub.publish(JOB, "progress", {"step": step})
    hub.end(the_end(JOB))
    hub.publish(JOB, "progress", {"step": "too late"})
    heard = await all_of(hub.listen(JOB))
    assert len(heard) == events.EVENTS_PER_JOB_MAX
    assert heard[-1].kind == "ended"


@pytest.mark.parametrize("number", ["99", "9" * 18, "9" * 5000])
async def test_a_listener_that_claims_to_have_heard_more_still_hears_the_end(number: str) -> None:
    """And a number that is too long for one is none."""
    hub = EventHub(epoch="e")
    hub.publish(JOB, "processing", {"attempt": 1})
    hub.end(the_end(JOB))
    assert [event.kind for event in await all_of(hub.listen(JOB, after=f"e-{number}"))] == ["processing", "ended"]


async def test_the_numbers_of_a_forgotten_job_do_not_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a listener that comes back would take the end for something that it has heard."""
    monkeypatch.setattr(events, "JOBS_MAX", 1)
    hub = EventHub(epoch="e")
    hub.publish(JOB, "processing", {"attempt": 1})
    listening = hub.listen(JOB)
    heard = await anext(listening)
    await listening.aclose()
    hub.end(the_end(JobId("other")))
    hub.end(the_end(JOB))
    assert [event.kind for event in await all_of(hub.listen(JOB, after=heard.id))] == ["ended"]


async def test_of_many_previews_only_the_newest_is_kept_and_only_until_the_end() -> None:
    """They are large, and the picture is there then. Who listens hears what comes before the end."""
    hub = EventHub(epoch="e")
    for step in range(5):
        hub.publish(JOB, "progress", {"step": step})
        hub.publish(JOB, "preview", {"step": step})
    listening = hub.listen(JOB)
    heard = [await anext(listening) for _ in range(6)]
    assert [event.data for event in heard if event.kind == "preview"] == [{"step": 4}]
    hub.end(the_end(JOB))
    assert [event.kind for event in await all_of(listening)] == ["ended"]
    assert [event.kind for event in await all_of(hub.listen(JOB))] == ["progress"] * 5 + ["ended"]


async def test_the_hub_forgets_quiet_jobs_but_not_those_that_are_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded however many jobs come by."""
    monkeypatch.setattr(events, "JOBS_MAX", 10)
    hub = EventHub(epoch="e")
    listening = asyncio.create_task(all_of(hub.listen(JOB)))
    await asyncio.sleep(0)
    for number in range(100):
        hub.end(the_end(JobId(f"other-{number}")))
    assert not hub.has_ended(JobId("other-0"))
    assert hub.has_ended(JobId("other-99"))
    hub.end(the_end(JOB))
    assert [event.kind for event in await listening] == ["ended"]
