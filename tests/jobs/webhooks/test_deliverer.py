"""Messages are sent by one process at a time, survive its death, and no receiver or account holds up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta

import pytest
from sqlalchemy import Connection

from rekontext.database import AccountId, DeliveryId
from rekontext.database.tables import webhook_deliveries
from rekontext.jobs.webhooks import RETRY_AFTER_S, Deliverer, claim, record
from tests.fakes import FakeRandomness
from tests.jobs.office import ALICE, BOB, Office
from tests.jobs.webhooks.receiver import URL, Receiver, deliver_due, end_a_job, log

CAROL = AccountId("acc_carol")


def test_a_message_is_sent_by_one_process_at_a_time_and_survives_its_death(office: Office) -> None:
    """It is claimed before it is sent; unless an outcome is recorded it is due again."""
    end_a_job(office, webhook_url=URL)
    again_at = office.clock.now() + timedelta(seconds=30)

    def take() -> list[DeliveryId]:
        return [
            message.id
            for message in office.database.transact_sync(
                lambda tx: claim(tx, limit=10, now=office.clock.now(), again_at=again_at)
            )
        ]

    assert len(take()) == 1
    assert take() == []
    office.clock.advance(30)
    assert len(take()) == 1


@pytest.mark.anyio
async def test_a_stop_while_a_message_is_under_way_costs_no_try(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """However many there are: it dies of what receivers answered, or of its age."""
    end_a_job(office, webhook_url=URL)
    begun = asyncio.Event()

    async def hang(_url: str, _body: bytes, _headers: Mapping[str, str]) -> int:
        begun.set()
        await asyncio.Event().wait()
        return 200

    for _ in range(len(RETRY_AFTER_S) + 1):
        stopped = Deliverer(database=office.database, send=hang, clock=office.clock, randomness=FakeRandomness())
        begun.clear()
        running = asyncio.create_task(stopped.run())
        await asyncio.wait_for(begun.wait(), 10)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        office.clock.advance(31)
    receiver.answers = [503]
    await deliver_due(deliverer)
    [delivery] = log(office)
    assert (delivery.state, delivery.tries, len(delivery.attempts)) == ("PENDING", 1, 1)
    assert delivery.due_at - office.clock.now() < timedelta(seconds=1.1 * RETRY_AFTER_S[0])


def test_an_outcome_that_comes_too_late_is_only_logged(office: Office) -> None:
    """A later try decides."""
    end_a_job(office, webhook_url=URL)
    now = office.clock.now()
    [early] = office.database.transact_sync(lambda tx: claim(tx, limit=1, now=now, again_at=now))
    [late] = office.database.transact_sync(lambda tx: claim(tx, limit=1, now=now, again_at=now))
    for message, status, wait_s in ((late, 200, None), (early, None, None)):
        office.database.transact_sync(
            lambda tx, message=message, status=status, wait_s=wait_s: record(  # type: ignore[misc]
                tx, message, status, None, started=now, ended=now, wait_s=wait_s
            )
        )
    [delivery] = log(office)
    assert (delivery.state, len(delivery.attempts)) == ("DELIVERED", 2)


@pytest.mark.anyio
async def test_the_loop_delivers_as_soon_as_it_is_woken(office: Office, receiver: Receiver) -> None:
    """Not only by polling."""
    arrived = asyncio.Event()

    async def send(url: str, body: bytes, headers: Mapping[str, str]) -> int:
        arrived.set()
        return await receiver(url, body, headers)

    deliverer = Deliverer(
        database=office.database, send=send, clock=office.clock, randomness=FakeRandomness(), poll_s=60
    )
    running = asyncio.create_task(deliverer.run())
    try:
        await asyncio.sleep(0)
        await asyncio.to_thread(end_a_job, office, webhook_url=URL)
        deliverer.wake()
        await asyncio.wait_for(arrived.wait(), 10)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.anyio
async def test_a_receiver_that_hangs_holds_nobody_else_up(office: Office) -> None:
    """Its place is taken as long as it hangs, the others go on."""
    arrived: list[str] = []
    enough = asyncio.Event()

    async def send(url: str, _body: bytes, _headers: Mapping[str, str]) -> int:
        if "hang" in url:
            await asyncio.Event().wait()
        arrived.append(url)
        if len(arrived) == 4:
            enough.set()
        return 200

    for name in ("hang", "one", "two", "three", "four"):
        end_a_job(office, webhook_url=f"https://example.com/{name}")
    deliverer = Deliverer(
        database=office.database,
        send=send,
        clock=office.clock,
        randomness=FakeRandomness(),
        sending_max=2,
        send_s_max=60,
        poll_s=60,
    )
    running = asyncio.create_task(deliverer.run())
    try:
        await asyncio.wait_for(enough.wait(), 10)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert {delivery.url[20:]: delivery.state for delivery in log(office)}["hang"] == "PENDING"


@pytest.mark.anyio
async def test_an_account_whose_receivers_hang_holds_up_no_other(office: Office) -> None:
    """However many of its messages are due before another's, some places are never its own."""
    office.open_account(BOB)
    for _ in range(4):
        end_a_job(office, webhook_url="https://example.com/hang")
    office.clock.advance(1)
    office.accept(office.order(BOB, webhook_url="https://example.com/bob"))
    office.complete(office.claim()[0].lease)
    arrived, hanging = asyncio.Event(), 0

    async def send(url: str, _body: bytes, _headers: Mapping[str, str]) -> int:
        nonlocal hanging
        if "hang" in url:
            hanging += 1
            await asyncio.Event().wait()
        arrived.set()
        return 200

    deliverer = Deliverer(
        database=office.database,
        send=send,
        clock=office.clock,
        randomness=FakeRandomness(),
        sending_max=3,
        per_account_max=2,
        send_s_max=60,
        poll_s=0.01,
    )
    running = asyncio.create_task(deliverer.run())
    try:
        await asyncio.wait_for(arrived.wait(), 10)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert hanging == 2


def test_what_an_account_has_under_way_counts(office: Office) -> None:
    """Its oldest messages first, and no more than are missing."""
    for _ in range(4):
        end_a_job(office, webhook_url=URL)
    now = office.clock.now()
    for held, taken in ((2, 1), (3, 0), (0, 3)):
        messages = office.database.transact_sync(
            lambda tx, held=held: claim(  # type: ignore[misc]
                tx, limit=9, now=now, again_at=now + timedelta(seconds=30), held={ALICE: held}, per_account_max=3
            )
        )
        assert [message.tries for message in messages] == [1] * taken


@pytest.mark.parametrize("looked_at", [2, 256])
def test_accounts_with_the_fewest_messages_under_way_come_first(
    office: Office, monkeypatch: pytest.MonkeyPatch, looked_at: int
) -> None:
    """Of each account the oldest, whether or not more are due than a claim looks through."""
    monkeypatch.setattr("rekontext.jobs.webhooks.LOOKED_AT", looked_at)
    for account, count in ((ALICE, 4), (BOB, 2), (CAROL, 1)):
        if account != ALICE:
            office.open_account(account)
        for number in range(count):
            office.accept(office.order(account, webhook_url=f"https://example.com/{account}/{number}"))
            office.complete(office.claim()[0].lease)
            office.clock.advance(1)
    office.accept(office.order(webhook_url=URL))
    [job] = office.claim()
    due = office.clock.now()
    office.clock.advance(1)
    office.complete(job.lease)  # due too late

    def take(limit: int, **held: int) -> list[str]:
        def work(tx: Connection) -> list[str]:
            under_way = {AccountId(account): count for account, count in held.items()}
            messages = claim(
                tx, limit=limit, now=due, again_at=due + timedelta(seconds=30), held=under_way, per_account_max=3
            )
            return sorted(message.url.removeprefix("https://example.com/acc_") for message in messages)

        return office.database.transact_sync(work)

    assert take(3, acc_alice=1) == ["alice/0", "bob/0", "carol/0"]
    assert take(9, acc_alice=2, acc_bob=1) == ["alice/1", "bob/1"]
    assert take(9, acc_alice=3) == []
    assert take(9) == ["alice/2", "alice/3"]


def test_an_outcome_without_its_message_is_dropped(office: Office) -> None:
    """A later try was the last, and then its endpoint made room for another."""
    end_a_job(office, webhook_url=URL)
    now = office.clock.now()
    [message] = office.database.transact_sync(lambda tx: claim(tx, limit=1, now=now, again_at=now))
    office.database.transact_sync(lambda tx: tx.execute(webhook_deliveries.delete()) and None)
    office.database.transact_sync(lambda tx: record(tx, message, 200, None, started=now, ended=now, wait_s=None))
    assert log(office) == []
