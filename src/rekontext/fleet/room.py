"""Who is with a device at the same time: any number of edits, or one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Edits come in in the order in which they ask, so one that is to be alone gets its turn."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._inside = 0
        self._emptied = asyncio.Event()
        self._emptied.set()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Be inside, from when there is room.

        Args:
            alone: nobody else is inside meanwhile.
        """
        async with self._door:
            if alone:
                await self._emptied.wait()
                yield
                return
            self._inside += 1
            self._emptied.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._emptied.set()
