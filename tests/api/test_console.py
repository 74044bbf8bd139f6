"""What the console is told: its own account only, each key no more than it may, each operator's act written down."""

from __future__ import annotations

import asyncio
import base64
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx2
import pytest

from rekontext.accounts import keys
from rekontext.database.transactions import LONG_READERS
from rekontext.jobs import queries
from rekontext.sources import SystemClock
from tests.api.conftest import MakeStudio
from tests.api.orders import NIGHT, V1, followed
from tests.api.studio import SOON_S, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio


async def test_me(client: httpx2.AsyncClient, studio: Studio) -> None:
    """Account, key, money, model and price."""
    await client.post(V1, json=NIGHT)
    me = (await client.get("/console/api/me")).json()
    assert (me["account"]["name"], me["key"]["id"], me["key"]["is_current"]) == ("owner", studio.key_id, True)
    assert me["key"]["scopes"] == ["admin", "edit", "read"]
    assert studio.key.startswith(me["key"]["hint"])
    assert studio.key not in str(me)
    assert me["balance"] == {"credits": 0, "free_credits": 9.96, "held": 0, "available": 9.96}
    assert (me["price_per_edit"], me["spent_this_month"]) == (0.04, 0.04)
    assert me["picture_bytes_max"] == studio.options.picture_bytes_max
    assert me["lora_bytes_max"] == studio.options.lora_bytes_max
    assert (me["model"]["name"], me["model"]["knows"], me["model"]["ready"]) == ("mini", ["make it night"], True)


async def test_usage_by_day(client: httpx2.AsyncClient) -> None:
    """Every day is there; today has what was done today."""
    for body in (NIGHT, NIGHT):
        await client.post(V1, json=body)
    cut = NIGHT | {"input_image": base64.b64encode(photo_bytes(64, 64)[:-300]).decode()}
    assert (await client.post(V1, json=cut)).status_code == 400
    usage = (await client.get("/console/api/usage?days=7")).json()
    assert len(usage["days"]) == 7
    today, total = usage["days"][-1], usage["total"]
    assert (today["edits"], today["completed"], today["failed"], today["cost"]) == (3, 2, 1, 0.08)
    assert 0 < today["latency_ms"]["p50"] <= today["latency_ms"]["p99"]
    assert {name: today[name] for name in total} == total
    assert usage["days"][0]["latency_ms"] is None
    wrong = await client.get("/console/api/usage?days=93")
    assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (400, "days")


async def test_histories_leave_the_threads_of_keys_alone(client: httpx2.AsyncClient, studio: Studio) -> None:
    """Pages that look through a whole history wait for each other, and nobody else for them."""
    may_end = threading.Event()
    database = studio.service.parts.database
    pages = (
        "/console/api/usage",
        "/console/api/requests",
        "/console/api/deliveries",
        "/console/api/admin/accounts",
        "/console/api/admin/requests",
        "/inference-request/request-history",
    )
    long = [asyncio.ensure_future(database.read_long(lambda tx: may_end.wait(60))) for _ in range(LONG_READERS)]
    asked = [asyncio.ensure_future(client.get(page)) for page in pages]
    for _ in pages:
        assert (await client.get("/console/api/me")).status_code == 200
    assert [page for page, answer in zip(pages, asked, strict=True) if answer.done()] == []
    may_end.set()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * len(pages)
    await asyncio.gather(*long)


async def test_requests_are_found_by_what_they_were(client: httpx2.AsyncClient) -> None:
    """By state, day, words of the prompt; page by page, the newest first."""
    for prompt in ("make it night", "make it 100% blue", "blur the background"):
        assert (await client.post(V1, json=NIGHT | {"prompt": prompt})).status_code == 200

    async def found(query: str) -> list[str]:
        answer = await client.get(f"/console/api/requests?{query}")
        assert answer.status_code == 200, answer.text
        return [row["prompt"] for row in answer.json()["data"]]

    assert await found("") == ["blur the background", "make it 100% blue", "make it night"]
    assert await found("search=make it") == ["make it 100% blue", "make it night"]
    assert await found("search=100%25") == ["make it 100% blue"]
    assert await found("search=_") == []
    assert await found("status=COMPLETED&per_page=1&page=2") == ["make it 100% blue"]
    assert await found("status=FAILED") == []
    assert await found("to=2020-01-01") == []
    now = datetime.now(UTC)
    today, hour = now.date().isoformat(), timedelta(hours=1)
    assert len(await found(f"from={today}&to={today}")) == 3
    assert len(await found(f"from={_moment(now - hour)}&to={_moment(now + hour)}")) == 3
    assert await found(f"from={_moment(now + hour)}") == await found(f"to={_moment(now - hour)}") == []
    assert await found("to=2020-01-01T00:00:00Z") == []
    wrong = await client.get("/console/api/requests?from=yesterday")
    assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (400, "from")
    page = (await client.get("/console/api/requests?per_page=2")).json()
    assert (page["total"], page["total_pages"], page["page"]) == (3, 2, 1)
    row = page["data"][0]
    assert (row["cost"], row["steps"], row["status"], row["error"]) == (0.04, 4, "COMPLETED", None)
    assert row["num_images"] == 1
    assert (await client.get(row["output"])).status_code == 200
    whole = (await client.get(f"/console/api/requests/{row['request_id']}")).json()
    assert whole["parameters"]["guidance"] == 7.0
    assert "origin" not in whole["parameters"]
    assert (whole["images"][0]["width"], whole["made_by"]) == (48, "mini")


def _moment(when: datetime) -> str:
    return when.astimezone(timezone(timedelta(hours=-9, minutes=-30))).isoformat()


async def test_a_key_is_shown_once_and_revoked_for_good(client: httpx2.AsyncClient, studio: Studio) -> None:
    """Made, listed without itself, good for its scope, then closed."""
    made = await client.post("/console/api/keys", json={"name": "reader", "scopes": ["read"], "sync_response": "json"})
    assert made.status_code == 201
    secret, key = made.json()["api_key"], made.json()["key"]
    listed = await client.get("/console/api/keys")
    assert [each["name"] for each in listed.json()["keys"]] == ["reader", "first"]
    assert secret not in listed.text
    async with studio.client(secret) as reader:
        assert (await reader.get("/console/api/requests")).status_code == 200
        assert (await reader.post("/console/api/keys", json={})).json()["code"] == "scope_missing"
        revoked = await client.delete(f"/console/api/keys/{key['id']}")
        assert revoked.json()["key"]["revoked_at"] is not None
        assert (await reader.get("/console/api/requests")).json()["code"] == "invalid_api_key"


async def test_a_key_that_is_not_there_has_a_code_of_its_own(client: httpx2.AsyncClient) -> None:
    """The account is known."""
    answer = await client.delete("/console/api/keys/nope")
    assert (answer.status_code, answer.json()["code"]) == (404, "key_unknown")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("keys", {"requests_per_minute": 5.0}, 201),
        ("keys", {"requests_per_minute": None}, 201),
        ("keys", {"requests_per_minute": True}, 400),
        ("keys", {"requests_per_minute": "5"}, 400),
        ("keys", {"requests_per_minute": 5.5}, 400),
        ("keys", {"name": "\u0000"}, 400),
        ("keys", {"models": ["a\u0000"]}, 400),
        ("admin/accounts", {"name": "a\u0000"}, 400),
        ("admin/accounts", {"name": "owner "}, 400),
        ("admin/accounts", {"name": "own\u200ber"}, 400),
        ("admin/accounts", {"name": "Bob", "credits": True}, 400),
        ("admin/accounts", {"name": "Bob", "credits": 1.5}, 201),
        ("admin/accounts", {"name": "Bob", "credits": 1e-6}, 201),
        ("admin/accounts", {"name": "Bob", "credits": "1_5"}, 400),
        ("admin/accounts/{account}/credits", {"amount": True}, 400),
        ("admin/accounts/{account}/credits", {"amount": 1e3}, 200),
        ("admin/accounts/{account}/credits", {"amount": "\uff11\uff10"}, 400),
        ("admin/accounts/{account}/credits", {"amount": 1, "note": "a\u0000"}, 400),
        ("admin/accounts/{account}", {"in_flight_max": 5.0}, 200),
        ("admin/accounts/{account}", {"in_flight_max": None}, 200),
        ("admin/accounts/{account}", {"in_flight_max": True}, 400),
        ("admin/accounts/{account}", {"in_flight_max": "5"}, 400),
    ],
)
async def test_bodies_are_meant_as_they_stand(
    client: httpx2.AsyncClient, studio: Studio, path: str, body: dict[str, object], status: int
) -> None:
    """A number is a JSON number, true is none, and text that a database can't keep is refused in words."""
    method = "PATCH" if "in_flight_max" in body else "POST"
    answer = await client.request(method, f"/console/api/{path.format(account=studio.account)}", json=body)
    assert answer.status_code == status, answer.text


async def test_a_key_names_models_that_there_are(client: httpx2.AsyncClient) -> None:
    """Of another one, each edit would be refused; and a list of keys has a bounded length."""
    for name, status in (("flux-kontext-dev", 201), ("mini", 400), ("m" * 201, 400)):
        answer = await client.post("/console/api/keys", json={"models": [name]})
        assert answer.status_code == status
    assert answer.json()["errors"][0]["parameter"].startswith("models")


@pytest.mark.parametrize(
    ("maker", "wanted", "more"),
    [
        ({}, {"scopes": ["admin", "read"]}, "admin"),
        ({"requests_per_minute": 5}, {}, "more requests per minute"),
        ({"requests_per_minute": 5}, {"requests_per_minute": 6}, "more requests per minute"),
        ({}, {"requests_per_minute": 10_001}, "more requests per minute"),
        ({"models": frozenset({"flux-kontext-dev"})}, {}, "more models"),
        ({"models": frozenset({"another"})}, {"models": ["flux-kontext-dev"]}, "more models"),
    ],
)
async def test_a_key_can_t_make_one_that_may_do_more(
    studio: Studio, maker: dict[str, Any], wanted: dict[str, Any], more: str
) -> None:
    """Else a limited key would be as good as an unlimited one."""
    async with studio.open(), studio.client(studio.new_key(**maker).secret) as client:
        answer = await client.post("/console/api/keys", json=wanted)
        assert (answer.status_code, answer.json()["code"]) == (403, "key_too_narrow")
        assert more in answer.json()["error"]


async def test_limits_are_compared_as_they_count(studio: Studio) -> None:
    """None is the service's default: neither more nor less than that number. An operator's key gives out any."""
    default, same = studio.new_key().secret, studio.new_key(requests_per_minute=10_000).secret
    async with studio.open() as operator:
        for maker in (default, same):
            async with studio.client(maker) as client:
                for wanted in ({}, {"requests_per_minute": 10_000}):
                    assert (await client.post("/console/api/keys", json=wanted)).status_code == 201
        any_rate = await operator.post("/console/api/keys", json={"requests_per_minute": 1_000_000})
        assert any_rate.status_code == 201


async def test_making_a_key_counts_as_a_request(make_studio: MakeStudio) -> None:
    """Each has a minute of its own, so that many made at once would be a way around the limit."""
    studio = make_studio(requests_per_minute=3)
    async with studio.open(), studio.client(studio.new_key().secret) as client:
        answers = [await client.post("/console/api/keys", json={}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        assert answers[-1].json()["code"] == "rate_limited"


async def test_a_key_that_would_never_open_anything_is_not_made(studio: Studio) -> None:
    """It wouldn't count among the open ones either, of which there is a bounded number."""
    now = SystemClock().now()
    async with studio.open() as client:
        for path in ("/console/api/keys", f"/console/api/admin/accounts/{studio.account}/keys"):
            answer = await client.post(path, json={"expires_at": (now - timedelta(seconds=1)).isoformat()})
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameters")
            assert "expires_at lies in the past (allowed: a moment to come, or nothing)" in answer.json()["error"]
            coming = await client.post(path, json={"expires_at": (now + timedelta(days=1)).isoformat()})
            assert coming.status_code == 201


async def test_an_account_makes_a_bounded_number_of_keys(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are closed make room; operators are not bound."""
    monkeypatch.setattr(keys, "OPEN_MAX", 3)
    studio.new_key(expires_at=SystemClock().now() - timedelta(seconds=1))
    async with studio.open() as operator, studio.client(studio.new_key().secret) as client:  # the first two
        third = await client.post("/console/api/keys", json={})
        refused = await client.post("/console/api/keys", json={})
        assert (third.status_code, refused.status_code, refused.json()["code"]) == (201, 409, "too_many_keys")
        assert "3 open API keys" in refused.json()["error"]
        assert (await operator.post("/console/api/keys", json={})).status_code == 201
        for made in (await operator.get("/console/api/keys")).json()["keys"][:2]:
            assert (await client.delete(f"/console/api/keys/{made['id']}")).status_code == 200
        assert (await client.post("/console/api/keys", json={})).status_code == 201


@pytest.mark.parametrize(
    ("revoker", "other", "more"),
    [
        ({}, {"scopes": frozenset({"admin"})}, "admin"),
        ({"scopes": frozenset({"edit"})}, {}, "read"),
        ({}, {"requests_per_minute": 10_001}, "more requests per minute"),
    ],
)
async def test_a_key_can_t_revoke_one_that_may_do_more(
    studio: Studio, revoker: dict[str, Any], other: dict[str, Any], more: str
) -> None:
    """Else whoever holds the least of an account's keys locks its owner out. An operator's key closes any."""
    own, target = studio.new_key(**revoker), studio.new_key(**other)
    path = f"/console/api/keys/{target.key.id}"
    async with studio.open() as operator, studio.client(own.secret) as client:
        answer = await client.delete(path)
        assert (answer.status_code, answer.json()["code"]) == (403, "key_too_narrow")
        assert more in answer.json()["error"]
        assert (await client.delete(f"/console/api/keys/{own.key.id}")).status_code == 200
        assert (await operator.delete(path)).json()["key"]["revoked_at"] is not None


async def test_wrong_bodies_are_said_by_name(client: httpx2.AsyncClient) -> None:
    """In the one form that every error has."""
    cases = [
        ("/console/api/keys", {"scopes": ["everything"]}, "scopes.0"),
        ("/console/api/keys", {"nmae": "x"}, "nmae"),
        ("/console/api/admin/accounts", {}, "name"),
        ("/console/api/webhooks", {"url": 5}, "url"),
    ]
    for path, body, parameter in cases:
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameters"), path
        assert [each["parameter"] for each in answer.json()["errors"]] == [parameter]
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_the_queue_is_seen_live(make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs with its progress, what waits with its place, which isn't asked for one job after the other."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        first = (await client.post("/v2/flux-kontext-dev", json=NIGHT)).json()
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        second = (await client.post("/v2/flux-kontext-dev", json=NIGHT)).json()
        third = (await client.post("/v2/flux-kontext-dev", json=NIGHT)).json()
        with monkeypatch.context() as patched:
            patched.delattr(queries, "ahead")
            queue = (await client.get("/console/api/admin/queue")).json()
        assert queue["devices"] == {"cpu": "ready"}
        assert (queue["queued"], queue["processing"], queue["running_here"], queue["running_max"]) == (2, 1, 1, 1)
        running, waiting, last = queue["jobs"]
        assert (running["request_id"], running["status"]) == (first["request_id"], "PROCESSING")
        assert (running["progress"]["step"], running["eta_seconds"]) == (0, 2.0)
        assert (waiting["request_id"], waiting["progress"]) == (second["request_id"], None)
        assert last["request_id"] == third["request_id"]
        assert last["eta_seconds"] > waiting["eta_seconds"] > running["eta_seconds"]
        studio.fleet.may_step.set()
        await followed(client, third["events_url"])


@pytest.mark.parametrize(
    ("method", "path", "json", "allowed"),
    [
        ("POST", "/console/api/keys", {"name": "a\0b"}, "text without NUL characters"),
        ("POST", "/console/api/keys", {"unknown": 1}, "no field of this name"),
        ("POST", "/console/api/keys", {"name": "x" * 201}, "at most 200 characters"),
        ("POST", "/console/api/admin/accounts", {"name": "Bob\u202e"}, "1 to 200 characters that can be seen, and"),
        ("POST", "/console/api/admin/accounts", {"name": "Bob", "credits": "1e3"}, "a number in plain digits, such as"),
        ("GET", "/console/api/requests?per_page=0", None, "greater than or equal to 1"),
        ("GET", "/console/api/requests?per_page=many", None, "a valid integer"),
        ("GET", "/console/api/requests?from=x", None, "a moment with its offset"),
        ("GET", "/console/api/requests?from=0001-01-01T00:00:00%2B14:00", None, "in the years 1 to 9999, in UTC"),
        ("GET", "/inference-request/request-history?from_date=x", None, "a date, YYYY-MM-DD"),
        ("GET", "/inference-request/generations?start_date=0", None, "a date, YYYY-MM-DD"),
        ("GET", "/console/api/requests?to=0.5", None, "a moment with its offset"),
        (
            "POST",
            "/console/api/keys",
            {"expires_at": 4e9},
            "a moment with its offset, such as 2026-05-01T00:00:00+02:00",
        ),
    ],
)
async def test_what_is_wrong_comes_with_what_would_be_right(
    client: httpx2.AsyncClient, method: str, path: str, json: object, allowed: str
) -> None:
    answer = await client.request(method, path, json=json)
    assert answer.status_code == 400
    [wrong] = answer.json()["errors"]
    assert wrong["allowed"].startswith(allowed)
