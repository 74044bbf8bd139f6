"""Engines in processes of their own, one for each device: what they are given, what comes back, how all of them end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import structlog
from PIL import Image

from rekontext.contract import (
    EditRefused,
    EngineFault,
    Preview,
    Progress,
)
from rekontext.engine.canvas import Canvas
from rekontext.fleet import ProcessFleet
from rekontext.fleet.messages import Opening
from tests.fleet.devices import SOON_S, fleet_of, is_alive, process_of, request, running, started, until

pytestmark = pytest.mark.anyio


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


async def test_a_mask_goes_along_at_the_size_of_its_photo(tmp_path: Path) -> None:
    """A photo takes the nearest of the model's shapes, which may be far from its own."""
    photo, mask = Image.new("RGB", (900, 100)), Image.new("L", (450, 50), 255)
    async with started(fleet_of("a")) as fleet:
        shrunk = fleet._shrunk(replace(request(1), photo=photo, mask=mask))
        result = await fleet.edit(replace(request(1), photo=photo, mask=mask))
    assert shrunk.photo is not None
    assert shrunk.mask is not None
    assert shrunk.mask.size == shrunk.photo.size == result.picture.size
    assert shrunk.mask.getextrema() == (255, 255)


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


def test_processes_end_with_the_service_however_it_ends() -> None:
    """Else a killed service's engines would hold the GPUs that the next one needs."""
    program = (
        "import asyncio, os, signal\n"
        "from tests.fleet.devices import fleet_of, process_of, request\n"
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
