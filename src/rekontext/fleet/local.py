"""Edits in this process: one engine on this machine's device.

The engine, and torch with it, is imported when the fleet starts, not before.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, cast

from rekontext.contract import (
    DeviceState,
    EditRefused,
    EditRequest,
    EditResult,
    EngineFault,
    Estimate,
    ModelCard,
    OnProgress,
    Preview,
    Progress,
)
from rekontext.fleet.messages import Opening
from rekontext.fleet.profile import to_profile
from rekontext.models import offered_loras

if TYPE_CHECKING:
    from rekontext.engine import Engine, Ticket
    from rekontext.engine.outlook import Outlook

T = TypeVar("T")
_SUBMITTING: Final = ThreadPoolExecutor(2, thread_name_prefix="submit")
"""Photos are made smaller and LoRAs read: whatever that takes, nothing else waits for these threads."""


class LocalFleet:
    """The embedded fleet: a `rekontext.contract.Fleet` on this machine's device.

    Args:
        opening: what the engine is opened with.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._engine: Engine | None = None
        self._tickets: dict[str, Ticket] = {}

    @property
    def devices(self) -> dict[str, DeviceState]:
        """The one device; its name is known once the model is loaded."""
        if self._engine is None:
            return {self._opening.device or "": "starting"}
        return {self._engine.card.device: "failed" if self._engine.broken.done() else "ready"}

    @property
    def card(self) -> ModelCard:
        """What is loaded; only after `start`."""
        return self._started().card

    @property
    def is_ready(self) -> bool:
        """Whether `start` has returned, `close` was not called, and the engine goes on."""
        return self._engine is not None and not self._engine.broken.done()

    async def offers(self) -> Sequence[str]:
        """As `Fleet.offers`. Off the event loop: the folder may lie on another machine."""
        return tuple(await asyncio.to_thread(offered_loras, self._opening.lora_folder))

    async def profile(self) -> Mapping[str, object]:
        """As `Fleet.profile`."""
        return to_profile(self.card, self._started().outlook(), await self.offers())

    async def start(self) -> None:
        """Load the model.

        Raises:
            CheckpointError: the model can't be found or isn't complete.
        """
        self._engine = await _beside(self._open)

    async def watch(self) -> None:
        """Wait until the engine breaks.

        Raises:
            EngineFault: it did.
        """
        try:
            await asyncio.shield(asyncio.wrap_future(self._started().broken))
        except Exception as error:
            raise EngineFault(f"the engine broke: {type(error).__name__}: {error}") from error

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        """Run one edit. Cancelling the awaiting task stops it within one step."""
        from rekontext.engine import EditCancelled

        engine = self._started()
        loop = asyncio.get_running_loop()

        def post(news: Progress | Preview) -> None:
            if on_progress is not None and not loop.is_closed():
                loop.call_soon_threadsafe(on_progress, news)

        ticket: Ticket | None = None
        name = request.id
        try:
            submitting = asyncio.ensure_future(
                loop.run_in_executor(
                    _SUBMITTING, partial(engine.submit, request, on_progress=post if on_progress else None)
                )
            )
            # The engine keeps what it needs of the photo; many that wait at full size would not fit into memory.
            del request
            try:
                ticket = await asyncio.shield(submitting)
            except asyncio.CancelledError:
                # The thread can't be stopped half-way: let it submit, then take the edit back.
                submitting.add_done_callback(_cancel_submitted)
                raise
            self._tickets[name] = ticket
            return await asyncio.wrap_future(ticket.future)
        except asyncio.CancelledError:
            if ticket is not None:
                ticket.cancel()
            raise
        except EditRefused:
            raise
        except EditCancelled as error:
            raise EngineFault("the engine was closed before the edit was done") from error
        except Exception as error:
            raise EngineFault(f"the engine failed: {type(error).__name__}: {error}") from error
        finally:
            self._tickets.pop(name, None)

    def estimate(self, request: EditRequest) -> Estimate:
        """When this edit will be done, or would be if it were submitted now."""
        return self._started().estimate(self._tickets.get(request.id, request))

    def outlook(self) -> tuple[Outlook, dict[str, int]]:
        """A copy of the engine's outlook, and what it calls the requests that are submitted, by id."""
        return self._started().outlook(), {id: ticket.number for id, ticket in self._tickets.items()}

    async def close(self) -> None:
        """Stop running edits within one step and free the model."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.close)

    def _open(self) -> Engine:
        from rekontext.engine import Engine

        opening, folder = self._opening, self._opening.cache_folder
        return Engine.open(
            opening.model,
            device=opening.device,
            dtype=opening.dtype,
            costs_file=folder and folder / "costs.json",
            compiled=opening.compiled,
            compile_cache=folder and folder / "compiled.bin",
            batch=opening.batch,
            loras=opening.loras,
            lora_folder=opening.lora_folder,
        )

    def _started(self) -> Engine:
        if self._engine is None:
            raise EngineFault("the model isn't loaded")
        return self._engine


async def _beside(work: Callable[[], T]) -> T:
    """Run `work` in a thread that the end of the process doesn't wait for: opening a model may take minutes."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, fault: BaseException | None) -> None:
        if done.done():  # nobody waits any more
            return
        if fault is not None:
            done.set_exception(fault)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result, fault = None, None
        try:
            result = work()
        except BaseException as error:
            fault = error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, result, fault)

    threading.Thread(target=run, name="model", daemon=True).start()
    return await done


def _cancel_submitted(submitting: asyncio.Future[Ticket]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
