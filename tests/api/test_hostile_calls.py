"""The calls beside edits, with bodies and values that nobody means well with: each gets an answer, none a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx2
import pytest

from tests.api.studio import Studio
from tests.database import postgres

pytestmark = pytest.mark.anyio

JSON: Final = {"content-type": "application/json"}
ADD: Final = "/webhook/add"
KEYS: Final = "/console/api/keys"
NESTED: Final = b"[" * 400 + b"]" * 400
GOOD_HOOK: Final = b'{"webhook_url": "https://example.com", "event": {"types": ["edit.completed"]}}'


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request and the answer that it must get."""

    name: str
    status: int = 400
    code: str = "invalid_parameters"
    says: str
    method: str = "POST"
    path: str = ADD
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx2.AsyncClient]:
    """One studio for all: none of these requests leaves anything behind."""
    async with Studio(folder=tmp_path_factory.mktemp("hostile")).open() as client:
        yield client


@pytest.fixture(scope="module")
async def on_postgres(
    postgres_server: str, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx2.AsyncClient]:
    """A studio on PostgreSQL, with the key that its first start made."""
    with postgres.database(postgres_server, "hostile", template=postgres_template) as url:
        studio = Studio(folder=tmp_path_factory.mktemp("postgres"), settings={"database_url": url})
        assert studio.service.first_key is not None
        studio.key = studio.service.first_key.secret
        async with studio.open() as client:
            yield client


def malformed(name: str, content: bytes, says: str = "not valid JSON") -> Call:
    return Call(name=name, code="malformed_body", says=says, content=content)


def query(path: str, says: str) -> Call:
    return Call(name=path[-40:], says=says, method="GET", path=path)


TABLE: Final = [
    malformed("cut JSON", b'{"webhook_url":'),
    malformed("no body", b""),
    malformed("bytes that are no text", b'{"webhook_url": "\xff"}'),
    malformed("half a character", rb'{"webhook_url": "\ud83d"}'),
    malformed("not a number", b'{"webhook_url": NaN}'),
    malformed("an array", b"[1]", "JSON object"),
    malformed("an array in an array", NESTED, "JSON object"),
    Call(name="a deep value", says="webhook_url is", content=GOOD_HOOK.replace(b'"https://example.com"', NESTED)),
    Call(name="a form", status=415, code="unsupported_content_type", says="send application/json", headers={}),
    Call(
        name="text",
        status=415,
        code="unsupported_content_type",
        says='"text/plain"',
        content=GOOD_HOOK,
        headers={"content-type": "text/plain"},
    ),
    Call(
        name="a large body", status=413, code="body_too_large", says="65536", content=b'{"x": "%s"}' % (b"x" * 70_000)
    ),
    Call(name="over every limit", status=413, code="body_too_large", says="400000", content=b"x" * 500_000),
    Call(
        name="a stranger's nonsense",
        status=401,
        code="missing_api_key",
        says="Missing",
        content=b"{",
        headers=JSON | {"x-api-key": ""},
    ),
    Call(
        name="a stranger's query",
        status=401,
        code="missing_api_key",
        says="Missing",
        method="GET",
        path="/inference-request/request-history?page=0",
        headers={"x-api-key": ""},
    ),
    Call(
        name="more digits than 64 bits",
        says="less than or equal to 1000000",
        path=KEYS,
        content=b'{"requests_per_minute": 1%s}' % (b"0" * 30),
    ),
    Call(
        name="a moment after all years",
        says="years 1 to 9999",
        path=KEYS,
        content=b'{"expires_at": "9999-12-31T23:59:59-12:00"}',
    ),
    Call(
        name="a value that Python spells in its own way",
        says="amount is true: ",
        path="/console/api/admin/accounts/any/credits",
        content=b'{"amount": true}',
    ),
    Call(
        name="nothing, where there has to be something",
        says="name is null: ",
        path="/console/api/admin/accounts",
        content=b'{"name": null}',
    ),
    Call(name="a text", says='scopes is "all": ', path=KEYS, content=b'{"scopes": "all"}'),
    query(f"/console/api/admin/audit?before={10**30}", "less than or equal to"),
    query("/inference-request/request-history?to_date=0001-01-01&from_date=9999-12-31", "from_date"),
]


@pytest.mark.parametrize("call", TABLE, ids=lambda call: call.name)
async def test_it_is_refused_in_our_own_words(client: httpx2.AsyncClient, call: Call) -> None:
    """Status, code and sentence, whatever was sent."""
    answer = await client.request(call.method, call.path, content=call.content, headers=dict(call.headers))
    body = answer.json()
    assert (answer.status_code, body["code"]) == (call.status, call.code), body
    assert call.says in body["error"]
    assert body["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "path",
    [
        "/inference-request/generations?start_date=0001-01-01&end_date=9999-12-31",
        "/inference-request/request-history?to_date=9999-12-31",
        "/inference-request/request-history?to_date=0001-01-01",
        "/console/api/requests?from=0001-01-01&to=9999-12-31",
    ],
)
async def test_the_first_and_the_last_day_are_days(client: httpx2.AsyncClient, path: str) -> None:
    """Clients write "without an end" with them."""
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["total"]) == (200, 0)


@pytest.mark.parametrize(
    ("method", "path", "json"),
    [
        ("GET", "/v2/requests/%00", None),
        ("GET", "/v2/requests/%00/status", None),
        ("GET", "/v2/requests/%00/events", None),
        ("POST", "/v2/requests/%00/cancel", None),
        ("GET", "/console/api/requests?search=%00", None),
        ("POST", KEYS, {"name": "a\x00b"}),
        ("POST", KEYS, {"models": ["\x00"]}),
    ],
)
async def test_a_nul_character_is_no_fault_of_ours(
    on_postgres: httpx2.AsyncClient, method: str, path: str, json: dict[str, object] | None
) -> None:
    """PostgreSQL can't hold one, where SQLite can."""
    answer = await on_postgres.request(method, path, json=json)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameters")
    assert "NUL" in answer.json()["error"]


async def test_models_are_listed_for_strangers(client: httpx2.AsyncClient) -> None:
    """The one call of its kind that takes no key."""
    answer = await client.get("/inference-model-information/list", headers={"x-api-key": ""})
    assert answer.status_code == 200
