"""Requests per minute, per key, exactly."""

from __future__ import annotations

import asyncio

import pytest

from rekontext.accounts import RateLimited, RequestLimiter
from rekontext.database import KeyId
from tests.fakes import FakeClock

KEY = KeyId("key_1")


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


@pytest.mark.anyio
async def test_keys_do_not_count_for_each_other(clock: FakeClock) -> None:
    """One noisy key leaves the others alone."""
    limiter = RequestLimiter(clock=clock)
    await limiter.count(KEY, requests_per_minute=1)
    with pytest.raises(RateLimited, match="1 requests per minute"):
        await limiter.count(KEY, requests_per_minute=1)
    await limiter.count(KeyId("key_2"), requests_per_minute=1)


def test_a_storage_that_cannot_count_is_refused(clock: FakeClock) -> None:
    """When the service starts, not at the first request."""
    with pytest.raises(ValueError, match=r"'mongodb://x' is not supported; allowed: memory://, redis://"):
        RequestLimiter(clock=clock, storage="mongodb://x")
