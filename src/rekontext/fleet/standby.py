"""A device's next process: made when it is wanted, or before, and then it has imported the engine by the time it is.

One that stands by has touched no device. It costs memory of the host, and a wake takes as long as loading the model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog

from rekontext.fleet.child import Child

_log = structlog.get_logger(__name__)


class Standby:
    """Makes one device's processes.

    Args:
        command: the program that serves the socket whose number is added to it, with the device's name.
        name: the device's.
        environment: the processes'.

    Attributes:
        importing_s: how long it takes from no process to one that has imported the engine.
    """

    def __init__(self, command: Sequence[str], name: str, environment: Mapping[str, str]) -> None:
        self.importing_s = 0.0
        self._command = command
        self._name = name
        self._environment = environment
        self._coming: asyncio.Task[Child] | None = None
        self._since_s = 0.0

    @property
    def is_there(self) -> bool:
        """Whether a process stands by, or is being made."""
        coming = self._coming
        if coming is None or not coming.done():
            return coming is not None
        return not coming.cancelled() and coming.exception() is None and coming.result().is_alive

    def imported_in_s(self, now_s: float) -> float:
        """Seconds until the next process has imported the engine, if it is wanted now."""
        return max(self.importing_s - (now_s - self._since_s), 0.0) if self.is_there else self.importing_s

    def call(self) -> None:
        """Have a process stand by, unless one does."""
        if self._coming is None:
            self._coming = asyncio.create_task(self.spawn())
            self._since_s = time.monotonic()

    async def take(self, label: str) -> Child | None:
        """The process that stood by, if there is one that still does; it is the caller's to end.

        Args:
            label: what the log calls the device.
        """
        if self._coming is None:
            return None
        try:
            child = await asyncio.shield(self._coming)  # if we are cancelled, it is still there to be ended
        except Exception as error:
            self._coming = None
            _log.warning("standby_lost", device=label, fault=f"{type(error).__name__}: {error}")
            return None
        self._coming = None
        if child.is_alive:
            return child
        _log.warning("standby_lost", device=label, fault=await child.death())
        await child.end()
        return None

    async def spawn(self) -> Child:
        """A process from nothing.

        Raises:
            OSError, RuntimeError: as `Child.spawn` does.
        """
        return await Child.spawn(self._command, self._name, self._environment)
