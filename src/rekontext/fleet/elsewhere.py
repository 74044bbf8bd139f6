"""No device here: other processes run the edits, on machines that may come and go.

What they have told of themselves says which model it is, and how long an edit takes, also while none of them is up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

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
from rekontext.fleet.profile import ProfileUnknown, from_profile

Look = Callable[[], Awaitable[Mapping[str, Any] | None]]
LOOK_EVERY_S: Final = 2.0
_log = structlog.get_logger(__name__)


class ElsewhereFleet:
    """A `rekontext.contract.Fleet` without devices.

    Args:
        look: the newest profile that a process with devices has told; None while nobody has, or when nobody knows.
        every_s: how often it is looked for.
    """

    def __init__(self, *, look: Look, every_s: float = LOOK_EVERY_S) -> None:
        self._look = look
        self._every_s = every_s
        self._known: tuple[ModelCard, Outlook, tuple[str, ...]] | None = None
        self._profile: Mapping[str, Any] = {}
        self._fault = ""

    @property
    def devices(self) -> Mapping[str, DeviceState]:
        """There are none."""
        return {}

    @property
    def card(self) -> ModelCard:
        """The model that is served elsewhere."""
        return self._told()[0]

    @property
    def is_ready(self) -> bool:
        """Whether it is known what edits are accepted for."""
        return self._known is not None

    async def offers(self) -> Sequence[str]:
        """As they were told."""
        return self._told()[2] if self.is_ready else ()

    async def profile(self) -> Mapping[str, Any]:
        """As it was told."""
        return self._profile

    async def start(self) -> None:
        """Wait until the first process with devices has been up."""
        while not await self._learn():  # noqa: ASYNC110 - others write it into the database
            await asyncio.sleep(self._every_s)

    async def watch(self) -> None:
        """Keep up with what the others tell. Nothing here can break."""
        while True:
            await asyncio.sleep(self._every_s)
            await self._learn()

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        """Edits aren't run here.

        Raises:
            EngineFault: always.
        """
        raise EngineFault("this process has no device")

    def estimate(self, request: EditRequest) -> Estimate:
        """How long the edit takes on a device that has nothing else to do."""
        return self._told()[1].estimate(request, now_s=time.monotonic())

    async def close(self) -> None:
        """Accept nothing more."""
        self._known = None

    async def _learn(self) -> bool:
        profile = await self._look()
        if profile is None or (self._known is not None and profile == self._profile):
            return self.is_ready
        try:
            self._known, self._profile = from_profile(profile), profile
        except ProfileUnknown as fault:  # of another version, say: what was known before is still good
            if str(fault) != self._fault:
                self._fault = str(fault)
                _log.error("profile_unknown", fault=self._fault)
        return self.is_ready

    def _told(self) -> tuple[ModelCard, Outlook, tuple[str, ...]]:
        if self._known is None:
            raise EngineFault("no process with a device has been up yet")
        return self._known
