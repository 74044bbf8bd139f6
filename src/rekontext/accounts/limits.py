"""Requests per minute, per key, over a sliding minute. Counted by the `limits` library, in memory or in Redis.

Only submits are counted: a poll for a live job is never refused. What an account may have in flight is another
limit, kept where jobs are accepted, because only the database knows it exactly.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, cast

from limits import RateLimitItemPerMinute
from limits.aio.storage import MovingWindowSupport, Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string

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
        storage: "async+memory://" counts in this process only; "async+redis://host/0" counts over all of them.
    """

    def __init__(self, *, clock: Clock, storage: str = "async+memory://") -> None:
        # The default Redis client of the library fails with current versions of itself.
        options = {"implementation": "redispy"} if storage.startswith("async+redis") else {}
        made = storage_from_string(storage, **options)
        if not (isinstance(made, Storage) and isinstance(made, MovingWindowSupport)):
            raise ValueError(
                f"rate limit storage {storage!r} can't keep a sliding window; allowed: async+memory://, async+redis://HOST"
            )
        self._limiter = MovingWindowRateLimiter(cast(Storage, made))
        self._clock = clock

    async def count(self, key: KeyId, *, requests_per_minute: int = REQUESTS_PER_MINUTE_DEFAULT) -> Allowance:
        """Count one request.

        Raises:
            RateLimited: the key used up its minute; nothing was counted.
        """
        item = RateLimitItemPerMinute(requests_per_minute)
        allowed = await self._limiter.hit(item, key)
        window = await self._limiter.get_window_stats(item, key)
        now = self._clock.now()
        # The library reads the wall clock itself; ours may be another one, so only the difference crosses over.
        wait_s = max(0.0, window.reset_time - time.time())
        reset_at = now + timedelta(seconds=wait_s)
        if not allowed:
            raise RateLimited(limit=requests_per_minute, reset_at=reset_at, retry_after_s=max(1, math.ceil(wait_s)))
        return Allowance(limit=requests_per_minute, remaining=max(0, window.remaining), reset_at=reset_at)
