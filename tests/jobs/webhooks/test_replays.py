"""Messages can be asked for: once more, at once, or for a trial; so many and no more."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rekontext.database import DeliveryId, EndpointId
from rekontext.jobs import endpoints, trial
from rekontext.jobs.endpoints import WebhookUnknown
from rekontext.jobs.webhooks import Deliverer, claim, record
from tests.jobs.office import ALICE, BOB, Office
from tests.jobs.webhooks.receiver import URL, Receiver, add_endpoint, deliver_due, end_a_job, log


@pytest.mark.anyio
async def test_what_was_given_up_can_be_sent_again(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """With the same id, so that the receiver can tell."""
    receiver.answers = [410, 200]
    end_a_job(office, webhook_url=URL)
    await deliver_due(deliverer)
    [dead] = log(office)
    assert dead.state == "DEAD"
    office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, dead.id, now=office.clock.now()))
    with pytest.raises(WebhookUnknown):  # it waits already
        office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, dead.id, now=office.clock.now()))
    await deliver_due(deliverer)
    [sent] = log(office)
    assert (sent.state, sent.id, len(sent.attempts)) == ("DELIVERED", dead.id, 2)
    assert receiver.got[0][1] == receiver.got[1][1]
    office.open_account(BOB)
    with pytest.raises(WebhookUnknown):
        office.database.transact_sync(lambda tx: endpoints.replay(tx, BOB, dead.id, now=office.clock.now()))


@pytest.mark.anyio
async def test_what_waits_for_another_try_can_be_sent_now(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """Whoever has mended his receiver need not wait for hours; and the tries that follow begin anew."""
    receiver.answers = [500, 500, 500, 200]
    end_a_job(office, webhook_url=URL)
    [waiting] = log(office)
    with pytest.raises(WebhookUnknown):  # it is about to be sent for the first time
        office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, waiting.id, now=office.clock.now()))
    for wait_s in (0, 6):
        office.clock.advance(wait_s)
        await deliver_due(deliverer)
    assert await deliver_due(deliverer) == 0
    office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, waiting.id, now=office.clock.now()))
    assert await deliver_due(deliverer) == 1
    office.clock.advance(6)
    assert await deliver_due(deliverer) == 1
    [sent] = log(office)
    assert (sent.state, len(sent.attempts)) == ("DELIVERED", 4)


@pytest.mark.anyio
@pytest.mark.parametrize("late_status", [None, 200])
async def test_what_is_sent_now_is_not_put_off_by_a_try_that_was_under_way(
    office: Office, deliverer: Deliverer, receiver: Receiver, late_status: int | None
) -> None:
    """How that one ended is in the log; the answer to whoever asked was that the message goes."""
    receiver.answers = [500, 200]
    end_a_job(office, webhook_url=URL)
    await deliver_due(deliverer)
    started = office.clock.advance(6)
    again_at = started + timedelta(seconds=30)
    [under_way] = office.database.transact_sync(lambda tx: claim(tx, limit=1, now=started, again_at=again_at))
    asked = office.clock.advance(5)
    office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, under_way.id, now=asked))
    ended = office.clock.advance(5)
    office.database.transact_sync(
        lambda tx: record(tx, under_way, late_status, None, started=started, ended=ended, wait_s=8 * 3600)
    )
    [waiting] = log(office)
    assert (waiting.state, waiting.due_at, waiting.tries) == ("PENDING", asked, 0)
    assert [attempt.status for attempt in waiting.attempts] == [500, late_status]
    assert await deliver_due(deliverer) == 1
    [sent] = log(office)
    assert (sent.state, sent.tries, len(sent.attempts)) == ("DELIVERED", 1, 3)


def test_an_account_asks_for_so_many_messages_and_no_more(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests and replays that wait are counted; what its jobs have to tell isn't, and is written all the same."""
    monkeypatch.setattr(endpoints, "REQUESTED_PENDING_MAX", 2)
    add_endpoint(office)
    told = [end_a_job(office) for _ in range(3)]
    now = office.clock.now()

    def test(name: str) -> None:
        office.database.transact_sync(
            lambda tx: trial.send(tx, ALICE, EndpointId("end_1"), delivery=DeliveryId(name), now=now)
        )

    def replay(delivery: DeliveryId) -> None:
        office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, delivery, now=now))

    def deliver() -> list[DeliveryId]:
        messages = office.database.transact_sync(lambda tx: claim(tx, limit=9, now=now, again_at=now))
        for message in messages:
            office.database.transact_sync(
                lambda tx, message=message: record(tx, message, 200, None, started=now, ended=now, wait_s=None)  # type: ignore[misc]
            )
        return [message.id for message in messages]

    first, second, _ = deliver()
    replay(first)
    test("asked_1")
    with pytest.raises(endpoints.TooManyMessages, match="2 test messages and replays"):
        replay(second)
    with pytest.raises(endpoints.TooManyMessages):
        test("asked_2")
    told.append(end_a_job(office))
    assert {delivery.job for delivery in log(office)} - {None} == set(told)
    assert len(deliver()) == 3
    replay(second)
    test("asked_2")
