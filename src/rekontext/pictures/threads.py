"""A few threads for picture work, so that the event loop never waits for a codec."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
Args = TypeVarTuple("Args")


class CodecThreads:
    """Runs functions in worker threads, at most `count` at a time; more wait their turn."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._limiter: CapacityLimiter | None = None

    async def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """What `function(*args)` returns or raises. A cancelled caller still waits for the thread to end."""
        if self._limiter is None:  # belongs to the running loop, so it is made inside it
            self._limiter = CapacityLimiter(self._count)
        return await to_thread.run_sync(function, *args, limiter=self._limiter)
