"""What goes on while a service is up: what must be open for it, the loops that work, and the order in which all ends.

Knows no settings, and nothing of HTTP but that a server enters `lifespan` before it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import structlog

from rekontext.accounts import RequestLimiter
from rekontext.contract import Fleet, ModelCard
from rekontext.database import Database
from rekontext.jobs import Deliverer, Desk, Dispatcher, Sweeper

_log = structlog.get_logger(__name__)


class Works:
    """The parts of a service that live as long as it does.

    Args:
        database, limiter: open already, on whatever thread; closed here.
        sessions: with other hosts, to be opened on the event loop.
        grace_s: for how long running edits may go on once it is to end.
        on_ready, on_broken: called on the event loop, once the model is loaded or if the service can't go on.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        dispatcher: Dispatcher,
        desk: Desk,
        deliverer: Deliverer,
        sweeper: Sweeper,
        database: Database,
        limiter: RequestLimiter,
        sessions: Sequence[AbstractAsyncContextManager[object]],
        grace_s: float,
        on_ready: Callable[[ModelCard], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._desk = desk
        self._deliverer = deliverer
        self._sweeper = sweeper
        self._database = database
        self._limiter = limiter
        self._sessions = sessions
        self._grace_s = grace_s
        self._on_ready = on_ready
        self._on_broken = on_broken
        self._drained: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Work until the end of the block; then let running edits end, and close everything."""
        async with AsyncExitStack() as stack:
            stack.callback(self._database.close)
            stack.push_async_callback(self._limiter.close)
            for session in self._sessions:
                await stack.enter_async_context(session)
            loops = (self._compute(), self._dispatcher.run(), self._deliverer.run(), self._sweeper.run())
            working = [asyncio.create_task(self._watched(each)) for each in loops]
            try:
                yield
            finally:
                await self.drain()
                for task in working:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                await self._fleet.close()

    def drain(self) -> asyncio.Task[None]:
        """Let running edits end, for `grace_s`. It is begun once, however often it is asked for."""
        if self._drained is None:
            self._drained = asyncio.create_task(self._let_jobs_end())
        return self._drained

    async def _let_jobs_end(self) -> None:
        await self._dispatcher.close(drain_s=self._grace_s)
        self._desk.let_go()  # whoever still waits, waits for a job that went back into the queue

    async def _compute(self) -> None:
        """Load the model while the server already answers, then take jobs. Those that came early go on then."""
        try:
            await self._fleet.start()
        except Exception as fault:
            self._on_broken(fault)
            return
        self._on_ready(self._fleet.card)
        self._dispatcher.begin()
        await self._fleet.watch()

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as fault:
            _log.exception("broken", fault=type(fault).__name__)
            self._on_broken(fault)
