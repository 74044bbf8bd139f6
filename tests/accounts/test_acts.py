"""What an operator does is done whole, and stands in the audit log without a secret."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Connection, text

from rekontext.accounts import (
    AccountUnknown,
    Acts,
    ApiKey,
    KeyPolicy,
    NameTaken,
    TooManyKeys,
    audit,
    keys,
    ledger,
    registry,
)
from rekontext.database import AccountId, Database
from tests.fakes import FakeClock, FakeIds, FakeRandomness

PEPPER = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def acts(clock: FakeClock, ids: FakeIds, randomness: FakeRandomness) -> Acts:
    return Acts(actor="cli", ids=ids, randomness=randomness, pepper=PEPPER, now=clock.now)


def test_an_account_is_opened_with_credits_and_a_key_that_works(
    database: Database, acts: Acts, clock: FakeClock
) -> None:
    """In one go."""
    account, key = database.transact_sync(lambda tx: acts.create_account(tx, "Bob", credits_micros=10_000_000))
    assert database.read_sync(lambda tx: ledger.balance(tx, account.id)).available_micros == 10_000_000
    found = database.read_sync(lambda tx: keys.authenticate(tx, key.secret, pepper=PEPPER, now=clock.now()))
    assert found == key.key
    assert found.account == account.id


def test_limits_that_stay_as_they_are_leave_no_line(database: Database, acts: Acts) -> None:
    """Whether they are given again or not at all: a line says that something changed."""
    account, _ = database.transact_sync(lambda tx: acts.create_account(tx, "Bob"))

    def act(tx: Connection) -> None:
        acts.set_limits(tx, account.id)
        acts.set_limits(tx, account.id, monthly_cap_micros=None)
        acts.set_limits(tx, account.id, in_flight_max=3)
        assert acts.set_limits(tx, account.id, in_flight_max=3, monthly_cap_micros=None).in_flight_max == 3

    database.transact_sync(act)
    lines = [record.details for record in database.read_sync(audit.records) if record.action == "account.limits"]
    assert lines == [{"in_flight_max": 3}]


def test_every_act_is_logged_and_no_secret_with_it(database: Database, acts: Acts) -> None:
    """Newest first: who did what to whom."""
    account, key = database.transact_sync(lambda tx: acts.create_account(tx, "Bob", credits_micros=5))

    def more(tx: Connection) -> None:
        made = acts.create_key(tx, account.id, KeyPolicy(name="ci"))
        assert acts.revoke_key(tx, made.key.id) == acts.revoke_key(tx, made.key.id)
        acts.add_credits(tx, account.id, 7, source="payment", note="invoice 1")
        acts.set_limits(tx, account.id, monthly_cap_micros=1_000_000, in_flight_max=3)

    database.transact_sync(more)
    log = database.read_sync(audit.records)
    assert [record.action for record in log] == [
        "account.limits",
        "credits.payment",
        "key.revoke",
        "key.create",
        "key.create",
        "credits.grant",
        "account.create",
    ]
    assert {record.actor for record in log} == {"cli"}
    assert log[0].details == {"monthly_cap": 1.0, "in_flight_max": 3}
    assert key.secret[7:] not in repr(log)
    assert account.webhook_secret not in repr(log)


def test_every_open_key_of_an_account_is_closed_at_once(database: Database, acts: Acts, clock: FakeClock) -> None:
    """Each has its line; those that were closed or have expired stay as they are, and so do other accounts' keys."""
    bob, first = database.transact_sync(lambda tx: acts.create_account(tx, "Bob"))
    _, others = database.transact_sync(lambda tx: acts.create_account(tx, "Eve"))

    def make(tx: Connection) -> list[ApiKey]:
        soon = clock.now() + timedelta(seconds=1)
        policies = (KeyPolicy(name="ci"), KeyPolicy(name="revoked"), KeyPolicy(name="expired", expires_at=soon))
        made = [acts.create_key(tx, bob.id, policy).key for policy in policies]
        acts.revoke_key(tx, made[1].id)
        return made

    ci, revoked, expired = database.transact_sync(make)
    now = clock.advance(2)
    closed = database.transact_sync(lambda tx: acts.revoke_keys(tx, bob.id))
    assert [(each.id, each.revoked_at) for each in closed] == [(first.key.id, now), (ci.id, now)]
    assert database.transact_sync(lambda tx: acts.revoke_keys(tx, bob.id)) == []
    lines = [record for record in database.read_sync(audit.records) if record.action == "key.revoke"]
    assert [(line.subject, line.details) for line in reversed(lines)] == [
        (key, {"account": bob.id}) for key in (revoked.id, first.key.id, ci.id)
    ]
    assert database.read_sync(lambda tx: keys.get(tx, expired.id)).revoked_at is None
    database.read_sync(lambda tx: keys.check_open(tx, others.key.id, now=now))
    with pytest.raises(AccountUnknown):
        database.transact_sync(lambda tx: acts.revoke_keys(tx, AccountId("acc_nobody")))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_of_two_who_revoke_a_key_at_once_one_has_revoked_it(database: Database, acts: Acts) -> None:
    """Both are told so; the log has who it was. SQLite has one writer at a time anyway."""
    _, key = database.transact_sync(lambda tx: acts.create_account(tx, "Bob"))
    waiting = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

    def first(tx: Connection) -> ApiKey:
        revoked = acts.revoke_key(tx, key.key.id)
        others.append(threads.submit(database.transact_sync, lambda tx: acts.revoke_key(tx, key.key.id)))
        until = time.monotonic() + 30
        while database.read_sync(lambda other: other.execute(waiting).first()) is None:
            assert time.monotonic() < until
        return revoked

    others: list[Future[ApiKey]] = []
    with ThreadPoolExecutor(1) as threads:
        revoked = database.transact_sync(first)
        assert [other.result() for other in others] == [revoked]
    log = database.read_sync(audit.records)
    assert [record.action for record in log].count("key.revoke") == 1


def test_the_log_says_all_that_a_new_key_may_do(database: Database, acts: Acts, clock: FakeClock) -> None:
    """The key itself is gone a month after it is closed."""
    account, _ = database.transact_sync(lambda tx: acts.create_account(tx, "Bob"))
    policy = KeyPolicy(
        name="ci",
        scopes=frozenset({"read", "edit"}),
        requests_per_minute=7,
        models=frozenset({"flux-kontext-dev"}),
        expires_at=clock.now() + timedelta(days=1),
        sync_response="json",
    )
    database.transact_sync(lambda tx: acts.create_key(tx, account.id, policy))
    assert database.read_sync(audit.records)[0].details == {
        "account": account.id,
        "name": "ci",
        "scopes": ["edit", "read"],
        "requests_per_minute": 7,
        "models": ["flux-kontext-dev"],
        "expires_at": (clock.now() + timedelta(days=1)).isoformat(),
        "sync_response": "json",
    }


def test_an_act_that_fails_leaves_nothing(database: Database, acts: Acts) -> None:
    """No half account, no line in the log."""
    with pytest.raises(ValueError, match="can't be added"):
        database.transact_sync(lambda tx: acts.create_account(tx, "Bob", credits_micros=-1))
    assert database.read_sync(registry.every_with_balance) == []
    assert database.read_sync(audit.records) == []
    database.transact_sync(lambda tx: acts.create_account(tx, "Bob"))
    with pytest.raises(NameTaken):
        database.transact_sync(lambda tx: acts.create_account(tx, "Bob"))
    with pytest.raises(AccountUnknown):
        database.transact_sync(lambda tx: acts.create_key(tx, AccountId("acc_nobody"), KeyPolicy()))


def test_the_bound_on_open_keys_holds_when_several_are_made_at_once(database: Database, acts: Acts) -> None:
    """Whoever comes second counts what the first has made."""
    account, _ = database.transact_sync(lambda tx: acts.create_account(tx, "Bob"))

    def make(_: int) -> bool:
        try:
            database.transact_sync(lambda tx: acts.create_key(tx, account.id, KeyPolicy(), open_max=3))
        except TooManyKeys:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(make, range(8))) == 2
    assert database.read_sync(lambda tx: keys.count_open(tx, account.id, now=acts.now())) == 3


def test_the_first_start_opens_one_account_and_the_next_none(database: Database, acts: Acts) -> None:
    """Its key may do everything."""
    first = database.transact_sync(lambda tx: acts.open_first(tx, credits_micros=0))
    assert first is not None
    first.key.require_scope("admin")
    assert database.transact_sync(lambda tx: acts.open_first(tx, credits_micros=0)) is None
