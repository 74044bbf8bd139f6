"""One device's engine in a process of its own: started for work, and started anew when it dies.

What a device does to its process, a fault that only a new one can mend above all, so touches no other device and not
the service. Without work for long, the process can be ended: the device's memory is free then, to the last byte.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

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
from rekontext.fleet.child import WORKER, Child, placed
from rekontext.fleet.expected import ExpectedEdit, ExpectedEdits
from rekontext.fleet.messages import (
    Broken,
    Cancel,
    Channel,
    Done,
    Logged,
    Looked,
    NotOpened,
    Opened,
    Opening,
    Submit,
    Told,
)
from rekontext.fleet.standby import Standby

if TYPE_CHECKING:
    from rekontext.engine.outlook import Outlook

RETRY_S_MAX: Final = 60.0
SILENT_S_MAX: Final = 600.0
"""A process that has work and tells of nothing for so long hangs, with its device or without."""
_SILENT_STEPS_MAX: Final = 10
"""Unless so many steps may take longer than that."""
_LOOKS_PER_SILENCE: Final = 10
_DOUBLINGS_MAX: Final = 30
_log = structlog.get_logger(__name__)


class DeviceFailed(Exception):
    """The process couldn't be started, or died before the edit was handed to it. Another device may run it."""


class Released(Exception):
    """No step of the edit was run here, and another device may be done with it sooner."""


class EngineProcess:
    """One device. `run`, in a task of its own, starts the process when it is wanted, and again when it dies.

    Args:
        name: the device's: "cpu", "cuda" or "cuda:N"; empty leaves the choice to the engine.
        opening: what the engine is opened with; its device is `name`.
        idle_s: a process without work for so long is ended; None keeps it.
        standby: whether the next one, with the engine imported and no device touched, then stands by.
        retry_s: until a process that failed is started again; twice as long each time, up to a minute.
        silent_s_max: a process that has work and tells of nothing for so long is killed.
        on_change: called after each change of `state`.
        on_idle: called with the process when it is ready and has no edits.
        on_late: called with the process now and then while its start takes longer than expected.
        command: the program that serves the socket whose number is added to it, with the device's name.

    Attributes:
        state: what the device is doing.
        failures: how often it failed since an edit was last done.
        faults: how many edits in a row came to nothing in the present process, through no fault of their callers.
        fault: why the device failed last.
        card: the model, once it was loaded.
        opening_s: how long the model took last, from a process that has imported the engine.
    """

    def __init__(
        self,
        name: str,
        opening: Opening,
        *,
        idle_s: float | None = None,
        standby: bool = False,
        retry_s: float = 1.0,
        silent_s_max: float = SILENT_S_MAX,
        on_change: Callable[[], None] = lambda: None,
        on_idle: Callable[[EngineProcess], None] = lambda _process: None,
        on_late: Callable[[EngineProcess], None] = lambda _process: None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.name = name
        self.state: DeviceState = "asleep"
        self.failures = 0
        self.faults = 0
        self.fault: Exception | None = None
        self.card: ModelCard | None = None
        self.opening_s = 0.0
        device, environment = placed(name, os.environ)
        self._opening = replace(opening, device=device)
        self._idle_s = idle_s
        self._is_standby_kept = standby and idle_s is not None
        self._standby = Standby(command, name, environment)
        self._ready_due_s = 0.0
        self._is_from_nothing = True
        self._retry_s = retry_s
        self._silent_s_max = silent_s_max
        self._on_change = on_change
        self._on_idle = on_idle
        self._on_late = on_late
        self._edits = ExpectedEdits()
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self._state_since_s = time.monotonic()
        self._silent_s = 0.0
        self._silence: EngineFault | None = None
        self._channel: Channel | None = None
        self._retiring: asyncio.TimerHandle | None = None

    @property
    def label(self) -> str:
        """The device's name, or what the engine chose; empty before it has."""
        return self.name or (self.card.device if self.card else "")

    @property
    def load_s(self) -> float:
        """Device seconds that its edits were expected to need."""
        return self._edits.load_s

    @property
    def outlook(self) -> Outlook | None:
        """What is known of its edits; None before any device was ready."""
        return self._edits.outlook

    def wake(self) -> None:
        """Start the process if it isn't there."""
        self._wanted.set()

    def assume(self, other: EngineProcess) -> None:
        """Believe of this device what is known of another with the same model, until it was ready itself."""
        if self.outlook is None and other.outlook is not None:
            self._edits.outlook = other.outlook.emptied()
            self._standby.importing_s, self.opening_s = other._standby.importing_s, other.opening_s
            self._keep_standby()

    async def until_ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            DeviceFailed: it can't be.
        """
        await self._until(lambda: self.state == "ready")

    def has(self, id: str) -> bool:
        """Whether the edit of that request is here."""
        return self._edits.find(id) is not None

    def estimate(self, request: EditRequest) -> Estimate:
        """When this edit will be done here, or would be if it came now.

        Raises:
            EngineFault: no device was ready yet.
        """
        own = self._edits.estimate(request)
        start_s = self._start_s(time.monotonic())
        return replace(own, wait_s=own.wait_s + start_s, finish_s=own.finish_s + start_s)

    def movable(self) -> list[tuple[ExpectedEdit, float]]:
        """Of a device that starts: the edits that another may have, as they are served here, and seconds to the end."""
        assert self.state == "starting", "a start is no wait for what is in the process already"
        start_s = self._start_s(time.monotonic())
        return [(edit, start_s + own.finish_s) for edit, own in self._edits.movable()]

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        """As `Fleet.edit`. Waits for the process if it isn't there; an edit that is suspect is in it alone.

        Raises:
            DeviceFailed: the edit was not handed over.
            Released: it was given back.
        """
        edit = self._edits.add(request, on_progress)
        self._mind_idleness()
        try:
            await self._until(lambda: edit.ended.done() or (self.state == "ready" and self._edits.admits(edit)))
            if not edit.ended.done():  # by being given back
                assert self._channel is not None, "ready without a channel"
                self._channel.post(Submit(number=edit.number, request=request))
                edit.is_handed_over = True
            return await edit.ended
        except (asyncio.CancelledError, Released):
            if edit.is_handed_over and self._channel is not None:
                self._channel.post(Cancel(number=edit.number))
            raise
        finally:
            self._edits.remove(edit)
            self._mind_idleness()
            self._pulse()

    def release(self) -> bool:
        """Give back the edit that is served next of those that would wait for long. Returns whether there is one."""
        edit = self._edits.next_to_move(self._start_s(time.monotonic()))
        if edit is not None:
            self.give_back(edit)
        return edit is not None

    def give_back(self, edit: ExpectedEdit) -> None:
        """Have another device chosen for an edit."""
        edit.ended.set_exception(Released(f"{self.label} hasn't begun with it"))
        self._pulse()

    async def run(self) -> None:
        """Start the process when it is wanted, and again when it dies, until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                now_s = time.monotonic()
                self._ready_due_s = now_s + self._start_takes_s(now_s)
                self._become("starting")
                await self._live()
                if self.state == "failed":
                    await asyncio.sleep(self._again_s)
                self._become("asleep")
                self._keep_standby()
        finally:
            self.fault = EngineFault("the engine was closed")
            self._edits.give_up("the engine was closed before the edit was done")
            self._become("failed")
            if (child := await self._standby.take(self.label)) is not None:
                await child.end()

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait, with the process wanted, for what may change with its state and its edits.

        Raises:
            DeviceFailed: it does first.
        """
        while not holds():
            if self.state == "failed":
                raise DeviceFailed(f"{self.label or 'the device'}: {self.fault}") from self.fault
            self.wake()
            await self._changed.wait()

    def _pulse(self) -> None:
        """Have whoever waits look again."""
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    def _keep_standby(self) -> None:
        """Have the next process import the engine while nobody waits for it."""
        if self._is_standby_kept and not self._wanted.is_set():
            self._standby.call()

    async def _live(self) -> None:
        """One life of the process, up to its end, be it for a fault or because it had no work for long."""
        try:
            child = await self._standby.take(self.label)
            self._is_from_nothing = child is None
            if child is None:
                self._ready_due_s = self._state_since_s + self._standby.importing_s + self.opening_s
                child = await self._standby.spawn()
        except Exception as error:
            self._lose(error)
            return
        channel = self._channel = child.channel
        self._silence, self._silent_s = None, 0.0
        watching = asyncio.create_task(self._watch(child))
        try:
            channel.post(self._opening)
            while (fault := self._hear(await channel.receive())) is None:
                pass
            self._fail(fault)
        except EOFError:
            if self.state == "ready":
                self._become("failed")  # at once: what it is handed now is lost
            if self.state != "asleep":
                self._fail(self._silence or EngineFault(await child.death()))
        except Exception as error:
            self._lose(error)
        finally:
            watching.cancel()
            self._channel, self.faults = None, 0
            ending = asyncio.create_task(child.end())
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                await ending
                raise

    async def _watch(self, child: Child) -> None:
        """Tell of a start that takes long, and have an end of a process that hangs.

        Whoever waits for either would do so for as long as an attempt may take.
        """
        look_s = self._silent_s_max / _LOOKS_PER_SILENCE
        starting_s = 0.0
        while True:
            await asyncio.sleep(look_s)
            if self.state == "starting":  # a download or a compilation may take long: only somebody who looks can tell
                starting_s += look_s
                if time.monotonic() > self._ready_due_s:
                    self._on_late(self)
                if starting_s > self._silent_s_max:
                    since_s = round(time.monotonic() - self._state_since_s)
                    _log.warning("device_starts_long", device=self.label, since_s=since_s)
                    starting_s = 0.0
            steps_s = [edit.step_s for edit in self._edits if edit.is_handed_over]
            # Not by the clock: in a pause of the whole machine nobody tells of anything, or what was told isn't read.
            self._silent_s = self._silent_s + look_s if steps_s else 0.0
            if steps_s and self._silent_s > max(self._silent_s_max, _SILENT_STEPS_MAX * max(steps_s)):
                self._silence = EngineFault(
                    f"its process told of nothing for {self._silent_s:.0f} s, though it had work"
                )
                child.kill()
                child.channel.hang_up()  # one that can't be killed would never do so
                return

    def _lose(self, error: Exception) -> None:
        """No process could be made, or the fault is ours: it is tried again all the same."""
        _log.exception("device_lost", device=self.label)
        self._fail(EngineFault(f"{type(error).__name__}: {error}"))

    def _fail(self, fault: Exception) -> None:
        """Take no more edits for a while; those that the process had are lost."""
        self.fault = fault
        self.failures += 1
        _log.error("device_failed", device=self.label, fault=str(fault), again_s=self._again_s)
        if self._idle_s is not None:
            self._wanted.clear()
        self._edits.give_up(f"the engine failed: {fault}")
        self._become("failed")

    @property
    def _again_s(self) -> float:
        """How long it stays failed."""
        return min(self._retry_s * 2.0 ** min(self.failures - 1, _DOUBLINGS_MAX), RETRY_S_MAX)

    def _hear(self, message: object) -> Exception | None:
        """Take in what the process says. Returns why it ends, if it does."""
        self._silent_s = 0.0
        match message:
            case Opened():
                self.card = message.card
                started_s = time.monotonic() - self._state_since_s
                self.opening_s = message.opening_s
                if self._is_from_nothing:
                    self._standby.importing_s = max(started_s - message.opening_s, 0.0)
                _log.info("device_ready", device=self.label, loading_s=round(started_s, 1))
            case Looked():
                self._edits.take_in(message.outlook, message.keys)
                if self.state == "starting":
                    self._become("ready")
            case Told():
                edit = self._edits.get(message.number)
                if edit is not None and message.news.step:
                    edit.is_stepped = True
                if edit is not None and edit.on_progress is not None:
                    asyncio.get_running_loop().call_soon(edit.on_progress, message.news)
            case Done():
                edit = self._edits.get(message.number)
                if isinstance(message.outcome, EngineFault):
                    self.faults += 1
                else:
                    self.failures = self.faults = 0
                if edit is not None and not edit.ended.done():
                    if isinstance(message.outcome, EditResult):
                        edit.ended.set_result(message.outcome)
                    else:
                        edit.ended.set_exception(message.outcome)
            case Logged():
                logging.getLogger(message.logger).log(message.level, "%s: %s", self.label, message.text)
            case NotOpened():
                return message.fault
            case Broken():
                return EngineFault(message.why)
        return None

    def _mind_idleness(self) -> None:
        """See whether there is work; if not, some may come from elsewhere, or the process ends in `idle_s`."""
        if self._retiring is not None:
            self._retiring.cancel()
            self._retiring = None
        if self.state != "ready" or self._edits:
            return
        if self._idle_s is not None:
            self._retiring = asyncio.get_running_loop().call_later(self._idle_s, self._retire)
        self._on_idle(self)

    def _retire(self) -> None:
        assert not self._edits, "it has work"
        self._wanted.clear()
        _log.info("device_asleep", device=self.label)
        self._become("asleep")
        if self._channel is not None:
            self._channel.hang_up()

    def _become(self, state: DeviceState) -> None:
        self.state, self._state_since_s = state, time.monotonic()
        self._mind_idleness()
        self._pulse()
        self._on_change()

    def _start_s(self, now_s: float) -> float:
        """Seconds until the model is loaded, if the process is wanted.

        A start that should be over is taken to last as much longer as it is late: it may hang.
        """
        if self.state == "ready":
            return 0.0
        if self.state == "starting":
            return abs(self._ready_due_s - now_s)
        return self._start_takes_s(now_s)

    def _start_takes_s(self, now_s: float) -> float:
        """Seconds from now to a loaded model, for a device that sleeps."""
        return self._standby.imported_in_s(now_s) + self.opening_s
