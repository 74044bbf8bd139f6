"""Edits in this process: one engine, one thread that owns the device.

The engine, and torch with it, is imported when the fleet starts, not before.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

from rekontext.contract import EditRefused, EditRequest, EditResult, EngineFault, ModelCard, OnProgress, Progress

if TYPE_CHECKING:
    from rekontext.engine import Engine


class LocalFleet:
    """The embedded fleet: a `rekontext.contract.Fleet` on this machine's device.

    Args:
        model, device, dtype: as `rekontext.engine.Engine.open` takes them.
    """

    def __init__(self, *, model: str = "mini", device: str | None = None, dtype: str | None = None) -> None:
        self._model = model
        self._device = device
        self._dtype = dtype
        self._engine: Engine | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._closing = Event()

    @property
    def card(self) -> ModelCard:
        """What is loaded; only after `start`."""
        return self._started().card

    @property
    def is_ready(self) -> bool:
        """Whether `start` has returned and `close` was not called."""
        return self._engine is not None and not self._closing.is_set()

    async def start(self) -> None:
        """Load the model in the engine's thread.

        Raises:
            CheckpointError: the model can't be found or isn't complete.
        """
        self._engine = await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        """Run one edit; edits take turns. Cancelling the awaiting task stops it within one step."""
        engine = self._started()
        loop = asyncio.get_running_loop()
        cancelled = Event()

        def run() -> EditResult:
            return engine.run(
                request,
                on_step=on_progress and (lambda progress: _post(loop, on_progress, progress)),
                is_cancelled=lambda: cancelled.is_set() or self._closing.is_set(),
            )

        try:
            return await loop.run_in_executor(self._thread, run)
        except EditRefused:
            raise
        except asyncio.CancelledError:
            cancelled.set()
            raise
        except Exception as error:
            raise EngineFault(f"the engine failed: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Stop running edits within one step and free the model."""
        self._closing.set()
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
        self._engine = None

    def _open(self) -> Engine:
        from rekontext.engine import Engine

        return Engine.open(self._model, device=self._device, dtype=self._dtype)

    def _started(self) -> Engine:
        if self._engine is None:
            raise EngineFault("the model isn't loaded yet")
        return self._engine


def _post(loop: asyncio.AbstractEventLoop, on_progress: OnProgress, progress: Progress) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(on_progress, progress)
