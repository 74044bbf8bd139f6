"""Messages are written with the end of the job, signed, tried for a day, and can be sent again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from rekontext.accounts import registry
from rekontext.database import AccountId, DeliveryId, EndpointId
from rekontext.database.tables import webhook_deliveries
from rekontext.jobs import EVENT_TYPES, endpoints, trial
from rekontext.jobs.endpoints import Delivery, Endpoint, WebhookRefused, WebhookUnknown
from rekontext.jobs.webhooks import LIFE, RETRY_AFTER_S, Deliverer, NotDelivered, claim, record
from tests.fakes import FakeClock, FakeRandomness
from tests.jobs.office import ALICE, BOB, Office

CAROL = AccountId("acc_carol")
URL = "https://example.com/hook"


@dataclass(kw_only=True)
class Receiver:
    """Answers each request with the next of `answers`, the last one for ever."""

    answers: list[int | Exception] = field(default_factory=lambda: [200])
    got: list[tuple[str, bytes, Mapping[str, str]]] = field(default_factory=list)

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        self.got.append((url, body, headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def office(office: Office) -> Office:
    office.clock = FakeClock(datetime.now(UTC))  # the library that verifies reads the real clock
    return office


@pytest.fixture
def deliverer(office: Office, receiver: Receiver) -> Deliverer:
    return Deliverer(database=office.database, send=receiver, clock=office.clock, randomness=FakeRandomness())


def add_endpoint(office: Office, *types: str, name: str = "end_1", url: str = URL) -> Endpoint:
    return office.database.transact_sync(lambda tx: add_in(tx, office, *types, name=name, url=url))


def add_in(tx: Connection, office: Office, *types: str, name: str, url: str = URL) -> Endpoint:
    return endpoints.add(
        tx,
        ALICE,
        endpoint=EndpointId(name),
        url=url,
        event_types=types or EVENT_TYPES,
        randomness=FakeRandomness(1),
        now=office.clock.now(),
    )


def log(office: Office) -> list[Delivery]:
    return office.database.read_sync(lambda tx: endpoints.deliveries(tx, ALICE))


def end_a_job(office: Office, *, webhook_url: str | None = None) -> str:
    job = office.start(office.order(webhook_url=webhook_url))
    return office.complete(job.lease).id


@pytest.mark.anyio
async def test_a_message_is_signed_so_that_the_public_library_accepts_it(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """With the endpoint's own secret; the body says which job ended and how."""
    endpoint = add_endpoint(office)
    job = end_a_job(office)
    assert await deliverer.deliver() == 1
    [(url, body, headers)] = receiver.got
    assert url == URL
    message = Webhook(endpoint.secret).verify(body, dict(headers))
    assert message["type"] == "edit.completed"
    assert message["data"] == {"request_id": job, "status": "COMPLETED", "error": None}
    assert datetime.fromisoformat(message["timestamp"]) == office.clock.now()
    [delivery] = log(office)
    assert (delivery.state, delivery.id, delivery.body) == ("DELIVERED", headers["webhook-id"], body.decode())
    assert [attempt.status for attempt in delivery.attempts] == [200]
    assert await deliverer.deliver() == 0


@pytest.mark.anyio
async def test_a_jobs_own_url_is_told_too(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """Signed with the account's secret."""
    end_a_job(office, webhook_url="https://example.com/mine")
    await deliverer.deliver()
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
        assert await deliverer.deliver() == 1, f"try {number + 1}"
        [delivery] = log(office)
        assert delivery.state == "PENDING"
        until = (delivery.due_at - office.clock.now()).total_seconds()
        assert 0.9 * wait_s <= until <= 1.1 * wait_s
        office.clock.advance(until - 0.001)
        assert await deliverer.deliver() == 0
        office.clock.advance(0.001)
    assert await deliverer.deliver() == 1
    [dead] = log(office)
    assert dead.state == "DEAD"
    assert [attempt.status for attempt in dead.attempts][:4] == [500, None, 302, 404]
    assert dead.attempts[1].error == "connection refused"
    assert timedelta(hours=21) < office.clock.now() - began < timedelta(hours=26)
    office.clock.advance(10 * 24 * 3600)
    assert await deliverer.deliver() == 0


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
            if not await deliverer.deliver():
                office.clock.advance(late)

    with capture_logs() as lines:
        await work(LIFE)
        assert [delivery.state for delivery in log(office)].count("PENDING") == 8
        await deliverer.deliver()
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
    await deliverer.deliver()
    for _ in range(2):
        end_a_job(office, webhook_url=URL)
    office.clock.advance(2 * LIFE.total_seconds())
    receiver.answers = [503, 503, 200, 503]
    for number in range(8):
        await deliverer.deliver()
        assert "DEAD" not in {delivery.state for delivery in log(office)} or number > 5
        office.clock.advance(600)
    assert {delivery.state for delivery in log(office)} == {"DELIVERED", "DEAD"}


@pytest.mark.anyio
async def test_what_was_given_up_can_be_sent_again(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """With the same id, so that the receiver can tell."""
    receiver.answers = [410, 200]
    end_a_job(office, webhook_url=URL)
    await deliverer.deliver()
    [dead] = log(office)
    assert dead.state == "DEAD"
    office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, dead.id, now=office.clock.now()))
    with pytest.raises(WebhookUnknown):  # it waits already
        office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, dead.id, now=office.clock.now()))
    await deliverer.deliver()
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
        await deliverer.deliver()
    assert await deliverer.deliver() == 0
    office.database.transact_sync(lambda tx: endpoints.replay(tx, ALICE, waiting.id, now=office.clock.now()))
    assert await deliverer.deliver() == 1
    office.clock.advance(6)
    assert await deliverer.deliver() == 1
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
    await deliverer.deliver()
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
    assert await deliverer.deliver() == 1
    [sent] = log(office)
    assert (sent.state, sent.tries, len(sent.attempts)) == ("DELIVERED", 1, 3)


@pytest.mark.anyio
async def test_a_receiver_that_is_gone_is_switched_off(
    office: Office, deliverer: Deliverer, receiver: Receiver
) -> None:
    """410 means never again; what still waits for it is given up without a request."""
    receiver.answers = [410]
    add_endpoint(office)
    end_a_job(office)
    await deliverer.deliver()
    assert [endpoint.active for endpoint in office.database.read_sync(lambda tx: endpoints.of_account(tx, ALICE))] == [
        False
    ]
    office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId("end_1"), active=True))
    end_a_job(office)
    office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId("end_1"), active=False))
    await deliverer.deliver()
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
    await deliverer.deliver()
    await deliverer.deliver()
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
    await deliverer.deliver()
    [delivery] = log(office)
    assert (delivery.state, delivery.attempts[0].error) == ("PENDING", "No answer within 0 s.")


@pytest.mark.anyio
async def test_a_bug_in_the_sender_is_a_failed_try(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """One bad URL must not stop everybody's messages."""
    receiver.answers = [ValueError("no such thing"), 200]
    end_a_job(office, webhook_url=URL)
    end_a_job(office, webhook_url=URL)
    assert await deliverer.deliver() == 2
    assert sorted(delivery.state for delivery in log(office)) == ["DELIVERED", "PENDING"]


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
    await deliverer.deliver()
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


def test_endpoints_are_listed_and_changed(office: Office) -> None:
    """By their own account only."""
    made = add_endpoint(office, "edit.completed")
    assert made.secret.startswith("whsec_")
    assert made.secret not in repr(made)
    changed = office.database.transact_sync(
        lambda tx: endpoints.change(
            tx, ALICE, made.id, url="http://example.org/", event_types=["edit.failed", "edit.failed"]
        )
    )
    assert (changed.url, changed.event_types, changed.active) == ("http://example.org/", ("edit.failed",), True)
    unchanged = office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, made.id))
    assert office.database.read_sync(lambda tx: endpoints.of_account(tx, ALICE)) == [unchanged] == [changed]
    with pytest.raises(WebhookUnknown):
        office.database.transact_sync(lambda tx: endpoints.change(tx, BOB, made.id, active=False))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com",
        "example.com",
        "https://",
        "https://user:pass@example.com",
        "http://[::1",
        f"https://example.com/{'x' * 3000}",
        "https://example.com:99999/",
        "https://example.com/a b",
        " https://example.com/",
        "https://example.com/\n",
        "https://exam\tple.com/",
        "https://example.com/\x00",
        "https://example.com/\u00a0",
        "https://example.com/\u2028",
    ],
)
def test_a_url_that_cannot_be_called_is_refused(office: Office, url: str) -> None:
    """When it is given, not at the first delivery."""
    with pytest.raises(WebhookRefused, match="allowed: http"):
        add_endpoint(office, url=url)


def test_a_url_may_have_letters_of_any_language(office: Office) -> None:
    """They are quoted when it is dialled."""
    assert add_endpoint(office, url="https://bücher.example:8443/größe?x=1").url.endswith("größe?x=1")


def test_what_makes_no_sense_is_refused(office: Office) -> None:
    """Unknown events, none at all, or too many endpoints."""
    with pytest.raises(WebhookRefused, match=r"edit\.eaten; allowed"):
        add_endpoint(office, "edit.eaten")
    for number in range(endpoints.ENDPOINTS_PER_ACCOUNT_MAX):
        add_endpoint(office, name=f"end_{number}")
    with pytest.raises(WebhookRefused, match="at most 20"):
        add_endpoint(office, name="one_more")


def switch(office: Office, name: str, *, on: bool) -> Endpoint:
    return office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId(name), active=on))


def kept(office: Office) -> list[str]:
    return [each.id for each in office.database.read_sync(lambda tx: endpoints.of_account(tx, ALICE))]


def test_no_more_endpoints_are_switched_on_than_may_be_made(office: Office) -> None:
    """One that is on already may be switched on again, and one that is switched off makes room."""
    add_endpoint(office, name="old")
    switch(office, "old", on=False)
    for number in range(endpoints.ENDPOINTS_PER_ACCOUNT_MAX):
        add_endpoint(office, name=f"end_{number}")
    with pytest.raises(WebhookRefused, match="at most 20"):
        switch(office, "old", on=True)
    assert switch(office, "end_0", on=True).active
    switch(office, "end_0", on=False)
    assert switch(office, "old", on=True).active


def test_an_endpoint_that_is_switched_off_makes_room_in_the_end(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest whose log is empty; then the oldest with its log; never one with messages that wait."""
    monkeypatch.setattr(endpoints, "KEPT_PER_ACCOUNT_MAX", 4)
    for name in ("waits", "told", "silent", "newer"):
        add_endpoint(office, name=name)
        if name in ("waits", "told"):
            end_a_job(office)
        if name == "told":
            done = webhook_deliveries.update().where(webhook_deliveries.c.endpoint_id == name)
            ended = done.values(state="DELIVERED", finished_at=office.clock.now())
            office.database.transact_sync(lambda tx, ended=ended: tx.execute(ended) and None)  # type: ignore[misc]
        switch(office, name, on=False)
        office.clock.advance(1)
    assert [delivery.endpoint for delivery in log(office)] == ["told", "waits"]
    rooms = []
    for number in range(3):
        add_endpoint(office, name=f"end_{number}")
        rooms.append([name for name in ("waits", "told", "silent", "newer") if name in kept(office)])
        office.clock.advance(1)
    assert rooms == [["waits", "told", "newer"], ["waits", "told"], ["waits"]]
    assert {delivery.endpoint for delivery in log(office)} == {"waits"}
    with pytest.raises(WebhookRefused, match="at most 4 webhooks, with those that are switched off"):
        add_endpoint(office, name="one_more")


def test_an_endpoint_with_a_long_log_makes_no_room(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting it would hold everybody up, for one request; it goes message by message, with their time."""
    monkeypatch.setattr(endpoints, "KEPT_PER_ACCOUNT_MAX", 2)
    monkeypatch.setattr(endpoints, "DELETED_AT_ONCE_MAX", 1)
    for name, messages in (("long", 2), ("short", 1)):
        add_endpoint(office, name=name)
        for _ in range(messages):
            end_a_job(office)
        switch(office, name, on=False)
        office.clock.advance(1)
    ended = webhook_deliveries.update().values(state="DELIVERED", finished_at=office.clock.now())
    office.database.transact_sync(lambda tx: tx.execute(ended) and None)
    add_endpoint(office, name="one")
    assert kept(office) == ["long", "one"]
    switch(office, "one", on=False)
    add_endpoint(office, name="another")
    assert kept(office) == ["long", "another"]
    with pytest.raises(WebhookRefused, match="a log of more than 1 messages"):
        add_endpoint(office, name="one_more")


def test_endpoints_that_are_made_at_once_are_counted_too(office: Office) -> None:
    """Whoever counts waits for whoever is about to add."""
    for number in range(endpoints.ENDPOINTS_PER_ACCOUNT_MAX - 1):
        add_endpoint(office, name=f"end_{number}")
    counted = threading.Barrier(2)

    def hurry(name: str) -> bool:
        def work(tx: Connection) -> None:
            add_in(tx, office, name=name)
            with suppress(threading.BrokenBarrierError):
                counted.wait(0.3)  # where nobody waits for the other, both get here before either commits

        try:
            office.database.transact_sync(work)
        except WebhookRefused:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(hurry, ("one", "another"))) == [False, True]
    assert len(kept(office)) == endpoints.ENDPOINTS_PER_ACCOUNT_MAX


def test_an_outcome_without_its_message_is_dropped(office: Office) -> None:
    """A later try was the last, and then its endpoint made room for another."""
    end_a_job(office, webhook_url=URL)
    now = office.clock.now()
    [message] = office.database.transact_sync(lambda tx: claim(tx, limit=1, now=now, again_at=now))
    office.database.transact_sync(lambda tx: tx.execute(webhook_deliveries.delete()) and None)
    office.database.transact_sync(lambda tx: record(tx, message, 200, None, started=now, ended=now, wait_s=None))
    assert log(office) == []


@pytest.mark.anyio
async def test_the_log_says_what_was_not_delivered(office: Office, deliverer: Deliverer, receiver: Receiver) -> None:
    """Of what, whose, how often, why, when again; of its URL the host only, since the rest may hold a secret."""
    receiver.answers = [500, NotDelivered("no one there"), 200]
    office.accept(office.order(webhook_url="https://me:hush@example.com/hush?token=hush"))
    [job] = office.claim()
    office.complete(job.lease)
    with capture_logs() as lines:
        for _ in range(3):
            await deliverer.deliver()
            office.clock.advance(86_400)
    said = [line for line in lines if line["event"] == "webhook_not_delivered"]
    assert [(line["tries"], line["status"], line["error"]) for line in said] == [
        (1, 500, None),
        (2, None, "no one there"),
    ]
    assert [(line["account"], line["again_in_s"] > 0) for line in said] == [(ALICE, True)] * 2
    assert [(line["job"], line["host"], line["webhook"]) for line in said] == [(job.id, "example.com", None)] * 2
    assert "hush" not in str(lines)
