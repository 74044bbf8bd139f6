"""One device's process: it hangs, sleeps, stands by, is late and fails, and only its own edits feel it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from asyncio.subprocess import Process
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast
from unittest.mock import AsyncMock

import pytest
import structlog

from rekontext.contract import (
    EditResult,
    EngineFault,
)
from rekontext.fleet.child import Child
from rekontext.fleet.messages import Channel
from rekontext.fleet.process import EngineProcess
from tests.fleet.devices import (
    FAKE,
    GOOD,
    SOON_S,
    STEPS_MAX,
    fleet_of,
    is_alive,
    process_of,
    request,
    running,
    standing_by,
    started,
    until,
)

pytestmark = pytest.mark.anyio


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


def test_a_start_that_is_late_is_expected_to_take_as_much_longer() -> None:
    """One that hangs must not look as if it were over any moment."""
    process = EngineProcess("a", GOOD)
    began_s = process._state_since_s
    process.state, process._ready_due_s = "starting", began_s + 10.0
    assert [process._start_s(began_s + after_s) for after_s in (0, 4, 10, 100)] == pytest.approx([10, 6, 0, 90])
