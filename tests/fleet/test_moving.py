"""An edit that waits for one device goes to another that will be done with it sooner, once, and in its turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rekontext.contract import (
    DeviceState,
    EditRequest,
    EditResult,
    EngineFault,
)
from rekontext.fleet import ProcessFleet
from rekontext.fleet.process import EngineProcess
from tests.fleet.devices import SOON_S, fleet_of, process_of, request, running, started, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def a_start_that_hangs(folder: Path, *, silent_s_max: float = SOON_S) -> AsyncIterator[ProcessFleet]:
    """Of two devices the first runs edit 1 until there is `folder / "one"`, the second is loaded when there is "go"."""
    (folder / "go").touch()
    fleet = fleet_of("a", "b", model="slow", idle_s=SOON_S, folder=folder, silent_s_max=silent_s_max)
    async with started(fleet):
        (folder / "go").unlink()
        first = asyncio.create_task(fleet.edit(request(1, f"wait {folder / 'one'}", steps=50)))
        await until(lambda: any(edit.is_taken_in for edit in fleet._processes[0]._edits))
        fleet._processes[1].wake()
        await until(lambda: fleet.devices == {"a": "ready", "b": "starting"})
        yield fleet
        for name in ("go", "one"):
            (folder / name).touch()
        await first


def patient(id: int, prompt: str = "") -> EditRequest:
    """An edit that is served after a longer one."""
    return replace(request(id, prompt, steps=16), priority=-2)


def ids(process: EngineProcess) -> list[str]:
    """The edits that it has, or that wait for it."""
    return [edit.request.id for edit in process._edits]


async def waiting(fleet: ProcessFleet, process: EngineProcess, edit: EditRequest) -> asyncio.Task[EditResult]:
    """An edit of which the fleet has chosen that this device is to run it."""
    task = asyncio.create_task(fleet.edit(edit))
    await until(lambda: edit.id in ids(process))
    return task


def looks_at(process: EngineProcess) -> list[EngineProcess]:
    """One for each look at a start of this device that was late. At the second all is done that came of the first."""
    looks: list[EngineProcess] = []
    relieve = process._on_late

    def look(late: EngineProcess) -> None:
        looks.append(late)
        relieve(late)

    process._on_late = look
    return looks


async def test_a_device_that_has_nothing_left_to_do_gets_what_waits_for_another(tmp_path: Path) -> None:
    """One edit at a time, of those that would wait for long."""
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        go = {id: tmp_path / str(id) for id in range(1, 6)}
        edits = {id: asyncio.create_task(fleet.edit(request(id, f"wait {go[id]}"))) for id in go}
        first, second = fleet._processes
        await until(lambda: [e.is_taken_in for each in (first, second) for e in each._edits] == [True] * 5)
        assert sorted(len(process._edits) for process in (first, second)) == [2, 3]
        shorter = min((first, second), key=lambda process: len(process._edits))
        longer = second if shorter is first else first
        for edit in list(shorter._edits):
            go[int(edit.request.id)].touch()
        await until(lambda: len(shorter._edits) == 1 and len(longer._edits) == 2)
        (moved,) = shorter._edits
        assert edits[int(moved.request.id)].done() is False
        await until(lambda: (tmp_path / f"{moved.request.id}.cancelled").exists())  # where it was it takes no place
        for path in go.values():
            path.touch()
        results = {id: process_of(await edit) for id, edit in edits.items()}
    assert len(set(results.values())) == 2
    assert fleet._processes[0].failures == fleet._processes[1].failures == 0


async def test_a_device_whose_last_edits_failed_gets_none_of_anothers(tmp_path: Path) -> None:
    """One that fails fast has nothing left to do very often."""
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        edits = [asyncio.create_task(fleet.edit(request(id, f"wait {tmp_path / 'go'}"))) for id in (1, 2, 3)]
        with pytest.raises(EngineFault):
            await fleet.edit(request(4, "fail"))
        failed = next(process for process in fleet._processes if process.faults)
        other = next(process for process in fleet._processes if process is not failed)
        await until(lambda: sum(edit.is_taken_in for each in (failed, other) for edit in each._edits) == 3)
        had = len(other._edits)
        fleet._share(failed)
        assert not any(edit.ended.done() for edit in other._edits)
        failed.faults = 0
        fleet._share(failed)
        await until(lambda: len(other._edits) == had - 1)
        (tmp_path / "go").touch()
        await asyncio.gather(*edits)


async def test_an_edit_that_waits_for_a_start_goes_to_a_device_that_has_nothing_to_do(tmp_path: Path) -> None:
    """A driver that hangs would keep it for an hour. One that may be what kills processes stays."""
    async with a_start_that_hangs(tmp_path) as fleet:
        first, second = fleet._processes
        edits = [await waiting(fleet, second, patient(id)) for id in (2, 3)]
        suspect = await waiting(fleet, second, replace(request(4), is_suspect=True))
        assert fleet.estimate(request(4)).position == 2
        second._ready_due_s -= 1000
        (tmp_path / "one").touch()
        moved = [process_of(await edit) for edit in edits]
        assert (fleet.devices, ids(first), ids(second)) == ({"a": "ready", "b": "starting"}, [], ["4"])
        assert (first.load_s, second.load_s) == (0, 4)
        assert [fleet.estimate(request(id)).position for id in (4, 5)] == [0, 0]
        assert fleet.estimate(request(5)).finish_s == pytest.approx(4, abs=0.1)
        (tmp_path / "go").touch()
        assert process_of(await suspect) not in moved
        assert len(set(moved)) == 1


async def test_an_edit_that_waits_for_a_suspect_one_goes_to_a_device_that_has_nothing_to_do(tmp_path: Path) -> None:
    """There is no room for it, however many others that process could serve."""
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        alone = replace(request(1, f"wait {tmp_path / 'one'}"), is_suspect=True)
        first, second = fleet._processes
        suspect = await waiting(fleet, first, alone)
        other = await waiting(fleet, second, request(2, f"wait {tmp_path / 'two'}", steps=8))
        behind = await waiting(fleet, first, request(3, steps=10))
        assert fleet.estimate(request(3)).finish_s == pytest.approx(14, abs=0.1)
        (tmp_path / "two").touch()
        assert process_of(await behind) == process_of(await other)
        assert not suspect.done()
        (tmp_path / "one").touch()
        assert process_of(await suspect) != process_of(await other)


async def test_an_edit_does_not_go_where_a_suspect_one_is_while_another_device_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    """Also one that is shorter: it isn't served before that."""
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        alone = replace(request(1, f"wait {tmp_path / 'one'}", steps=50), is_suspect=True)
        suspect = asyncio.create_task(fleet.edit(alone))
        await until(lambda: any(edit.is_taken_in for edit in fleet._processes[0]._edits))
        await asyncio.wait_for(fleet.edit(request(2)), SOON_S)
        assert not suspect.done()
        (tmp_path / "one").touch()
        await suspect


@pytest.mark.parametrize("is_ready_first", [True, False])
async def test_an_edit_runs_once_if_its_start_ends_in_the_moment_in_which_it_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_ready_first: bool
) -> None:
    """Whoever awaits it hasn't heard of either yet. It goes where it is done first now, which may be here again."""
    async with a_start_that_hangs(tmp_path) as fleet:
        second = fleet._processes[1]
        edit = await waiting(fleet, second, patient(2, "log"))
        (expected,) = second._edits
        become = second._become

        def become_and_give_back(state: DeviceState) -> None:
            if is_ready_first:
                become(state)
            second.give_back(expected)
            if not is_ready_first:
                become(state)

        with monkeypatch.context() as moment:
            moment.setattr(second, "_become", become_and_give_back)
            (tmp_path / "go").touch()
            await until(expected.ended.done)
        assert (await edit).seed == 2
        assert not expected.is_handed_over
        await second.edit(request(3))  # so what the device was sent before is done too
        await until(lambda: bool(caplog.records))
        assert [record.getMessage() for record in caplog.records] == ["b: a step was left out"]


async def test_what_waits_for_a_start_that_is_late_may_be_done_sooner_elsewhere(tmp_path: Path) -> None:
    """Also where no device has ever nothing to do, or had when the start was still expected to be over soon."""
    async with a_start_that_hangs(tmp_path, silent_s_max=0.5) as fleet:
        first, second = fleet._processes
        edit = await waiting(fleet, second, patient(2, f"wait {tmp_path / 'two'}"))
        suspect = await waiting(fleet, second, replace(request(3), is_suspect=True))
        second._ready_due_s -= 1000
        await until(lambda: ids(second) == ["3"])
        assert ids(first) == ["1", "2"]
        assert fleet.estimate(request(2)).finish_s == pytest.approx(66, abs=1)
        (tmp_path / "two").touch()
        await edit
        (tmp_path / "go").touch()
        await suspect


async def test_of_what_waits_for_a_start_that_is_late_only_as_much_moves_as_is_done_sooner_elsewhere(
    tmp_path: Path,
) -> None:
    """Edit 3 would be, if edit 2 stayed. It would come back, and have an edit before it that was behind it."""
    async with a_start_that_hangs(tmp_path, silent_s_max=0.5) as fleet:
        first, second = fleet._processes
        looks = looks_at(second)
        edits = [await waiting(fleet, second, patient(id, f"wait {tmp_path / 'more'}")) for id in (2, 3)]
        edits.append(await waiting(fleet, second, replace(request(4), is_suspect=True)))
        second._ready_due_s = time.monotonic() - 55  # they are expected in 71 and 87 s, elsewhere in 66 and 82
        await until(lambda: ids(first) == ["1", "2"])
        looks.clear()
        await until(lambda: len(looks) > 1)
        assert (ids(first), ids(second)) == (["1", "2"], ["3", "4"])
        for name in ("go", "one", "more"):
            (tmp_path / name).touch()
        await asyncio.gather(*edits)


async def test_what_waits_for_a_start_that_is_late_keeps_its_place_where_there_is_no_other_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What has to be alone, and is tried again, would be before whatever came before it. Each is run once."""
    (tmp_path / "go").touch()
    async with started(fleet_of("a", model="slow", idle_s=0.05, folder=tmp_path, silent_s_max=0.5)) as fleet:
        (process,) = fleet._processes
        looks = looks_at(process)
        await until(lambda: fleet.devices == {"a": "asleep"})
        (tmp_path / "go").unlink()
        edits = [await waiting(fleet, process, request(1, "log"))]
        edits.append(await waiting(fleet, process, replace(request(2), is_suspect=True)))
        await until(lambda: process._channel is not None)
        process._ready_due_s -= 1000
        await until(lambda: len(looks) > 1)
        assert ids(process) == ["1", "2"]
        assert fleet.estimate(request(1)).wait_s > 900
        (tmp_path / "go").touch()
        assert [(await edit).seed for edit in edits] == [1, 2]
        await until(lambda: bool(caplog.records))
        assert [record.getMessage() for record in caplog.records] == ["a: a step was left out"]


async def test_an_edit_whose_steps_have_begun_stays_where_it_is(tmp_path: Path) -> None:
    """What was done would be lost."""
    async with started(fleet_of("a")) as fleet:
        edits = [await running(fleet, id, tmp_path / "go") for id in (1, 2)]
        (process,) = fleet._processes
        await until(lambda: all(edit.is_taken_in for edit in process._edits))
        for edit in process._edits:
            edit.is_stepped = True
        assert not process.release()
        (tmp_path / "go").touch()
        await asyncio.gather(*edits)
