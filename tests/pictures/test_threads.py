"""The threads for picture work: no more than there are, whoever stops waiting for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from rekontext.pictures import CodecThreads

pytestmark = pytest.mark.anyio


async def test_callers_that_are_cancelled_leave_no_more_at_work_than_there_are_threads() -> None:
    """What has begun goes on in its thread, and what waited for one is never begun."""
    threads = CodecThreads(2)
    begun, may_end = threading.Semaphore(0), threading.Event()
    ran: list[int] = []

    def work(number: int) -> None:
        ran.append(number)
        begun.release()
        assert may_end.wait(60)

    async def begins(within_s: float) -> bool:
        return await asyncio.to_thread(begun.acquire, timeout=within_s)

    async def cancel(callers: list[asyncio.Task[None]]) -> None:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

    try:
        first = [asyncio.create_task(threads.run(work, number)) for number in (1, 2)]
        assert await begins(60)
        assert await begins(60)
        await cancel(first)
        second = [asyncio.create_task(threads.run(work, number)) for number in (3, 4)]
        assert not await begins(0.2)
        await cancel(second)
    finally:
        may_end.set()
    await threads.run(ran.append, 5)
    assert sorted(ran) == [1, 2, 5]


async def test_what_a_function_raises_reaches_its_caller() -> None:
    """And the thread takes the next."""
    threads = CodecThreads(1)
    with pytest.raises(ValueError, match="invalid literal"):
        await threads.run(int, "seven")
    assert await threads.run(int, "7") == 7
