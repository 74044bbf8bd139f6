"""What an operator does is done whole, and stands in the audit log without a secret."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from rekontext.accounts import AccountUnknown, KeyPolicy, NameTaken, audit, keys, opening, registry
from rekontext.accounts.opening import Opened
from rekontext.database import AccountId, Database
from tests.fakes import FakeClock, FakeIds, FakeRandomness

PEPPER = b"0123456789abcdef0123456789abcdef"


def open_bob(database: Database, clock: FakeClock, ids: FakeIds, *, credits_micros: int = 10_000_000) -> Opened:
    return database.transact_sync(
        lambda tx: opening.open_account(
            tx,
            "Bob",
            actor="cli",
            ids=ids,
            randomness=FakeRandomness(),
            pepper=PEPPER,
            now=clock.now(),
            credits_micros=credits_micros,
        )
    )


def test_an_account_is_opened_with_credits_and_a_key_that_works(
    database: Database, clock: FakeClock, ids: FakeIds
) -> None:
    """In one go."""
    opened = open_bob(database, clock, ids)
    assert opened.balance.paid_micros == 10_000_000
    found = database.read_sync(lambda tx: keys.authenticate(tx, opened.key.secret, pepper=PEPPER, now=clock.now()))
    assert found.account == opened.account.id


def test_every_act_is_logged_and_no_secret_with_it(database: Database, clock: FakeClock, ids: FakeIds) -> None:
    """Newest first: who did what to whom."""
    opened = open_bob(database, clock, ids)

    def more(tx: Connection) -> None:
        made = opening.make_key(
            tx,
            opened.account.id,
            KeyPolicy(name="ci"),
            actor="key_admin",
            ids=ids,
            randomness=FakeRandomness(2),
            pepper=PEPPER,
            now=clock.now(),
        )
        opening.revoke_key(tx, made.key.id, actor="key_admin", now=clock.now())

    database.transact_sync(more)
    log = database.read_sync(audit.records)
    assert [(record.actor, record.action) for record in log] == [
        ("key_admin", "key.revoke"),
        ("key_admin", "key.create"),
        ("cli", "credits.add"),
        ("cli", "key.create"),
        ("cli", "account.create"),
    ]
    assert opened.key.secret[7:] not in repr(log)
    assert opened.account.webhook_secret not in repr(log)


def test_an_opening_that_fails_leaves_nothing(database: Database, clock: FakeClock, ids: FakeIds) -> None:
    """No half account, no line in the log."""
    with pytest.raises(ValueError, match="can't be added"):
        open_bob(database, clock, ids, credits_micros=-1)
    assert database.read_sync(registry.every) == []
    assert database.read_sync(audit.records) == []
    open_bob(database, clock, ids)
    with pytest.raises(NameTaken):
        open_bob(database, clock, ids)


def test_a_key_needs_an_account(database: Database, clock: FakeClock, ids: FakeIds) -> None:
    """One that exists."""
    with pytest.raises(AccountUnknown):
        database.transact_sync(
            lambda tx: opening.make_key(
                tx,
                AccountId("acc_nobody"),
                KeyPolicy(),
                actor="cli",
                ids=ids,
                randomness=FakeRandomness(),
                pepper=PEPPER,
                now=clock.now(),
            )
        )
