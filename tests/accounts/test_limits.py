"""Requests per minute, per key, exactly."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from rekontext.accounts import RateLimited, RequestLimiter
from rekontext.accounts.limits import ASKED_AGAIN_AFTER_S, CountsNotShared
from rekontext.database import KeyId
from tests.accounts import redis_server
from tests.accounts.redis_server import RedisServer
from tests.fakes import FakeClock
from tests.needed import program

KEY = KeyId("key_1")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis server of the test's own."""
    with redis_server.running(program("redis-server", "redis-server")) as server:
        yield server


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others compute, a Redis that is well takes its time."""
    for bound in ("_PATIENCE_S", "_REQUEST_S_MAX"):
        monkeypatch.setattr(f"rekontext.accounts.limits.{bound}", 60.0)


@asynccontextmanager
async def limiter_on(storage: str, clock: FakeClock) -> AsyncIterator[RequestLimiter]:
    limiter = RequestLimiter(clock=clock, storage=storage)
    try:
        yield limiter
    finally:
        await limiter.close()


@pytest.mark.anyio
async def test_concurrent_requests_on_a_limit_pass_exactly_the_limit(clock: FakeClock) -> None:
    """300 at once on 100 a minute: 100 pass, and each is told what is left."""
    limiter = RequestLimiter(clock=clock)
    answers = await asyncio.gather(
        *(limiter.count(KEY, requests_per_minute=100) for _ in range(300)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, RateLimited)]
    assert len(refused) == 200
    for refusal in refused:
        assert 1 <= refusal.retry_after_s <= 60
        assert refusal.limit == 100
        assert 0 < (refusal.reset_at - clock.now()).total_seconds() <= 60


@pytest.mark.anyio
async def test_an_allowed_request_is_told_what_is_left(clock: FakeClock) -> None:
    """For the headers of the answer."""
    limiter = RequestLimiter(clock=clock)
    first = await limiter.count(KEY, requests_per_minute=3)
    second = await limiter.count(KEY, requests_per_minute=3)
    assert (first.limit, first.remaining, second.remaining) == (3, 2, 1)
    assert 0 < (second.reset_at - clock.now()).total_seconds() <= 60
    assert second.reset_at <= first.reset_at, "it is the oldest one's time"


@pytest.mark.anyio
async def test_keys_do_not_count_for_each_other(clock: FakeClock) -> None:
    """One noisy key leaves the others alone."""
    limiter = RequestLimiter(clock=clock)
    await limiter.count(KEY, requests_per_minute=1)
    with pytest.raises(RateLimited, match="1 requests per minute"):
        await limiter.count(KEY, requests_per_minute=1)
    await limiter.count(KeyId("key_2"), requests_per_minute=1)


@pytest.mark.anyio
@pytest.mark.usefixtures("patience")
async def test_processes_that_share_a_redis_share_the_limit(redis: RedisServer, clock: FakeClock) -> None:
    """300 at once over two of them, on 100 a minute: 100 pass, and nobody gets another kind of refusal."""
    async with limiter_on(redis.url, clock) as one, limiter_on(redis.url, clock) as other:
        await one.check()
        answers = await asyncio.gather(
            *(limiter.count(KEY, requests_per_minute=100) for _ in range(150) for limiter in (one, other)),
            return_exceptions=True,
        )
        assert Counter(type(answer).__name__ for answer in answers) == {"Allowance": 100, "RateLimited": 200}
        refusal = next(answer for answer in answers if isinstance(answer, RateLimited))
        assert 0 < (refusal.reset_at - clock.now()).total_seconds() <= 60
        assert (await other.count(KeyId("key_2"), requests_per_minute=3)).remaining == 2
        assert (await one.count(KeyId("key_2"), requests_per_minute=3)).remaining == 1


@pytest.mark.anyio
@pytest.mark.usefixtures("patience")
async def test_without_its_redis_a_process_counts_by_itself(redis: RedisServer, clock: FakeClock) -> None:
    """Nobody is refused for it, the limit still holds, and once Redis is back it is used again."""
    async with limiter_on(redis.url, clock) as limiter, limiter_on(redis.url, clock) as other:
        await limiter.count(KEY, requests_per_minute=2)
        redis.kill()
        await limiter.count(KEY, requests_per_minute=2)
        await limiter.count(KEY, requests_per_minute=2)
        with pytest.raises(RateLimited, match="2 requests per minute"):
            await limiter.count(KEY, requests_per_minute=2)
        with pytest.raises(CountsNotShared):
            await limiter.check()
        redis.start()
        with pytest.raises(RateLimited):  # it is left alone for a while
            await limiter.count(KEY, requests_per_minute=2)
        clock.advance(ASKED_AGAIN_AFTER_S)
        await limiter.count(KEY, requests_per_minute=2)
        await other.count(KEY, requests_per_minute=2)
        with pytest.raises(RateLimited):
            await limiter.count(KEY, requests_per_minute=2)


@pytest.mark.anyio
async def test_a_redis_that_hangs_holds_up_few_and_not_for_long(redis: RedisServer, clock: FakeClock) -> None:
    """One that takes connections and never answers is as good as none; those behind the first don't wait as well."""
    assert redis.process is not None
    async with limiter_on(redis.url, clock) as limiter:
        await limiter.count(KEY, requests_per_minute=100)
        redis.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(10):  # one after the other, 300 would wait for 20 s
            counted = await asyncio.gather(*(limiter.count(KEY, requests_per_minute=1000) for _ in range(300)))
        assert sorted(each.remaining for each in counted) == list(range(700, 1000))


@pytest.mark.anyio
async def test_a_slow_redis_holds_up_no_queue(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no answer for too long, with the wait for a turn, is counted here; those behind need not wait."""

    asked = 0

    async def slow(*_asked: object) -> bool:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr("rekontext.accounts.limits.AwaitableLimiter.hit", slow)
    monkeypatch.setattr("rekontext.accounts.limits._REQUEST_S_MAX", 0.1)
    async with limiter_on("redis://127.0.0.1:1/0", clock) as limiter:
        async with asyncio.timeout(10):
            counted = await asyncio.gather(*(limiter.count(KEY, requests_per_minute=1000) for _ in range(100)))
        assert sorted(each.remaining for each in counted) == list(range(900, 1000))
        before = asked
        await limiter.count(KEY, requests_per_minute=1000)
        assert asked == before > 0


@pytest.mark.anyio
@pytest.mark.usefixtures("patience")
async def test_a_clock_that_was_set_back_does_not_keep_redis_away(redis: RedisServer, clock: FakeClock) -> None:
    """The time since the failure would be below zero for as long as it was set back."""
    async with limiter_on(redis.url, clock) as limiter:
        redis.kill()
        await limiter.count(KEY, requests_per_minute=2)
        redis.start()
        clock.set_back(3600)
        await limiter.count(KEY, requests_per_minute=2)
        await limiter.count(KEY, requests_per_minute=2)
        with pytest.raises(RateLimited):
            await limiter.count(KEY, requests_per_minute=2)


@pytest.mark.anyio
async def test_a_service_may_start_before_its_redis(clock: FakeClock) -> None:
    """It counts by itself until then."""
    with socket.socket() as taken:  # so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with limiter_on(f"redis://127.0.0.1:{port}/0", clock) as limiter:
            await limiter.count(KEY, requests_per_minute=1)
            with pytest.raises(RateLimited):
                await limiter.count(KEY, requests_per_minute=1)


@pytest.mark.parametrize(
    ("storage", "complaint"),
    [
        ("mongodb://user:geheim@x", r"'mongodb' is not supported; allowed: memory://, redis://"),
        ("redis+cluster://x", "'redis\\+cluster' is not supported"),
        ("redis://127.0.0.1:99999/0", "Port out of range"),
    ],
)
def test_a_storage_that_cannot_count_is_refused(clock: FakeClock, storage: str, complaint: str) -> None:
    """When the service starts, not at the first request, and without the password that a URL may hold."""
    with pytest.raises(ValueError, match=complaint) as refused:
        RequestLimiter(clock=clock, storage=storage)
    assert "geheim" not in str(refused.value)


def test_a_missing_client_is_named(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ValueError, match=r"pip install 'rekontext\[redis\]'"):
        RequestLimiter(clock=clock, storage="redis://127.0.0.1/0")
