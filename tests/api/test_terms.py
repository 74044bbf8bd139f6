"""On which terms edits are made: what a key may ask for, how often, and what it costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from rekontext.accounts import integrity
from rekontext.database.tables import jobs, transfers
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V1, V2, followed
from tests.api.studio import Studio

pytestmark = pytest.mark.anyio


async def test_a_hundred_submits_at_once_on_a_balance_for_ten_make_exactly_ten(make_studio: MakeStudio) -> None:
    """The others are told the balance and the price, and cost nothing."""
    studio = make_studio(in_flight_max=1000)
    key = studio.new_account("ten", credits_micros=400_000).secret
    async with studio.open(), studio.client(key) as client:
        answers = await asyncio.gather(*(client.post(V1, json=GOOD) for _ in range(100)))
        credits = (await client.get("/v1/get-user-credits")).json()["free-credits"]
        database = studio.service.parts.database
        made = await database.read(lambda tx: tx.execute(select(jobs.c.state)).scalars().all())
        kinds = await database.read(lambda tx: tx.execute(select(transfers.c.kind)).scalars().all())
        assert await database.read(integrity.faults) == []
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [406] * 90
    refused = next(answer for answer in answers if answer.status_code == 406).json()
    assert refused["code"] == "insufficient_credits"
    assert "$0.04" in refused["error"]
    assert made == ["COMPLETED"] * 10
    assert (kinds.count("hold"), kinds.count("capture"), credits) == (10, 10, 0)


async def test_keys_that_are_not_good_for_it(studio: Studio) -> None:
    """Scope, model, priority: 403, each by name."""
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"scopes": frozenset({"read"})}, GOOD, "scope_missing"),
        ({"models": frozenset({"another"})}, GOOD, "model_not_allowed"),
        ({}, GOOD | {"priority": 1}, "scope_missing"),
    ]
    async with studio.open():
        for policy, body, code in cases:
            async with studio.client(studio.new_key(**policy).secret) as client:
                answer = await client.post(V2, json=body)
                assert (answer.status_code, answer.json()["code"]) == (403, code)
        async with studio.client(studio.new_key().secret) as client:
            assert (await client.post(V2, json=GOOD | {"priority": -2})).status_code == 200
    assert studio.fleet.requests == [] or studio.fleet.requests[0].priority == -2


async def test_the_rate_of_submits_is_limited_and_polls_are_not(studio: Studio) -> None:
    """The third of two is a 429 that says when to come back; status is asked a hundred times."""
    async with studio.open(), studio.client(studio.new_key(requests_per_minute=2).secret) as client:
        first = await client.post(V2, json=GOOD)
        assert (first.headers["ratelimit-limit"], first.headers["ratelimit-remaining"]) == ("2", "1")
        await client.post(V2, json=GOOD)
        refused = await client.post(V2, json=GOOD)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-rate-limit-reset-at-utc"].endswith("Z")
        assert refused.headers["ratelimit-remaining"] == "0"
        url = first.json()["status_url"]
        assert {(await client.get(url)).status_code for _ in range(100)} == {200}


async def test_json_by_the_key_and_by_the_header(studio: Studio) -> None:
    """The header decides where it says something; the key where it doesn't."""
    accepts: list[tuple[str, str, bool]] = [
        ("json", "*/*", True),
        ("json", "image/png", False),
        ("image", "*/*", False),
        ("image", "application/json", True),
    ]
    async with studio.open():
        for sync_response, accept, is_json in accepts:
            async with studio.client(studio.new_key(sync_response=sync_response).secret) as client:
                answer = await client.post(V1, json=GOOD, headers={"accept": accept})
            assert (answer.headers["content-type"] == "application/json") is is_json, (sync_response, accept)


async def test_what_ours_on_top_reaches_the_engine(studio: Studio) -> None:
    """Acceleration, priority, previews and the account."""
    async with studio.open() as client:
        body = GOOD | {"acceleration": "high", "priority": 2, "previews": 3}
        done = await followed(client, (await client.post(V2, json=body)).json()["events_url"])
    [request] = studio.fleet.requests
    assert (request.acceleration, request.priority, request.preview_every) == ("high", 2, 3)
    assert request.account == studio.account
    assert done[-1][2]["metrics"]["acceleration"] == "high"


async def test_prices_by_size_and_steps(make_studio: MakeStudio) -> None:
    """Added up from the settings, and named in the headers."""
    studio = make_studio(
        price_per_edit_usd="0.01", price_per_step_usd="0.001", price_per_megapixel_usd="1", first_credits_usd="1"
    )
    async with studio.open() as client:
        await client.post(V1, json=GOOD)
        answer = await client.post(V1, json=GOOD | {"num_inference_steps": 10})
    assert answer.headers["x-cost"] == "0.085536", "1 cent, 10 steps of 0.1 cent, 0.065536 megapixels of a dollar"
