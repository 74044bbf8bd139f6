"""Edits on devices of this machine, which may sleep: a process for each, see `process.py`.

Each edit goes to the device that is expected to be done with it first, asleep ones with the time that they take to
start. So a second device starts when the first has more to do than that, and ends when it isn't needed any more.
A device that has nothing left to do gets the next of the edits that wait for another: for its steps, for its start, or
for a suspect edit that has to be alone there. What waits for a start that is late goes to a device that will be done
with it sooner by then; where there is none it keeps its place.
One where the last edits failed counts as slower, since one that fails fast would get them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from rekontext.contract import (
    DeviceState,
    EditRequest,
    EditResult,
    EngineFault,
    Estimate,
    ModelCard,
    OnProgress,
)
from rekontext.engine.outlook import Outlook
from rekontext.fleet.child import WORKER
from rekontext.fleet.messages import Opening
from rekontext.fleet.process import SILENT_S_MAX, DeviceFailed, EngineProcess, Released
from rekontext.fleet.profile import to_profile
from rekontext.masks import stretch_mask
from rekontext.models import offered_loras
from rekontext.photos import stretch

FAILURES_MAX: Final = 5
"""When every device failed so often since an edit was last done, and none is ready, the fleet is at its end."""
_DOUBLINGS_MAX: Final = 10
_log = structlog.get_logger(__name__)


class ProcessFleet:
    """A `rekontext.contract.Fleet` of engines in processes of their own.

    Args:
        opening: what each engine is opened with, on its own device.
        devices: their names; an empty one leaves the choice to the engine.
        idle_s: a device without work for so long gives its memory back, until there is work; None keeps all loaded.
        standby: whether a device that gave its memory back keeps a process that has imported the engine: on the host
            that takes some 400 MB, and waking takes as long as loading the model does.
        retry_s, silent_s_max, command: as `EngineProcess` takes them.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        devices: Sequence[str],
        idle_s: float | None = None,
        standby: bool = False,
        retry_s: float = 1.0,
        silent_s_max: float = SILENT_S_MAX,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._idle_s = idle_s
        self._lora_folder = opening.lora_folder
        self._processes = [
            EngineProcess(
                name,
                opening,
                idle_s=idle_s,
                standby=standby,
                retry_s=retry_s,
                silent_s_max=silent_s_max,
                on_change=self._take_stock,
                on_idle=self._share,
                on_late=self._relieve,
                command=command,
            )
            for name in devices
        ]
        self._running: list[asyncio.Task[None]] = []
        self._card: ModelCard | None = None
        self._outlook: Outlook | None = None
        self._changed = asyncio.Event()
        self._broken: asyncio.Future[None] | None = None
        self._is_closed = False

    @property
    def devices(self) -> dict[str, DeviceState]:
        """All devices, by name."""
        return {process.label: process.state for process in self._processes}

    @property
    def card(self) -> ModelCard:
        """What is loaded; only after `start`."""
        if self._card is None:
            raise EngineFault("the model isn't loaded")
        return self._card

    @property
    def is_ready(self) -> bool:
        """Whether edits would run, be it after a start."""
        is_at_its_end = self._broken is not None and self._broken.done()
        return self._card is not None and not self._is_closed and not is_at_its_end and any(self._usable())

    async def offers(self) -> Sequence[str]:
        """As `Fleet.offers`. Off the event loop: the folder may lie on another machine."""
        return tuple(await asyncio.to_thread(offered_loras, self._lora_folder))

    async def profile(self) -> Mapping[str, object]:
        """As `Fleet.profile`; by what the first device has measured that was up."""
        outlooks = (process.outlook for process in self._processes)
        outlook = next((each for each in outlooks if each is not None), None)
        if outlook is None:
            raise EngineFault("the model isn't loaded")
        return to_profile(self.card, outlook, await self.offers())

    async def start(self) -> None:
        """Load the model on one device, then on the others, unless those are to sleep.

        One after the other, since the others find what the first has measured and compiled: all then compute alike.

        Raises:
            ValueError, ImportError, EngineFault: no device can load it. It is what the first of them said.
        """
        self._broken = asyncio.get_running_loop().create_future()
        self._running = [asyncio.create_task(process.run(), name=process.name) for process in self._processes]
        faults: list[Exception] = []
        for first in self._processes:
            try:
                await first.until_ready()
            except DeviceFailed as failed:
                faults.append(first.fault or failed)
            else:
                break
        else:
            await self.close()
            raise faults[0]
        assert first.card is not None, "ready without a card"
        assert first.outlook is not None, "ready without an outlook"
        self._card, self._outlook = replace(first.card, device=_shortly(self.devices)), first.outlook.emptied()
        for process in self._processes:
            process.assume(first)
            if self._idle_s is None:
                process.wake()

    async def watch(self) -> None:
        """Wait until all devices have failed too often.

        Raises:
            EngineFault: they did.
        """
        assert self._broken is not None, "not started"
        await asyncio.shield(self._broken)

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        """Run one edit where it is expected to be done first. Cancelling the awaiting task stops it within one step."""
        assert request.deadline_s is None, "deadlines are kept where edits are accepted"
        request = await asyncio.to_thread(self._shrunk, request)
        while True:
            process = await self._choose(request)
            try:
                return await process.edit(request, on_progress=on_progress)
            except (DeviceFailed, Released):  # no step of it was run: another one runs it, or this one later
                await asyncio.sleep(0)

    def estimate(self, request: EditRequest) -> Estimate:
        """When this edit will be done, or would be if it came now."""
        for process in self._processes:
            if process.has(request.id):
                return process.estimate(request)
        return min(_estimates(request, self._usable() or self._processes), key=_expected_s)[0]

    async def close(self) -> None:
        """Stop running edits within one step and end the processes."""
        self._is_closed = True
        self._take_stock()
        for task in self._running:
            task.cancel()
        ends = await asyncio.gather(*self._running, return_exceptions=True)
        for process, end in zip(self._processes, ends, strict=False):  # before the start there are no tasks
            if isinstance(end, Exception):
                _log.error("device_lost", device=process.label, exc_info=end)

    def _shrunk(self, request: EditRequest) -> EditRequest:
        """With its pictures at the size that the engine will use them at: many may wait, and all go through a pipe."""
        if self._outlook is None:
            raise EngineFault("the model isn't loaded")
        size = self._outlook.plan(request).reference_size
        if request.photo is None or size is None:
            return request
        mask = None if request.mask is None else stretch_mask(request.mask, size)
        return replace(request, photo=stretch(request.photo, size), mask=mask)

    def _usable(self) -> list[EngineProcess]:
        return [process for process in self._processes if process.state != "failed"]

    async def _choose(self, request: EditRequest) -> EngineProcess:
        """Which device runs an edit; waits for one while all have failed.

        Raises:
            EngineFault: the fleet was closed, has not started, or is at its end.
        """
        while True:
            changed = self._changed
            if self._card is None or self._is_closed:
                raise EngineFault("the model isn't loaded")
            if self._broken is not None and self._broken.done():
                self._broken.result()
            if usable := self._usable():
                return min(_estimates(request, usable), key=_expected_s)[1]
            await changed.wait()

    def _share(self, idle: EngineProcess) -> None:
        """A device has nothing to do: it gets an edit of the one that has most, unless it has failed at its last."""
        if idle.faults or self._is_closed:
            return
        for process in sorted(self._processes, key=lambda each: each.load_s, reverse=True):
            if process is not idle and process.release():
                return

    def _relieve(self, late: EngineProcess) -> None:
        """A start is late: another device gets what it will be done with sooner by now.

        All else keeps its place, which an edit that is given back loses, also where this device is chosen again. So
        those that have just gone before it are reckoned with, here and there.
        """
        others = [process for process in self._usable() if process is not late]
        gone_s, came_s = 0.0, dict.fromkeys(others, 0.0)
        for edit, here_s in late.movable() if others else ():
            found = [
                (replace(each, finish_s=each.finish_s + came_s[process]), process)
                for each, process in _estimates(edit.request, others)
            ]
            sooner = min(found, key=_expected_s)
            if _expected_s(sooner) < here_s - gone_s:
                late.give_back(edit)
                gone_s += edit.work_s
                came_s[sooner[1]] += edit.work_s

    def _take_stock(self) -> None:
        """A device changed: who waits for one looks again, and the fleet may be at its end."""
        before, self._changed = self._changed, asyncio.Event()
        before.set()
        if self._broken is None or self._broken.done() or self._card is None:
            return
        if all(process.failures >= FAILURES_MAX and process.state != "ready" for process in self._processes):
            why = "; ".join(f"{process.label}: {process.fault}" for process in self._processes)
            self._broken.set_exception(EngineFault(f"no device can run edits any more: {why}"))


def _shortly(devices: Iterable[str]) -> str:
    """ "cuda:0", "cuda:0, cuda:1", "cuda:0 and 7 more"."""
    first, *others = devices
    return ", ".join([first, *others]) if len(others) < 2 else f"{first} and {len(others)} more"


def _estimates(request: EditRequest, processes: Iterable[EngineProcess]) -> list[tuple[Estimate, EngineProcess]]:
    return [(process.estimate(request), process) for process in processes]


def _expected_s(found: tuple[Estimate, EngineProcess]) -> float:
    """When the edit is done, as far as one may believe a device where the last edits failed."""
    estimate, process = found
    return estimate.finish_s * 2.0 ** min(process.faults, _DOUBLINGS_MAX)
