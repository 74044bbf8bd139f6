"""An order becomes one job or none: paid for, within its limits, and once for a key, however many come at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import Connection, delete, event

from rekontext.accounts import AccountUnknown, InsufficientCredits, SpendCapReached
from rekontext.database import AccountId, JobId
from rekontext.database.tables import idempotency_keys
from rekontext.jobs import Accepted, Bounds, IdempotencyKeyReused, QueueFull, State, TooManyInFlight
from tests.jobs.office import BOB, Office


def test_who_cannot_pay_gets_no_job(office: Office) -> None:
    """And nothing is left behind, not even the idempotency key."""
    office.open_account(BOB, edits=0)
    with pytest.raises(InsufficientCredits):
        office.accept(office.order(BOB, key="k"))
    office.open_account(AccountId("acc_capped"), edits=5, monthly_cap_micros=1)
    with pytest.raises(SpendCapReached):
        office.accept(office.order(AccountId("acc_capped")))
    with pytest.raises(AccountUnknown):
        office.accept(office.order(AccountId("acc_nobody")))
    assert office.claim() == []
    with pytest.raises(InsufficientCredits):  # not "replayed": the key was rolled back
        office.accept(office.order(BOB, key="k"))


def test_an_account_may_have_so_many_jobs_in_flight(office: Office) -> None:
    """Waiting and running together; its own limit goes before the service's."""
    office.bounds = Bounds(in_flight_max=2)
    first = office.start()
    office.accept()
    with pytest.raises(TooManyInFlight) as refusal:
        office.accept()
    assert (refusal.value.in_flight, refusal.value.limit) == (2, 2)
    office.complete(first.lease)
    office.accept()
    office.open_account(BOB, in_flight_max=1)
    office.accept(office.order(BOB))
    with pytest.raises(TooManyInFlight, match="this account may have 1"):
        office.accept(office.order(BOB))


def test_the_queue_has_an_end(office: Office) -> None:
    """Running jobs don't count, other accounts' do."""
    office.bounds = Bounds(queued_max=2)
    office.open_account(BOB)
    office.start()
    office.accept()
    office.accept(office.order(BOB))
    with pytest.raises(QueueFull, match="2 edits are waiting"):
        office.accept(office.order(BOB))


def test_the_same_key_and_body_is_the_same_job(office: Office) -> None:
    """Held once, whatever became of it, and limits don't stand in the way of the answer."""
    first = office.accept(office.order(key="k"))
    office.bounds = Bounds(in_flight_max=1, queued_max=1)
    again = office.accept(office.order(key="k"))
    assert (again.job, again.replayed, again.ahead) == (first.job, True, 0)
    assert office.money() == (9, 1, 0)
    [claimed] = office.claim()
    office.complete(claimed.lease)
    assert office.accept(office.order(key="k")).job.state is State.COMPLETED
    assert office.money() == (9, 0, 1)


def test_the_same_key_with_another_body_is_refused(office: Office) -> None:
    """The client made a mistake; nothing is held for it."""
    office.accept(office.order(key="k"))
    with pytest.raises(IdempotencyKeyReused, match="'k' was used for a different request"):
        office.accept(office.order(key="k", body="another"))
    assert office.money() == (9, 1, 0)


def test_a_key_that_is_swept_while_it_is_asked_for_is_free(office: Office) -> None:
    """On PostgreSQL that may happen after it was found to be taken."""
    first, again = office.accept(office.order(key="k")), office.order(key="k", body="another")

    def accept(tx: Connection) -> Accepted:
        looks = 0

        @event.listens_for(tx, "before_cursor_execute")
        def sweep(_connection: object, _cursor: object, sent: str, *_: object) -> None:
            nonlocal looks
            looks += sent.startswith("SELECT idempotency_keys")
            if looks == 1:
                looks += 1
                tx.execute(delete(idempotency_keys))

        return office.life.accept(tx, again, now=office.clock.now())

    accepted = office.database.transact_sync(accept)
    assert (accepted.replayed, accepted.job.id) == (False, again.job)
    assert accepted.job.id != first.job.id
    assert office.accept(replace(again, job=JobId("third"))).job.id == again.job


def test_keys_of_different_accounts_are_different_keys(office: Office) -> None:
    """Nobody can find out or take another one's key."""
    office.open_account(BOB)
    mine = office.accept(office.order(key="k"))
    theirs = office.accept(office.order(BOB, key="k", body="another"))
    assert not theirs.replayed
    assert theirs.job.id != mine.job.id


@pytest.mark.anyio
async def test_a_hundred_concurrent_submits_on_a_balance_for_ten_make_ten(office: Office) -> None:
    """Exactly ten jobs, exactly ten holds."""

    async def submit() -> bool:
        order = office.order()
        try:
            await office.database.transact(lambda tx: office.life.accept(tx, order, now=office.clock.now()))
        except InsufficientCredits:
            return False
        return True

    office.bounds = Bounds(in_flight_max=1000)
    accepted = await asyncio.gather(*(submit() for _ in range(100)))
    assert sum(accepted) == 10
    assert office.money() == (0, 10, 0)
    assert len(office.claim(limit=100)) == 10


@pytest.mark.anyio
async def test_concurrent_submits_never_pass_the_limit_in_flight(office: Office) -> None:
    """The count is exact, not a guess that races."""
    office.bounds = Bounds(in_flight_max=3)

    async def submit() -> bool:
        order = office.order()
        try:
            await office.database.transact(lambda tx: office.life.accept(tx, order, now=office.clock.now()))
        except TooManyInFlight:
            return False
        return True

    assert sum(await asyncio.gather(*(submit() for _ in range(30)))) == 3


@pytest.mark.anyio
async def test_32_concurrent_submits_with_one_key_make_one_job(office: Office) -> None:
    """All of them get it."""

    async def submit() -> Accepted:
        order = office.order(key="k")
        return await office.database.transact(lambda tx: office.life.accept(tx, order, now=office.clock.now()))

    answers = await asyncio.gather(*(submit() for _ in range(32)))
    assert len({answer.job.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert office.money() == (9, 1, 0)
