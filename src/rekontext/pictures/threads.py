"""A few threads for picture work, so that the event loop never waits for a codec."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")


class CodecThreads:
    """Runs functions in worker threads, at most `count` at a time; more wait their turn."""

    def __init__(self, count: int) -> None:
        # No more run than there are threads, also of those whose callers were cancelled: a codec can't be stopped.
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="codec")

    async def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """What `function(*args)` returns or raises.

        Once begun it isn't stopped by cancelling the awaiting task: it keeps its thread until it ends. What still
        waits for a thread is dropped.
        """
        return await asyncio.wrap_future(self._pool.submit(partial(function, *args)))
