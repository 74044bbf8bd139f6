"""Engines in processes of their own, with a fake engine that dies, waits and refuses when it is told to."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast
from unittest.mock import AsyncMock, Mock

import pytest
import structlog
from PIL import Image

from rekontext.contract import (
    DeviceState,
    EditRefused,
    EditRequest,
    EditResult,
    EngineFault,
    Preview,
    Progress,
)
from rekontext.engine.canvas import Canvas
from rekontext.fleet import ProcessFleet
from rekontext.fleet.child import Child
from rekontext.fleet.messages import Channel, Opening
from rekontext.fleet.process import EngineProcess

pytestmark = pytest.mark.anyio

FAKE = (sys.executable, "-m", "tests.fleet.fake_worker")
SOON_S = 30.0
GOOD = Opening(model="good")
STEPS_MAX = "rekontext.fleet.process._SILENT_STEPS_MAX"


def request(id: int, prompt: str = "", *, steps: int = 4) -> EditRequest:
    return EditRequest(
        id=str(id),
        prompt=prompt,
        seed=id,
        steps=steps,
        photo=Image.new("RGB", (64, 64), (id, 0, 0)),
    )


def fleet_of(
    *devices: str,
    model: str = "good",
    idle_s: float | None = None,
    standby: bool = False,
    folder: Path | None = None,
    retry_s: float = 0.01,
    silent_s_max: float = SOON_S,
) -> ProcessFleet:
    return ProcessFleet(
        Opening(model=model, cache_folder=folder),
        devices=devices,
        idle_s=idle_s,
        standby=standby,
        retry_s=retry_s,
        silent_s_max=silent_s_max,
        command=FAKE,
    )


@asynccontextmanager
async def started(fleet: ProcessFleet) -> AsyncIterator[ProcessFleet]:
    """At work, as long as the block lasts; what it waits for too long fails it."""
    async with asyncio.timeout(4 * SOON_S), AsyncExitStack() as stack:
        stack.push_async_callback(fleet.close)
        await fleet.start()
        yield fleet


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110 - other processes make it true
            await asyncio.sleep(0.01)


def standing_by(fleet: ProcessFleet) -> list[int]:
    """The processes that stand by, 0 where none does."""
    tasks = [process._standby._coming for process in fleet._processes]
    return [task.result()._process.pid if task is not None and task.done() else 0 for task in tasks]


def process_of(result: EditResult) -> int:
    return int(result.inference_s)


def is_alive(process: int) -> bool:
    """Whether it runs; one that ended and whose parent hasn't looked yet doesn't."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def running(fleet: ProcessFleet, id: int, path: Path) -> asyncio.Task[EditResult]:
    """An edit that runs, until there is `path`."""
    news: list[Progress | Preview] = []
    edit = asyncio.create_task(fleet.edit(request(id, f"wait {path}"), on_progress=news.append))
    await until(lambda: bool(news) or edit.done())
    assert news, edit.exception()
    return edit


async def test_an_edit_goes_to_another_process_and_comes_back() -> None:
    """Pixels, numbers and progress, in order."""
    news: list[Progress | Preview] = []
    async with started(fleet_of("a")) as fleet:
        assert fleet.is_ready
        assert (fleet.card.name, fleet.card.device, fleet.devices) == ("good", "a", {"a": "ready"})
        result = await fleet.edit(request(7), on_progress=news.append)
    assert result.picture.getpixel((0, 0)) == (7, 0, 0)
    assert result.seed == 7
    assert [each.step for each in news] == [0, 1]
    assert process_of(result) != os.getpid()
    assert not is_alive(process_of(result))
    assert not fleet.is_ready


async def test_a_photo_is_not_kept_at_full_size_while_its_edit_waits_or_runs(tmp_path: Path) -> None:
    """A dozen that wait for a start at fifty megapixels would take gigabytes."""
    photo = Image.new("RGB", (640, 480))
    alive = weakref.ref(photo)
    news: list[Progress | Preview] = []
    async with started(fleet_of("a")) as fleet:
        edit = asyncio.create_task(
            fleet.edit(replace(request(1, f"wait {tmp_path / 'go'}"), photo=photo), on_progress=news.append)
        )
        del photo
        await until(lambda: bool(news))
        assert alive() is None
        (tmp_path / "go").touch()
        assert (await edit).picture.size == Canvas(area=4096).nearest((640, 480))


async def test_each_edit_goes_to_the_device_that_is_done_first(tmp_path: Path) -> None:
    """Also before the devices themselves have said that they got the earlier ones."""
    go = tmp_path / "go"
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        assert fleet.estimate(request(0, steps=10)).finish_s == pytest.approx(10, abs=1)
        edits = [asyncio.create_task(fleet.edit(request(id, f"wait {go}", steps=10))) for id in (1, 2)]
        await until(lambda: fleet.estimate(request(3, steps=10)).finish_s > 15)
        await until(lambda: {fleet.estimate(request(id)).position for id in (1, 2)} == {0})
        go.touch()
        results = await asyncio.gather(*edits)
    assert len({process_of(result) for result in results}) == 2


async def test_a_dead_process_takes_its_own_edits_with_it_and_comes_again(tmp_path: Path) -> None:
    """One GPU's fault is nobody else's."""
    go = tmp_path / "go"
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        other = await running(fleet, 1, go)
        with pytest.raises(EngineFault, match="its process was ended by SIGKILL"):
            await fleet.edit(request(2, "die"))
        assert fleet.is_ready
        go.touch()
        await other
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        await fleet.edit(request(3))


async def test_an_edit_that_failed_before_is_with_a_process_alone(tmp_path: Path) -> None:
    """It may be what killed the one before; those beside it would lose their work once more."""
    go = tmp_path / "go"
    async with started(fleet_of("a")) as fleet:
        others = [await running(fleet, 1, go)]
        suspects = [asyncio.create_task(fleet.edit(replace(request(id, "die"), is_suspect=True))) for id in (2, 3)]
        await asyncio.sleep(0.1)
        others.append(asyncio.create_task(fleet.edit(request(4, f"wait {go}"))))
        suspects[1].cancel()
        await asyncio.sleep(0.1)
        assert not any(edit.done() for edit in (*others, suspects[0]))
        go.touch()
        with pytest.raises(EngineFault, match="SIGKILL"):
            await suspects[0]
        first, second = [process_of(await edit) for edit in others]
        assert first != second  # who waited for the suspect runs in the next process


async def test_a_process_that_hangs_with_its_work_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else would notice for as long as an attempt may take. One that only takes its time is left alone."""
    async with started(fleet_of("a", silent_s_max=0.05)) as fleet:
        first = process_of(await fleet.edit(request(1)))
        edit = await running(fleet, 2, tmp_path / "go")
        await asyncio.sleep(0.2)  # a step is known to take a second
        (tmp_path / "go").touch()
        assert process_of(await edit) == first
        with monkeypatch.context() as impatient:
            impatient.setattr(STEPS_MAX, 0.1)
            await asyncio.sleep(0.2)  # without work it may be silent
        edit = await running(fleet, 3, tmp_path / "never")
        os.kill(first, signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr(STEPS_MAX, 0.1)
            with pytest.raises(EngineFault, match=r"told of nothing for \d+ s, though it had work"):
                await asyncio.wait_for(edit, SOON_S)
        assert process_of(await fleet.edit(request(4))) != first


async def test_new_work_does_not_hide_that_a_process_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the only one, it gets all that comes."""
    async with started(fleet_of("a", silent_s_max=0.05)) as fleet:
        first = process_of(await fleet.edit(request(1)))
        edit = await running(fleet, 2, tmp_path / "never")
        os.kill(first, signal.SIGSTOP)
        more: list[asyncio.Task[EditResult]] = []
        with monkeypatch.context() as impatient:
            impatient.setattr(STEPS_MAX, 0.1)
            async with asyncio.timeout(SOON_S):
                while not edit.done():
                    more.append(asyncio.create_task(fleet.edit(replace(request(3), id=f"more {len(more)}"))))
                    await asyncio.sleep(0.02)
        with pytest.raises(EngineFault, match="told of nothing"):
            await edit
        await asyncio.gather(*more, return_exceptions=True)


async def test_a_process_that_hangs_and_can_not_be_killed_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver may hold it. Nor does it take anything any more; what it had is lost, and another one goes on."""
    monkeypatch.setattr("rekontext.fleet.child.ENDING_S_MAX", 0.2)
    async with started(fleet_of("a", silent_s_max=0.05)) as fleet:
        first = process_of(await fleet.edit(request(1)))
        honest = Process.kill

        def kill(process: Process) -> None:
            if process.pid != first:
                honest(process)

        monkeypatch.setattr(Process, "kill", kill)
        edit = await running(fleet, 2, tmp_path / "never")
        os.kill(first, signal.SIGSTOP)
        try:
            untaken = asyncio.create_task(fleet.edit(request(3, "x" * 2**20)))
            await until(lambda: fleet.estimate(request(4)).position == 2)
            with monkeypatch.context() as impatient:
                impatient.setattr(STEPS_MAX, 0.1)
                for lost in (edit, untaken):
                    with pytest.raises(EngineFault, match="told of nothing"):
                        await asyncio.wait_for(lost, SOON_S)
            assert process_of(await asyncio.wait_for(fleet.edit(request(4)), SOON_S)) != first
        finally:
            os.kill(first, signal.SIGKILL)
            await until(lambda: not Path(f"/proc/{first}").exists())


async def test_a_pause_of_the_whole_machine_is_not_taken_for_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is over, nothing of what was told meanwhile is read yet."""
    honest = time.monotonic
    async with started(fleet_of("a")) as fleet:
        edit = await running(fleet, 1, tmp_path / "go")
        monkeypatch.setattr(time, "monotonic", lambda: honest() + 2 * SOON_S)
        await asyncio.sleep(0.1)  # all that was to happen meanwhile happens now
        (tmp_path / "go").touch()
        assert (await edit).seed == 1


async def test_a_process_may_end_by_itself_in_the_moment_in_which_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its device would never be started again."""

    class Gone:
        async def wait(self) -> None:
            await asyncio.Event().wait()

        def kill(self) -> None:
            raise ProcessLookupError

    monkeypatch.setattr("rekontext.fleet.child.ENDING_S_MAX", 0.01)
    ours, theirs = socket.socketpair()
    with theirs:
        await Child(cast(Process, Gone()), await Channel.over(ours)).end()


async def test_faults_and_refusals_are_what_they_were() -> None:
    """Whose fault it is decides who pays."""
    async with started(fleet_of("a")) as fleet:
        with pytest.raises(EditRefused, match="the prompt is refuse: it must be another") as refused:
            await fleet.edit(request(1, "refuse"))
        assert refused.value.code == "edit_refused"
        with pytest.raises(EngineFault, match=r"^it failed$"):
            await fleet.edit(request(2, "fail"))
        with pytest.raises(EngineFault, match="KeyError: 'nobody expects it'"):
            await asyncio.wait_for(fleet.edit(request(3, "stumble")), SOON_S)
        assert process_of(await fleet.edit(request(4)))


async def test_a_result_that_can_not_be_sent_is_a_fault() -> None:
    """Nobody waits for it for ever."""
    async with started(fleet_of("a")) as fleet:
        with pytest.raises(EngineFault, match="its process"):
            await asyncio.wait_for(fleet.edit(request(1, "odd")), SOON_S)
        await fleet.edit(request(2))


async def test_a_cancelled_edit_stops_where_it_runs(tmp_path: Path) -> None:
    """A step later the device is the next one's."""
    async with started(fleet_of("a")) as fleet:
        edit = await running(fleet, 1, tmp_path / "never")
        edit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await edit
        await until(lambda: (tmp_path / "never.cancelled").exists())
        assert fleet.estimate(request(2)).position == 0


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


async def test_a_device_without_work_gives_its_memory_back_until_there_is_some() -> None:
    """The process is gone; the fleet still takes edits, and says that they take as much longer as a start takes."""
    async with started(fleet_of("a", idle_s=0.05)) as fleet:
        first = process_of(await fleet.edit(request(1)))
        await until(lambda: fleet.devices == {"a": "asleep"} and not is_alive(first))
        assert fleet.is_ready
        assert fleet.estimate(request(2, steps=10)).wait_s > 0
        second = process_of(await fleet.edit(request(2)))
        assert second != first


async def test_the_next_process_stands_by_while_a_device_sleeps() -> None:
    """With all that takes long and touches no device; it is the one that serves when there is work."""
    async with started(fleet_of("a", "b", idle_s=0.05, standby=True)) as fleet:
        first, second = fleet._processes
        await until(lambda: fleet.devices == {"a": "asleep", "b": "asleep"} and all(standing_by(fleet)))
        importing_s = first._standby.importing_s
        assert second._standby.importing_s == importing_s > 0
        stood_by = standing_by(fleet)
        for process, expected in zip((first, second), stood_by, strict=True):
            process.opening_s = 7.0  # the first start is the longest: it measures and compiles
            assert process._start_s(process._standby._since_s) == importing_s + 7.0
            assert process._start_s(process._standby._since_s + 100) == 7.0
            process.wake()
            await process.until_ready()
            assert process_of(await process.edit(request(1))) == expected
            assert process.opening_s < 7.0
        assert first._standby.importing_s == importing_s
    assert not any(is_alive(each) for each in stood_by)


async def test_a_process_that_stood_by_may_be_killed() -> None:
    """Somebody may, or the machine runs out of memory. The device starts from nothing then, and says so."""
    async with started(fleet_of("a", idle_s=0.05, standby=True)) as fleet:
        await until(lambda: fleet.devices == {"a": "asleep"} and all(standing_by(fleet)))
        (killed,) = standing_by(fleet)
        os.kill(killed, signal.SIGKILL)
        (process,) = fleet._processes
        await until(lambda: not process._standby.is_there)
        assert process._start_s(process._standby._since_s + 100) == process._standby.importing_s + process.opening_s
        assert process_of(await fleet.edit(request(1))) != killed
        assert fleet._processes[0].failures == 0


async def test_a_process_that_can_not_be_made_to_stand_by_is_no_fault_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There may be no thread or process left at the moment."""
    async with started(fleet_of("a", idle_s=0.05, standby=True)) as fleet:
        (process,) = fleet._processes
        with monkeypatch.context() as scarce:
            scarce.setattr(Child, "spawn", AsyncMock(side_effect=RuntimeError("can't start new thread")))
            await until(lambda: (coming := process._standby._coming) is not None and coming.done())
        assert not process._standby.is_there
        await fleet.edit(request(1))
        assert process.failures == 0


@pytest.mark.parametrize("turns", range(2, 6))
async def test_a_device_may_be_closed_in_any_moment_of_a_wake(turns: int) -> None:
    """The process that was being made is left over otherwise, and nobody knows it."""
    process = EngineProcess("a", GOOD, idle_s=SOON_S, standby=True, command=FAKE)
    running = asyncio.create_task(process.run())
    await asyncio.sleep(0)
    process._keep_standby()
    standby = process._standby._coming
    assert standby is not None
    process.wake()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert not is_alive((await standby)._process.pid)


async def test_processes_that_stand_by_end_with_the_fleet() -> None:
    async with started(fleet_of("a", idle_s=0.05, standby=True)) as fleet:
        await until(lambda: fleet.devices == {"a": "asleep"} and all(standing_by(fleet)))
        waiting = standing_by(fleet)
        assert all(is_alive(each) for each in waiting)
    assert not any(is_alive(each) for each in waiting)


async def test_a_device_that_sleeps_is_woken_when_the_others_have_too_much_to_do(tmp_path: Path) -> None:
    """And not before: the first one's start has shown how long a start takes."""
    go = tmp_path / "go"
    async with started(fleet_of("a", "b", idle_s=SOON_S)) as fleet:
        assert fleet.devices == {"a": "ready", "b": "asleep"}
        await fleet.edit(request(1))
        assert fleet.devices == {"a": "ready", "b": "asleep"}
        edits = [asyncio.create_task(fleet.edit(request(id, f"wait {go}", steps=50))) for id in (2, 3)]
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        go.touch()
        assert len({process_of(result) for result in await asyncio.gather(*edits)}) == 2


async def test_a_start_that_takes_long_is_told_of_again_and_again(tmp_path: Path) -> None:
    """It may be a download, or a driver that hangs: only somebody who looks can tell."""
    with structlog.testing.capture_logs() as lines:
        fleet = fleet_of("a", model="slow", folder=tmp_path, silent_s_max=0.05)
        starting = asyncio.create_task(fleet.start())
        await until(lambda: len(lines) >= 2)
        (tmp_path / "go").touch()
        async with asyncio.timeout(SOON_S):
            await starting
        await fleet.close()
    assert {(line["event"], line["device"]) for line in lines[:-1]} == {("device_starts_long", "a")}
    assert lines[-1]["event"] == "device_ready"


async def test_a_model_that_can_not_be_loaded_stops_the_start() -> None:
    """With the engine's own sentence."""
    fleet = fleet_of("a", "b", model="bad")
    with pytest.raises(ValueError, match=r"^the model is bad$"):
        await fleet.start()
    assert not fleet.is_ready
    with pytest.raises(EngineFault):
        await fleet.edit(request(1))


async def test_a_process_that_dies_while_it_loads_stops_the_start() -> None:
    """As one does that needs more memory than there is."""
    with pytest.raises(EngineFault, match=r"SIGKILL \(is the machine out of memory\?\)"):
        await fleet_of("a", model="mortal").start()


async def test_a_process_that_can_not_be_made_is_a_fault_too() -> None:
    """There may be too many already, or too little memory for one more."""
    with pytest.raises(EngineFault, match="FileNotFoundError"):
        await ProcessFleet(Opening(), devices=["a"], retry_s=0.01, command=["/no/such/program"]).start()


async def test_the_fleet_serves_on_the_devices_that_it_has(tmp_path: Path) -> None:
    """One that can't be used is none of them."""
    (tmp_path / "a").touch()
    async with started(fleet_of("a", "b", folder=tmp_path, retry_s=SOON_S)) as fleet:
        assert fleet.devices == {"a": "failed", "b": "ready"}
        first = await running(fleet, 1, tmp_path / "go")
        second = asyncio.create_task(fleet.edit(request(2)))  # for which the other would be free
        await until(lambda: fleet.estimate(request(2)).position == 1)
        (tmp_path / "go").touch()
        await asyncio.wait_for(asyncio.gather(first, second), SOON_S / 2)
        assert fleet.devices == {"a": "failed", "b": "ready"}


async def test_a_device_that_failed_is_tried_again(tmp_path: Path) -> None:
    """It is used once it can be."""
    (tmp_path / "a").touch()
    async with started(fleet_of("a", "b", folder=tmp_path)) as fleet:
        await until(lambda: fleet.devices["b"] == "ready")
        (tmp_path / "a").unlink()
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})


async def test_a_fleet_whose_devices_fail_again_and_again_is_at_its_end() -> None:
    """A supervisor's new process may do better; edits that come meanwhile aren't used up in vain."""
    async with started(fleet_of("a")) as fleet:
        watching = asyncio.create_task(fleet.watch())
        for id in range(5):
            with pytest.raises(EngineFault, match="SIGKILL"):
                await fleet.edit(request(id, "die"))
        with pytest.raises(EngineFault, match="no device can run edits any more: a: its process was ended by SIGKILL"):
            await asyncio.wait_for(watching, SOON_S)
        assert not fleet.is_ready
        with pytest.raises(EngineFault, match="no device"):
            await fleet.edit(request(9))


async def test_a_fleet_is_not_at_its_end_while_a_device_is_ready(tmp_path: Path) -> None:
    """It may have failed often before it was, and has had no time yet to do an edit."""
    go = tmp_path / "go"
    async with started(fleet_of("a", "b", retry_s=SOON_S)) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        edit = await running(fleet, 1, go)
        for process in fleet._processes:
            process.failures = 4
        fleet._processes[0].failures += 1
        with pytest.raises(EngineFault, match="SIGKILL"):
            await fleet.edit(request(2, "die"))
        assert fleet.devices == {"a": "ready", "b": "failed"}
        go.touch()
        assert (await edit).seed == 1
        assert (await fleet.edit(request(3))).seed == 3


async def test_faults_that_are_far_between_do_not_add_up() -> None:
    """What ends a fleet is that nothing succeeds any more."""
    async with started(fleet_of("a")) as fleet:
        for id in range(0, 12, 2):
            with pytest.raises(EngineFault):
                await fleet.edit(request(id, "die"))
            await fleet.edit(request(id + 1))
        assert fleet.is_ready


async def test_closing_ends_what_runs(tmp_path: Path) -> None:
    """Nobody waits for ever for an edit of a closed fleet."""
    async with started(fleet_of("a")) as fleet:
        edit = await running(fleet, 1, tmp_path / "never")
        await fleet.close()
        with pytest.raises(EngineFault, match="closed before the edit was done"):
            await edit


async def test_closing_ends_all_processes_also_where_one_devices_task_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is ours, and in the log; the other's GPU is free."""
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        first = await running(fleet, 1, tmp_path / "go")
        processes = {process_of(await fleet.edit(request(2)))}
        (tmp_path / "go").touch()
        processes.add(process_of(await first))
        monkeypatch.setattr(fleet._processes[0]._edits, "give_up", Mock(side_effect=RuntimeError("ours")))
        with structlog.testing.capture_logs() as logs:
            await fleet.close()
        assert [(line["event"], line["device"], str(line["exc_info"])) for line in logs] == [
            ("device_lost", "a", "ours")
        ]
        assert (len(processes), any(map(is_alive, processes))) == (2, False)


async def test_a_close_that_is_cancelled_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not before the process has ended."""
    monkeypatch.setattr("rekontext.fleet.child.ENDING_S_MAX", 0.2)
    async with started(fleet_of("a", model="clinging")) as fleet:
        process = process_of(await fleet.edit(request(1)))
        closing = asyncio.create_task(fleet.close())
        await until(lambda: fleet._processes[0]._channel is None)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not is_alive(process)


async def test_a_process_leaves_signals_to_the_service() -> None:
    """Ctrl-C on a terminal, its end, or a supervisor's SIGTERM goes to all; edits still get their time of grace."""
    async with started(fleet_of("a")) as fleet:
        process = process_of(await fleet.edit(request(1)))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(process, number)
        assert process_of(await fleet.edit(request(2))) == process


async def test_what_a_process_logs_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With the device's name."""
    async with started(fleet_of("a")) as fleet:
        await fleet.edit(request(1, "log"))
        await until(lambda: bool(caplog.records))
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("rekontext.engine", logging.WARNING, "a: a step was left out")
    ]


@pytest.mark.parametrize(("fails", "why"), [("break", "the engine broke"), ("bomb", "ValueError")])
async def test_a_device_that_fails_takes_no_edit_while_its_process_ends(tmp_path: Path, fails: str, why: str) -> None:
    """An engine that broke may take long to close; whatever comes meanwhile runs on the next one, without a fault."""
    go = tmp_path / "go"
    async with started(fleet_of("a")) as fleet:
        process = process_of(await fleet.edit(request(0)))
        with pytest.raises(EngineFault, match=why):
            await asyncio.wait_for(fleet.edit(request(1, f"{fails} {go}")), SOON_S)
        assert (fleet.devices, is_alive(process)) == ({"a": "failed"}, True)
        second = asyncio.create_task(fleet.edit(request(2)))
        await asyncio.sleep(0)
        go.touch()
        assert (await second).seed == 2


async def test_a_process_that_hangs_up_takes_no_edit_either(tmp_path: Path) -> None:
    """It lives, and hears nothing."""
    go = tmp_path / "go"
    async with started(fleet_of("a")) as fleet:
        process = process_of(await fleet.edit(request(0)))
        first = asyncio.create_task(fleet.edit(request(1, f"odd {go}")))
        await until(lambda: fleet.devices == {"a": "failed"})
        assert is_alive(process)
        second = asyncio.create_task(fleet.edit(request(2)))
        await asyncio.sleep(0)
        go.touch()
        with pytest.raises(EngineFault, match="its process ended with exit code 0"):
            await first
        assert (await second).seed == 2


async def test_a_process_that_will_not_end_is_killed_also_at_the_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold its GPU's memory after the service is gone."""
    monkeypatch.setattr("rekontext.fleet.child.ENDING_S_MAX", 0.2)
    async with started(fleet_of("a", model="clinging", idle_s=0.05)) as fleet:
        process = process_of(await fleet.edit(request(1)))
        await until(lambda: fleet._processes[0]._channel is None)  # it has been told to end
        assert is_alive(process)
    await until(lambda: not is_alive(process))


async def test_a_device_that_failed_while_it_had_no_work_does_not_fall_asleep_over_it() -> None:
    """Who looks at it later sees that it failed."""
    async with started(fleet_of("a", idle_s=SOON_S, retry_s=SOON_S)) as fleet:
        process = process_of(await fleet.edit(request(1)))
        assert fleet._processes[0]._retiring is not None
        os.kill(process, signal.SIGKILL)
        await until(lambda: fleet.devices == {"a": "failed"})
        assert fleet._processes[0]._retiring is None


async def test_a_device_that_failed_sleeps_until_it_is_wanted_again(tmp_path: Path) -> None:
    """Others run the edits that waited for it."""
    (tmp_path / "a").touch()
    async with started(fleet_of("a", "b", folder=tmp_path, idle_s=SOON_S)) as fleet:
        await until(lambda: fleet.devices["a"] == "asleep")
        assert fleet._processes[0].failures == 1


async def test_a_device_may_fail_for_days() -> None:
    """It is tried every minute, and the service goes on meanwhile."""
    async with started(fleet_of("a")) as fleet:
        fleet._processes[0].failures = 2000
        with pytest.raises(EngineFault, match="SIGKILL"):
            await fleet.edit(request(1, "die"))
        assert not fleet._running[0].done()


async def test_a_device_where_edits_fail_fast_does_not_get_them_all() -> None:
    """It looks as if it had the least to do."""
    async with started(fleet_of("a", "b")) as fleet:
        await until(lambda: fleet.devices == {"a": "ready", "b": "ready"})
        first = process_of(await fleet.edit(request(1)))
        with pytest.raises(EngineFault):
            await fleet.edit(request(2, "fail"))
        assert process_of(await fleet.edit(request(3))) != first


async def test_a_cancelled_edit_is_not_reckoned_with_until_its_step_ends(tmp_path: Path) -> None:
    """Nor for ever, where no other edit's news comes after it."""
    async with started(fleet_of("a")) as fleet:
        edit = await running(fleet, 1, tmp_path / "never")
        edit.cancel()
        await until(lambda: (tmp_path / "never.cancelled").exists())
        await fleet.edit(request(2))
        assert fleet.estimate(request(3)).position == 0


def test_a_start_that_is_late_is_expected_to_take_as_much_longer() -> None:
    """One that hangs must not look as if it were over any moment."""
    process = EngineProcess("a", GOOD)
    began_s = process._state_since_s
    process.state, process._ready_due_s = "starting", began_s + 10.0
    assert [process._start_s(began_s + after_s) for after_s in (0, 4, 10, 100)] == pytest.approx([10, 6, 0, 90])


def test_processes_end_with_the_service_however_it_ends() -> None:
    """Else a killed service's engines would hold the GPUs that the next one needs."""
    program = (
        "import asyncio, os, signal\n"
        "from tests.fleet.test_processes import fleet_of, process_of, request\n"
        "async def main():\n"
        "    fleet = fleet_of('a')\n"
        "    await fleet.start()\n"
        "    print(process_of(await fleet.edit(request(1))), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    service = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SOON_S)
    assert service.returncode == -signal.SIGKILL, service.stderr
    asyncio.run(until(lambda: not is_alive(int(service.stdout.split()[-1]))))


def test_the_service_loads_no_torch_for_it() -> None:
    """The processes have it; estimates are made with the engine's pure parts."""
    program = (
        "import sys, rekontext.fleet, rekontext.engine.outlook\n"
        "assert not {'torch', 'numpy', 'diffusers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=SOON_S)
