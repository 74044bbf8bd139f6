"""What processes with devices write of themselves, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from rekontext.contract import DeviceState
from rekontext.database import Database
from rekontext.jobs import workers
from rekontext.jobs.workers import Worker
from rekontext.pictures.store import open_store
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


@dataclass(kw_only=True)
class Without(FakeFleet):
    """No device here."""

    @property
    def devices(self) -> Mapping[str, DeviceState]:
        return {}


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
            while front.dispatcher.served_first != 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await back.dispatcher.report()
        assert back.dispatcher.served_first == 0
        another = Plant(office=office, objects=store, worker="another")
        await another.dispatcher.report()
        await front.dispatcher.report()
        assert front.dispatcher.served_first == 2  # on two devices, one that runs alone keeps nobody waiting
        gate.open.set()
