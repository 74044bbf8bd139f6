"""Requests per minute, per key, over a sliding minute. Counted by the `limits` library, in memory or in Redis.

Only submits are counted: a poll for a live job is never refused. What an account may have in flight is another
limit, kept where jobs are accepted, because only the database knows it exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute, WindowStats, strategies
from limits.aio.storage import Storage as AwaitableStorage
from limits.aio.strategies import MovingWindowRateLimiter as AwaitableLimiter
from limits.storage import MemoryStorage, storage_from_string

from rekontext.accounts.errors import RateLimited
from rekontext.database.tables import KeyId
from rekontext.sources import Clock

REQUESTS_PER_MINUTE_DEFAULT: Final = 60


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a key may still send: for the headers of an answer that was allowed."""

    limit: int
    remaining: int
    reset_at: datetime


class RequestLimiter:
    """Counts the requests of each key. One per process, for one event loop.

    Args:
        storage: "memory://" counts in this process only; "redis://host/0" counts over all of them.

    Raises:
        ValueError: the storage can't keep a sliding window.
    """

    def __init__(self, *, clock: Clock, storage: str = "memory://") -> None:
        self._clock = clock
        storage = storage.removeprefix("async+")  # how the library itself writes it
        self._count: Callable[[RateLimitItem, str], Awaitable[tuple[bool, WindowStats]]]
        if storage == "memory://":
            # Asked directly: the library's awaitable memory hops through a thread for every key it knows.
            self._count = _in_memory(strategies.MovingWindowRateLimiter(MemoryStorage()))
        elif storage.startswith("redis"):
            # The library's default Redis client fails with current versions of itself.
            made = storage_from_string(f"async+{storage}", implementation="redispy")
            assert isinstance(made, AwaitableStorage), f"{storage} gave a {type(made).__name__}"
            self._count = _over_the_network(AwaitableLimiter(made))
        else:
            raise ValueError(
                f"rate limit storage {storage!r} is not supported; allowed: memory://, redis://HOST/NUMBER"
            )

    async def count(self, key: KeyId, *, requests_per_minute: int = REQUESTS_PER_MINUTE_DEFAULT) -> Allowance:
        """Count one request.

        Raises:
            RateLimited: the key used up its minute; nothing was counted.
        """
        allowed, window = await self._count(RateLimitItemPerMinute(requests_per_minute), key)
        # The library reads the wall clock itself; ours may be another one, so only the difference crosses over.
        wait_s = max(0.0, window.reset_time - time.time())
        reset_at = self._clock.now() + timedelta(seconds=wait_s)
        if not allowed:
            raise RateLimited(limit=requests_per_minute, reset_at=reset_at, retry_after_s=max(1, math.ceil(wait_s)))
        return Allowance(limit=requests_per_minute, remaining=max(0, window.remaining), reset_at=reset_at)


def _in_memory(
    limiter: strategies.MovingWindowRateLimiter,
) -> Callable[[RateLimitItem, str], Awaitable[tuple[bool, WindowStats]]]:
    async def count(item: RateLimitItem, key: str) -> tuple[bool, WindowStats]:
        return limiter.hit(item, key), limiter.get_window_stats(item, key)

    return count


def _over_the_network(
    limiter: AwaitableLimiter,
) -> Callable[[RateLimitItem, str], Awaitable[tuple[bool, WindowStats]]]:
    async def count(item: RateLimitItem, key: str) -> tuple[bool, WindowStats]:
        return await limiter.hit(item, key), await limiter.get_window_stats(item, key)

    return count
