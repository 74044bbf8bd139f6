"""Webhooks over HTTP: made, sent to a real receiver, signed, tested, replayed; never to an address inside."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from typing import Any, Final

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from rekontext.jobs import endpoints
from tests.api.conftest import MakeStudio, Receiver
from tests.api.studio import Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

V1: Final = "/v1/flux-kontext-dev"
SECRET: Final = "/console/api/webhook-secret"
GOOD: Final[dict[str, Any]] = {
    "prompt": "make it night",
    "input_image": base64.b64encode(photo_bytes()).decode(),
    "num_inference_steps": 4,
}


@pytest.fixture
def studio(make_studio: MakeStudio) -> Studio:
    return make_studio(webhook_allow="127.0.0.1/32")


async def test_an_endpoint_is_told_of_the_end_with_a_signature(studio: Studio, receiver: Receiver) -> None:
    """The message is the result, and the endpoint's secret verifies it."""
    async with studio.open() as client:
        made = (await client.post("/console/api/webhooks", json={"url": receiver.url})).json()["webhook"]
        done = await client.post(V1, json=GOOD)
        headers, body = await receiver.next()
        message = Webhook(made["secret"]).verify(body.decode(), headers)
        assert message["type"] == "edit.completed"
        assert message["data"]["request_id"] == done.headers["x-request-id"]
        assert message["data"]["output"].startswith("http://studio/files/outputs/")
        listed = await client.get("/console/api/webhooks")
        assert made["secret"] not in listed.text


async def test_one_job_s_own_webhook(studio: Studio, receiver: Receiver) -> None:
    """Named in the submit, and signed with the account's secret, which its keys may read."""
    async with studio.open() as client:
        secret = (await client.get(SECRET)).json()["secret"]
        await client.post(V1, json=GOOD | {"webhook_url": receiver.url})
        headers, body = await receiver.next()
    assert Webhook(secret).verify(body.decode(), headers)["data"]["status"] == "COMPLETED"


async def test_the_account_s_secret_is_replaced(studio: Studio, receiver: Receiver) -> None:
    """By whoever may make webhooks; the next message is signed with the new one, and the audit log has no secret."""
    async with studio.open() as client:
        old = (await client.get(SECRET)).json()["secret"]
        async with studio.client(studio.new_key(scopes=frozenset({"read"})).secret) as reader:
            for method in ("GET", "POST"):
                assert (await reader.request(method, SECRET)).json()["code"] == "scope_missing"
        new = (await client.post(SECRET)).json()["secret"]
        assert new == (await client.get(SECRET)).json()["secret"] != old
        await client.post(V1, json=GOOD | {"webhook_url": receiver.url})
        headers, body = await receiver.next()
        audit = await client.get("/console/api/admin/audit")
    assert Webhook(new).verify(body.decode(), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(body.decode(), headers)
    assert audit.json()["records"][0]["action"] == "account.webhook_secret"
    assert new not in audit.text


async def test_a_test_message_and_a_replay(studio: Studio, receiver: Receiver) -> None:
    """Both arrive, and the log has them."""
    async with studio.open() as client:
        endpoint = (await client.post("/console/api/webhooks", json={"url": receiver.url})).json()["webhook"]["id"]
        sent = (await client.post(f"/console/api/webhooks/{endpoint}/test")).json()["delivery_id"]
        first, body = await receiver.next()
        assert (first["webhook-id"], json.loads(body)["type"]) == (sent, "webhook.test")
        [delivery] = (await _delivered(client, endpoint))["deliveries"]
        assert (delivery["id"], delivery["attempts"][0]["status"]) == (sent, 204)
        assert (await client.post(f"/console/api/deliveries/{sent}/replay")).status_code == 202
        again, _ = await receiver.next()
        assert again["webhook-id"] == sent
        off = (await client.delete(f"/console/api/webhooks/{endpoint}")).json()["webhook"]
        assert off["is_active"] is False
        assert (await client.post(f"/console/api/webhooks/{endpoint}/test")).status_code == 404


async def test_test_messages_and_replays_are_counted_as_requests(make_studio: MakeStudio, receiver: Receiver) -> None:
    """They make this service call others, so a key has no more of them than edits; and so many may wait."""
    studio = make_studio(webhook_allow="127.0.0.1/32", requests_per_minute=2)
    async with studio.open() as client:
        endpoint = (await client.post("/console/api/webhooks", json={"url": receiver.url})).json()["webhook"]["id"]
        sent = (await client.post(f"/console/api/webhooks/{endpoint}/test")).json()["delivery_id"]
        await receiver.next()
        await _delivered(client, endpoint)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(endpoints, "REQUESTED_PENDING_MAX", 0)
            full = await client.post(f"/console/api/deliveries/{sent}/replay")
        assert (full.status_code, full.json()["code"], full.headers["retry-after"]) == (429, "too_many_messages", "60")
        for path in (f"deliveries/{sent}/replay", f"webhooks/{endpoint}/test"):
            assert (await client.post(f"/console/api/{path}")).json()["code"] == "rate_limited"
    assert receiver.got.empty()


async def test_replacing_the_secret_counts_as_a_request(make_studio: MakeStudio) -> None:
    """Each is a line of the audit log, which is kept for ever."""
    studio = make_studio(requests_per_minute=2)
    async with studio.open() as client:
        answers = [await client.post(SECRET) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[-1].json()["code"] == "rate_limited"
        assert (await client.get(SECRET)).json() == answers[1].json()


async def _delivered(client: Any, endpoint: str) -> dict[str, Any]:
    """The log once its message is marked: the receiver has it a moment before that is written."""
    async with asyncio.timeout(10):
        while True:
            found: dict[str, Any] = (await client.get(f"/console/api/deliveries?webhook_id={endpoint}")).json()
            if found["deliveries"][0]["state"] == "DELIVERED":
                return found


async def test_an_address_inside_is_not_called(
    make_studio: MakeStudio, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless an operator opened it; the log says why, where the name alone didn't."""
    asked = socket.getaddrinfo

    def resolved(host: Any, *args: Any, **how: Any) -> Any:
        return asked("127.0.0.1" if host == "inside.example" else host, *args, **how)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    studio = make_studio()
    async with studio.open() as client:
        url = receiver.url.replace("127.0.0.1", "inside.example")
        endpoint = (await client.post("/console/api/webhooks", json={"url": url})).json()["webhook"]["id"]
        await client.post(f"/console/api/webhooks/{endpoint}/test")
        async with asyncio.timeout(10):
            while True:
                [delivery] = (await client.get("/console/api/deliveries")).json()["deliveries"]
                if delivery["attempts"]:
                    break
    assert "not a public address" in delivery["attempts"][0]["error"]
    assert receiver.got.empty()


INSIDE = [
    *("http://127.0.0.1:9/", "http://localhost/", "http://a.localhost./x", "http://192.168.1.5/", "http://[::1]/h"),
    *("http://127.1/", "http://0x7f000001/", "http://2130706433/x"),  # as resolvers read them
]


@pytest.mark.parametrize("url", INSIDE)
async def test_an_address_that_can_t_be_called_is_refused_at_once(make_studio: MakeStudio, url: str) -> None:
    """Not accepted, paid for, and tried for a day."""
    async with make_studio().open() as client:
        ordered = await client.post("/v2/flux-kontext-dev", json=GOOD | {"webhook_url": url, "guidance": 99})
        made = await client.post("/console/api/webhooks", json={"url": url})
        good = (await client.post("/console/api/webhooks", json={"url": "https://example.com/"})).json()["webhook"]
        changed = await client.patch(f"/console/api/webhooks/{good['id']}", json={"url": url})
        balance = (await client.get("/v1/get-user-credits")).json()
    assert [ordered.status_code, made.status_code, changed.status_code] == [400, 400, 400]
    assert [each["parameter"] for each in ordered.json()["errors"]] == ["guidance", "webhook_url"]
    for answer in (ordered, made, changed):
        assert "is not a public address" in answer.json()["error"]
    assert balance["credits"] + balance["free-credits"] == 10


async def test_the_log_of_an_unknown_webhook_is_not_found(studio: Studio) -> None:
    async with studio.open() as client:
        for path in ("/webhook/dispatch-logs", "/console/api/deliveries"):
            assert (await client.get(f"{path}?webhook_id=nope")).json()["code"] == "webhook_not_found"
