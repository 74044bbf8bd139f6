"""What stands between us and a caller: pages of other origins, caches, and probes that ask for headers alone."""

from __future__ import annotations

import asyncio
import base64
from typing import Final, NoReturn

import httpx2
import pytest
from structlog.testing import capture_logs

from rekontext.api import disk, health
from rekontext.api.edits import Edits
from tests.api.studio import SOON_S, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

PAGE: Final = {"origin": "https://shop.example"}
V1: Final = "/v1/flux-kontext-dev"


async def test_a_page_of_another_origin_may_call_with_a_key(client: httpx2.AsyncClient) -> None:
    """The browser asks first, without the key, then reads body and headers, of refusals too."""
    asked = await client.options(
        V1,
        headers=PAGE
        | {
            "x-api-key": "",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,idempotency-key,x-api-key",
            "access-control-request-private-network": "true",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "*"
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert {"x-api-key", "idempotency-key"} <= set(asked.headers["access-control-allow-headers"].split(","))
    refused = await client.post(V1, json={}, headers=PAGE)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, "*")
    shown = refused.headers["access-control-expose-headers"]
    assert {"x-request-id", "x-seed-value", "x-cost", "retry-after"} <= set(shown.split(", "))
    assert "access-control-allow-credentials" not in refused.headers


@pytest.mark.parametrize("path", ["/metrics", "/console/api/me", "/", "/readyz"])
async def test_a_page_of_another_origin_reads_nothing_else(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Least of all what this machine may see without a key."""
    for looks in (disk, health):  # a stalled disk is /readyz's business, not this test's
        monkeypatch.setattr(looks, "LOOK_S_MAX", 60.0)
    answer = await client.get(path, headers=PAGE)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


async def test_a_fault_that_nobody_foresaw_is_answered_as_every_other(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To pages too, and to no cache. It is counted and logged once, and raised on for the server's log."""

    async def fail(*_: object) -> NoReturn:
        raise KeyError("a secret of ours")

    monkeypatch.setattr(Edits, "allow", fail)
    async with studio.open() as client:
        with capture_logs() as logs:
            answer = await client.post(V1, json={}, headers=PAGE)
        counted = (await client.get("/metrics")).text
        raising = httpx2.ASGITransport(app=studio.app)
        async with httpx2.AsyncClient(transport=raising, base_url="http://studio", headers=studio.headers) as other:
            with pytest.raises(KeyError, match="a secret of ours"):
                await other.post(V1, json={})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["connection"] == "close", (
        "the server closes it, and a client that doesn't know sends once more"
    )
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert [(line["status"], line["code"]) for line in logs if line["event"] == "request"] == [(500, "internal_error")]
    assert 'rekontext_http_requests_total{operation="edit",status="500"} 1.0' in counted


async def test_without_an_origin_nothing_is_said_about_origins(client: httpx2.AsyncClient) -> None:
    """Clients that are no browsers are not bothered."""
    assert "access-control-allow-origin" not in (await client.get("/v1/get-user-credits")).headers


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/v1/get-user-credits", "no-store"),
        ("/inference-request/request-history", "no-store"),
        ("/v2/requests/unknown/status", "no-store"),
        ("/console/api/me", "no-store"),
        ("/console", "no-cache"),
    ],
)
async def test_no_cache_keeps_what_a_key_has_opened(client: httpx2.AsyncClient, path: str, kept: str) -> None:
    """A cache in between knows nothing of our header, and would show it to the next caller."""
    assert (await client.get(path)).headers["cache-control"] == kept


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/get-user-credits", "/console", "/openapi.json"])
async def test_head_is_get_without_the_body(client: httpx2.AsyncClient, path: str) -> None:
    """Many health checks send nothing else."""
    whole, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"") == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_head_of_a_stream_is_over_with_the_head(studio: Studio) -> None:
    """Its connection would be held for as long as the edit takes."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        photo = base64.b64encode(photo_bytes()).decode()
        submitted = (await client.post("/v2/flux-kontext-dev", json={"prompt": "x", "input_image": photo})).json()
        head = await asyncio.wait_for(client.head(submitted["events_url"]), SOON_S)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")


async def test_head_switches_no_webhook_off(client: httpx2.AsyncClient) -> None:
    """GET does, as the SDK has it; HEAD is what link checkers send."""
    made = (await client.post("/console/api/webhooks", json={"url": "https://example.com/"})).json()["webhook"]
    for webhook, key, status in ((made["id"], {}, 200), ("none", {}, 404), (made["id"], {"x-api-key": ""}, 401)):
        answer = await client.head(f"/webhook/inactive?webhook_id={webhook}", headers=key)
        assert (answer.status_code, answer.content) == (status, b"")
    [webhook] = (await client.get("/webhook/get")).json()["webhooks"]
    assert webhook["is_active"]


async def test_head_is_refused_as_get_is(client: httpx2.AsyncClient) -> None:
    """Without a key 401, where there is only POST 405."""
    assert (await client.head("/v1/get-user-credits", headers={"x-api-key": ""})).status_code == 401
    assert (await client.head(V1)).status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", V1, "POST"),
        ("POST", "/v1/get-user-credits", "HEAD, GET"),
        ("PUT", "/v1/get-user-credits", "HEAD, GET"),
        ("DELETE", "/console/api/admin/accounts", "HEAD, GET, POST"),
        ("PUT", "/console/api/keys", "HEAD, GET, POST"),
        ("GET", "/console/api/keys/some-id", "DELETE"),
        ("POST", "/healthz", "HEAD, GET"),
        ("POST", "/webhook/inactive", "HEAD, GET"),
        ("POST", "/web/playground.js", "HEAD, GET"),
        ("POST", "/web/console/api/keys", "HEAD, GET"),
    ],
)
async def test_a_refused_method_is_told_all_that_the_path_takes(
    client: httpx2.AsyncClient, method: str, path: str, allowed: str
) -> None:
    """RFC 9110, 15.5.6: also where each method is a route of its own, and for static files."""
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert f"it takes {allowed}." in answer.json()["error"]
