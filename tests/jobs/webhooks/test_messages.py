"""Messages are written with the end of the job, signed, and tried for a day."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime, timedelta

import pytest
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from rekontext.accounts import registry
from rekontext.database import EndpointId
from rekontext.jobs import endpoints
from rekontext.jobs.webhooks import LIFE, RETRY_AFTER_S, Deliverer, NotDelivered
from tests.fakes import FakeRandomness
from tests.jobs.office import ALICE, Office
from tests.jobs.webhooks.receiver import URL, Receiver, add_endpoint, deliver_due, end_a_job, log


@pytest.mark.anyio
async def test_a_message_is_signed_so_that_the_public_library_accepts_it(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """With the endpoint's own secret; the body says which job ended and how."""
    endpoint = add_endpoint(office)
    job = end_a_job(office)
    assert await deliver_due(deliverer) == 1
    [(url, body, headers)] = receiver.got
    assert url == URL
    message = Webhook(endpoint.secret).verify(body, dict(headers))
    assert message["type"] == "edit.completed"
    assert message["data"] == {"request_id": job, "status": "COMPLETED", "error": None}
    assert datetime.fromisoformat(message["timestamp"]) == office.clock.now()
    [delivery] = log(office)
    assert (delivery.state, delivery.id, delivery.body) == ("DELIVERED", headers["webhook-id"], body.decode())
    assert [attempt.status for attempt in delivery.attempts] == [200]
    assert await deliver_due(deliverer) == 0


@pytest.mark.anyio
async def test_a_jobs_own_url_is_told_too(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """Signed with the account's secret."""
    end_a_job(office, webhook_url="https://example.com/mine")
    await deliver_due(deliverer)
    [(url, body, headers)] = receiver.got
    assert url == "https://example.com/mine"
    secret = office.database.read_sync(lambda tx: registry.get(tx, ALICE)).webhook_secret
    Webhook(secret).verify(body, dict(headers))


def test_an_endpoint_hears_only_what_it_asked_for(office: Office) -> None:
    """And only while it is switched on."""
    add_endpoint(office, "edit.failed")
    end_a_job(office)
    assert log(office) == []
    office.fail(office.start().lease, retry=False)
    [delivery] = log(office)
    assert json.loads(delivery.body)["data"]["error"] == "It broke."
    office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId("end_1"), active=False))
    office.fail(office.start().lease, retry=False)
    assert len(log(office)) == 1


def test_a_job_whose_end_is_rolled_back_tells_nobody(office: Office) -> None:
    """Message and state are one transaction."""
    add_endpoint(office)
    job = office.start()

    def work(tx: object) -> None:
        office.life.stop(tx, job.lease, now=office.clock.now())  # type: ignore[arg-type]
        raise LookupError("on purpose")

    with pytest.raises(LookupError):
        office.database.transact_sync(work)
    assert log(office) == []


@pytest.mark.anyio
async def test_a_message_is_tried_for_a_day_and_then_given_up(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """Later and later, a little at random; every try is in the log."""
    receiver.answers = [500, NotDelivered("connection refused"), 302, 404, 500]
    add_endpoint(office)
    end_a_job(office)
    began = office.clock.now()
    for number, wait_s in enumerate(RETRY_AFTER_S):
        assert await deliver_due(deliverer) == 1, f"try {number + 1}"
        [delivery] = log(office)
        assert delivery.state == "PENDING"
        until = (delivery.due_at - office.clock.now()).total_seconds()
        assert 0.9 * wait_s <= until <= 1.1 * wait_s
        office.clock.advance(until - 0.001)
        assert await deliver_due(deliverer) == 0
        office.clock.advance(0.001)
    assert await deliver_due(deliverer) == 1
    [dead] = log(office)
    assert dead.state == "DEAD"
    assert [attempt.status for attempt in dead.attempts][:4] == [500, None, 302, 404]
    assert dead.attempts[1].error == "connection refused"
    assert timedelta(hours=21) < office.clock.now() - began < timedelta(hours=26)
    office.clock.advance(10 * 24 * 3600)
    assert await deliver_due(deliverer) == 0


@pytest.mark.anyio
async def test_a_message_whose_turn_does_not_come_dies_of_its_age(
    office: Office, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried or not, in batches, and its log says why. A replay has a day of its own."""
    monkeypatch.setattr("rekontext.jobs.webhooks.GIVEN_UP_AT_ONCE", 2)
    for _ in range(9):
        end_a_job(office, webhook_url=URL)
    began, late = office.clock.now(), 3600.0

    async def hang(_url: str, _body: bytes, _headers: Mapping[str, str]) -> int:
        office.clock.advance(late)
        raise NotDelivered("no one there")

    deliverer = Deliverer(
        database=office.database, send=hang, clock=office.clock, randomness=FakeRandomness(), per_account_max=1
    )

    async def work(until: timedelta) -> None:
        while office.clock.now() - began < until:
            if not await deliver_due(deliverer):
                office.clock.advance(late)

    with capture_logs() as lines:
        await work(LIFE)
        assert [delivery.state for delivery in log(office)].count("PENDING") == 8
        await deliver_due(deliverer)
        dead = [delivery for delivery in log(office) if delivery.state == "DEAD"]
        assert sorted(str(delivery.attempts[-1].error) for delivery in dead) == [
            *["Given up: 27 hours went by, and others waited before it."] * 2,
            *["no one there"] * 2,  # that try was the last for which there was time
        ]
        office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, dead[0].id, now=office.clock.now()))
        await work(LIFE + timedelta(hours=4))
    assert [delivery.id for delivery in log(office) if delivery.state == "PENDING"] == [dead[0].id]
    given_up = [line for line in lines if line["event"] == "webhook_not_delivered" and not line["again_in_s"]]
    assert (len(given_up), len({line["job"] for line in given_up})) == (9, 9)


@pytest.mark.anyio
async def test_after_a_long_pause_messages_have_an_hour(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """It was no receiver's fault, and theirs may have paused with us. Then they are as old as they are."""
    await deliver_due(deliverer)
    for _ in range(2):
        end_a_job(office, webhook_url=URL)
    office.clock.advance(2 * LIFE.total_seconds())
    receiver.answers = [503, 503, 200, 503]
    for number in range(8):
        await deliver_due(deliverer)
        assert "DEAD" not in {delivery.state for delivery in log(office)} or number > 5
        office.clock.advance(600)
    assert {delivery.state for delivery in log(office)} == {"DELIVERED", "DEAD"}


@pytest.mark.anyio
async def test_a_receiver_that_is_gone_is_switched_off(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """410 means never again; what still waits for it is given up without a request."""
    receiver.answers = [410]
    add_endpoint(office)
    end_a_job(office)
    await deliver_due(deliverer)
    assert [endpoint.active for endpoint in office.database.read_sync(lambda tx: endpoints.of_account(tx, ALICE))] == [
        False
    ]
    office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId("end_1"), active=True))
    end_a_job(office)
    office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId("end_1"), active=False))
    await deliver_due(deliverer)
    assert len(receiver.got) == 1
    assert [delivery.state for delivery in log(office)] == ["DEAD", "DEAD"]


@pytest.mark.anyio
async def test_a_receiver_that_moved_is_not_switched_off(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """The 410 is its old address's: that message is given up, and those to the new one are sent."""
    receiver.answers = [410, 200]
    add_endpoint(office)
    end_a_job(office)
    office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId("end_1"), url=f"{URL}/new"))
    end_a_job(office)
    await deliver_due(deliverer)
    await deliver_due(deliverer)
    assert [url for url, _, _ in receiver.got] == [URL, f"{URL}/new"]
    assert {delivery.state for delivery in log(office)} == {"DEAD", "DELIVERED"}
    [moved] = office.database.read_sync(lambda tx: endpoints.of_account(tx, ALICE))
    assert (moved.url, moved.active) == (f"{URL}/new", True)


@pytest.mark.anyio
async def test_a_receiver_that_hangs_has_not_answered(office: Office) -> None:
    """The wait has a limit, and the message another try."""

    async def hang(_url: str, _body: bytes, _headers: Mapping[str, str]) -> int:
        await asyncio.Event().wait()
        return 200

    deliverer = Deliverer(
        database=office.database, send=hang, clock=office.clock, randomness=FakeRandomness(), send_s_max=0.01
    )
    end_a_job(office, webhook_url=URL)
    await deliver_due(deliverer)
    [delivery] = log(office)
    assert (delivery.state, delivery.attempts[0].error) == ("PENDING", "No answer within 0 s.")


@pytest.mark.anyio
async def test_a_bug_in_the_sender_is_a_failed_try(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """One bad URL must not stop everybody's messages."""
    receiver.answers = [ValueError("no such thing"), 200]
    end_a_job(office, webhook_url=URL)
    end_a_job(office, webhook_url=URL)
    assert await deliver_due(deliverer) == 2
    assert sorted(delivery.state for delivery in log(office)) == ["DELIVERED", "PENDING"]


@pytest.mark.anyio
async def test_the_log_says_what_was_not_delivered(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """Of what, whose, how often, why, when again; of its URL the host only, since the rest may hold a secret."""
    receiver.answers = [500, NotDelivered("no one there"), 200]
    office.accept(office.order(webhook_url="https://me:hush@example.com/hush?token=hush"))
    [job] = office.claim()
    office.complete(job.lease)
    with capture_logs() as lines:
        for _ in range(3):
            await deliver_due(deliverer)
            office.clock.advance(86_400)
    said = [line for line in lines if line["event"] == "webhook_not_delivered"]
    assert [(line["tries"], line["status"], line["error"]) for line in said] == [
        (1, 500, None),
        (2, None, "no one there"),
    ]
    assert [(line["account"], line["again_in_s"] > 0) for line in said] == [(ALICE, True)] * 2
    assert [(line["job"], line["host"], line["webhook"]) for line in said] == [(job.id, "example.com", None)] * 2
    assert "hush" not in str(lines)
