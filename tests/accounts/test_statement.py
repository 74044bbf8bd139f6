"""A month's bill is what the books say, when the requests themselves are gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rekontext.accounts import ledger, statement
from rekontext.accounts.ledger import Settlement
from rekontext.accounts.statement import total_micros
from rekontext.database import AccountId, Database, JobId
from tests.fakes import FakeClock

MARCH, APRIL = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 4))


def edit(database: Database, account: AccountId, clock: FakeClock, micros: int, name: str, how: Settlement) -> None:
    """One that takes an hour."""
    job = JobId(name)
    database.transact_sync(lambda tx: ledger.hold(tx, account, micros, job=job, now=clock.now()))
    clock.advance(3600)
    database.transact_sync(lambda tx: ledger.settle(tx, account, how, job=job, now=clock.now()))


def test_a_month_has_what_was_put_there_and_what_ended_in_it(
    database: Database, alice: AccountId, clock: FakeClock
) -> None:
    """Each edit once and when it was charged; those that cost nothing in the end are nobody's to pay."""

    def add(micros: int, source: ledger.Source) -> None:
        database.transact_sync(
            lambda tx: ledger.add(tx, alice, micros, source=source, actor="anna", now=clock.now(), note="a bill")
        )

    add(50_000, "grant")
    add(100_000, "payment")
    edit(database, alice, clock, 40_000, "of given", "capture")
    edit(database, alice, clock, 40_000, "of both", "capture")
    edit(database, alice, clock, 40_000, "failed", "release")
    edit(database, alice, clock, 0, "free", "capture")
    add(-10_000, "correction")
    clock.advance((APRIL - clock.now() - timedelta(minutes=1)).total_seconds())
    edit(database, alice, clock, 40_000, "over midnight", "capture")

    march = database.read_sync(lambda tx: statement.between(tx, alice, MARCH, APRIL))
    assert [(each.kind, each.amount_micros, each.of_paid_micros, each.job_id) for each in march] == [
        ("grant", 50_000, 0, None),
        ("payment", 100_000, 0, None),
        ("capture", 40_000, 0, "of given"),
        ("capture", 40_000, 30_000, "of both"),
        ("capture", 0, 0, "free"),
        ("correction", -10_000, 0, None),
    ]
    assert (march[1].actor, march[1].note) == ("anna", "a bill")
    assert (total_micros(march, "capture"), total_micros(march, "correction")) == (80_000, -10_000)
    [later] = database.read_sync(lambda tx: statement.between(tx, alice, APRIL, APRIL + timedelta(days=30)))
    assert (later.job_id, later.of_paid_micros) == ("over midnight", 40_000)
    nobody = AccountId("acc_nobody")
    assert database.read_sync(lambda tx: statement.between(tx, nobody, MARCH, APRIL)) == []
