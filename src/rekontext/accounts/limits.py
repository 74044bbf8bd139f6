"""Requests per minute, per key, over a sliding minute. Counted by the `limits` library, in memory or in Redis.

Counted is what makes work: submits, uploads, photos fetched for a page, new keys, messages that are sent on request.
A poll for a live job is never refused. What an account may have in flight is another limit, kept where jobs are
accepted, because only the database knows it exactly.

Redis may go away: then this process counts by itself, so a key has its limit once per process instead of once in
all, and Redis is asked again every few seconds. No request fails or waits long for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog
from limits import RateLimitItem, RateLimitItemPerMinute, WindowStats, strategies
from limits.aio.storage import Storage as AwaitableStorage
from limits.aio.strategies import MovingWindowRateLimiter as AwaitableLimiter
from limits.storage import MemoryStorage, storage_from_string

from rekontext.accounts.errors import RateLimited
from rekontext.database.tables import KeyId
from rekontext.sources import Clock

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

REQUESTS_PER_MINUTE_DEFAULT: Final = 60
ASKED_AGAIN_AFTER_S: Final = 5.0
"""How long Redis is left alone after it failed."""

_MEMORY: Final = "memory://"
_REDIS: Final = ("redis://", "rediss://", "unix://")
_ALLOWED: Final = "memory://, redis://HOST:PORT/NUMBER, rediss://…, unix:///SOCKET"
_CONNECTIONS_MAX: Final = 16
_PATIENCE_S: Final = 1.0  # for a connection and for an answer, each
_REQUEST_S_MAX: Final = 3.0  # for a turn and all answers: hundreds at once may well wait for a Redis that is quick
_TOO_SLOW: Final = f"Redis takes longer than {_REQUEST_S_MAX:g} s, with the wait for a turn"
_log = structlog.get_logger(__name__)


class CountsNotShared(ConnectionError):
    """Redis can't be reached, so every process counts for itself."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a key may still send: for the headers of an answer that was allowed.

    Attributes:
        limit: requests per minute.
        remaining: of these, now.
        reset_at: when the oldest one of the last minute no longer counts.
    """

    limit: int
    remaining: int
    reset_at: datetime


class RequestLimiter:
    """Counts the requests of each key. One per process, for one event loop; to be closed in it.

    Args:
        storage: "memory://" counts in this process only; "redis://host:6379/0" counts over all of them.

    Raises:
        ValueError: the storage is none of those, or its client isn't installed.
    """

    def __init__(self, *, clock: Clock, storage: str = _MEMORY) -> None:
        self._clock = clock
        # Asked directly: the library's awaitable memory hops through a thread for every key it knows.
        self._own = strategies.MovingWindowRateLimiter(MemoryStorage())
        self._shared = None if storage == _MEMORY else _SharedCounts(storage)
        self._failed_at: datetime | None = None
        self._turns = asyncio.Semaphore(_CONNECTIONS_MAX)

    async def count(self, key: KeyId, *, requests_per_minute: int = REQUESTS_PER_MINUTE_DEFAULT) -> Allowance:
        """Count one request.

        Raises:
            RateLimited: the key used up its minute; nothing was counted.
        """
        allowed, window = await self._ask(RateLimitItemPerMinute(requests_per_minute), key)
        # The library reads the wall clock itself; ours may be another one, so only the difference crosses over.
        wait_s = max(0.0, window.reset_time - time.time())
        reset_at = self._clock.now() + timedelta(seconds=wait_s)
        if not allowed:
            raise RateLimited(limit=requests_per_minute, reset_at=reset_at, retry_after_s=max(1, math.ceil(wait_s)))
        return Allowance(limit=requests_per_minute, remaining=max(0, window.remaining), reset_at=reset_at)

    async def check(self) -> None:
        """Return if counts are kept where the settings want them.

        Raises:
            CountsNotShared: Redis can't be reached.
        """
        if self._shared is not None:
            await self._shared.check()

    async def close(self) -> None:
        """Close the connections."""
        if self._shared is not None:
            await self._shared.close()

    async def _ask(self, item: RateLimitItem, key: str) -> tuple[bool, WindowStats]:
        if self._shared is not None and self._is_worth_asking():
            answer = await self._ask_redis(self._shared, item, key)
            if answer is not None:
                return answer
        return self._own.hit(item, key), self._own.get_window_stats(item, key)

    async def _ask_redis(self, shared: _SharedCounts, item: RateLimitItem, key: str) -> tuple[bool, WindowStats] | None:
        """Redis' answer, None without one."""
        before = self._failed_at
        try:
            async with asyncio.timeout(_REQUEST_S_MAX), self._turns:
                if self._failed_at is not None and self._failed_at != before:
                    return None  # it failed while this request waited for its turn
                answer = await shared.hit(item, key)
        except (CountsNotShared, TimeoutError) as fault:
            if self._failed_at is None:
                _log.error("rate_limits_not_shared", fault=str(fault) or _TOO_SLOW)
            self._failed_at = self._clock.now()
            return None
        if self._failed_at is not None:
            _log.info("rate_limits_shared_again")
        self._failed_at = None
        return answer

    def _is_worth_asking(self) -> bool:
        """Whether Redis is well as far as we know, or has been left alone for long enough."""
        if self._failed_at is None:
            return True
        now = self._clock.now()
        if 0 <= (now - self._failed_at).total_seconds() < ASKED_AGAIN_AFTER_S:
            return False
        self._failed_at = now  # one request tries its luck, the others need not wait for it
        return True


class _SharedCounts:
    """The counts in Redis, over a few connections, with a bound on every wait."""

    def __init__(self, url: str) -> None:
        if not url.startswith(_REDIS):
            # Not shown whole: it may hold a password.
            raise ValueError(f"rate limit storage {url.partition(':')[0]!r} is not supported; allowed: {_ALLOWED}")
        try:
            from redis.asyncio import BlockingConnectionPool  # unlike the default one it never refuses
        except ImportError as error:
            raise ValueError("rate limits in Redis need its client: pip install 'rekontext[redis]'") from error
        try:
            self._pool: ConnectionPool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS_MAX,
                timeout=_PATIENCE_S,
                socket_connect_timeout=_PATIENCE_S,
                socket_timeout=_PATIENCE_S,
            )
        except ValueError as error:
            raise ValueError(f"rate limit storage can't be read: {error}; allowed: {_ALLOWED}") from error
        # The library's default Redis client fails with current versions of itself.
        options: dict[str, Any] = {"implementation": "redispy", "connection_pool": self._pool}
        made = storage_from_string("async+redis://", **options)
        assert isinstance(made, AwaitableStorage), f"a {type(made).__name__} can't be awaited"
        self._faults = made.base_exceptions
        self._storage = made
        self._limiter = AwaitableLimiter(made)

    async def hit(self, item: RateLimitItem, key: str) -> tuple[bool, WindowStats]:
        """Count, and look at what is left.

        Raises:
            CountsNotShared: no answer came.
        """
        try:
            return await self._limiter.hit(item, key), await self._limiter.get_window_stats(item, key)
        except self._faults as fault:
            raise CountsNotShared(f"Redis does not answer: {fault}") from fault

    async def check(self) -> None:
        if not await self._storage.check():
            raise CountsNotShared("Redis does not answer")

    async def close(self) -> None:
        await self._pool.aclose()
