"""Edits run while their caller waits, in this process's memory only: a place in the queue, the engine, the answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from rekontext.api.auth import Caller
from rekontext.api.edits import DeadlineExceeded, Edited, EditOrder, QueueFull
from rekontext.contract import EditRequest, Fleet
from rekontext.pictures import MEDIA_TYPES, CodecThreads, decode, encode

_RETRY_AFTER_MAX_S: Final = 60
_FIRST_GUESS_S: Final = 5.0


class DirectEdits:
    """`Edits` without a job table.

    At most `queue_max` orders are inside at a time and at most `running_max` of them are with the fleet; the others
    wait as the compressed bytes they came as, so that a full queue of large photos fits in memory.

    Args:
        deadline_s: from order to answer.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        threads: CodecThreads,
        queue_max: int,
        running_max: int,
        deadline_s: float,
        now: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._threads = threads
        self._queue_max = queue_max
        self._deadline_s = deadline_s
        self._now = now
        self._slots = asyncio.Semaphore(running_max)
        self._opened = asyncio.Event()
        self._inside = 0
        self._recent_s = _FIRST_GUESS_S

    def open(self) -> None:
        """The fleet has started: orders that came before it may go on."""
        self._opened.set()

    async def run(self, caller: Caller, order: EditOrder, *, request_id: str) -> Edited:
        """As `Edits.run`."""
        if self._inside >= self._queue_max:
            raise QueueFull(self._queue_max, retry_after_s=self._retry_after_s())
        self._inside += 1
        deadline = asyncio.timeout(self._deadline_s)
        try:
            async with deadline:
                return await self._run(caller, order, request_id, came=self._now())
        except TimeoutError as fault:
            if deadline.expired():
                raise DeadlineExceeded(self._deadline_s) from fault
            raise
        finally:
            self._inside -= 1

    async def _run(self, caller: Caller, order: EditOrder, request_id: str, *, came: float) -> Edited:
        await self._opened.wait()
        async with self._slots:
            photo = await self._threads.run(decode, order.photo)
            request = EditRequest(
                id=request_id,
                photo=photo,
                prompt=order.prompt,
                steps=order.steps,
                guidance=order.guidance,
                seed=order.seed,
                aspect_ratio=order.aspect_ratio,
                account=caller.name,
            )
            result = await self._fleet.edit(request)
        waited_s = self._now() - came - result.inference_s
        self._recent_s += 0.2 * (result.inference_s - self._recent_s)
        data = await self._threads.run(encode, result.picture, order.output_format, order.output_quality)
        return Edited(
            data=data,
            media_type=MEDIA_TYPES[order.output_format],
            width=result.picture.width,
            height=result.picture.height,
            seed=result.seed,
            queue_s=max(waited_s, 0.0),
            inference_s=result.inference_s,
            total_s=self._now() - came,
            model=self._fleet.card,
            timings=result.timings,
        )

    def _retry_after_s(self) -> int:
        return min(max(math.ceil(self._recent_s), 1), _RETRY_AFTER_MAX_S)
