"""A database beside the wrong secret says so, instead of refusing every customer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from sqlalchemy import Connection, delete

from rekontext.accounts import Acts, KeyPolicy, KeyRefused, PepperChanged, audit, keys, peppers
from rekontext.database import AccountId, Database
from rekontext.database.tables import installation
from tests.fakes import FakeClock, FakeIds, FakeRandomness

OURS = b"0123456789abcdef0123456789abcdef"
ANOTHER = b"another pepper, of another secret"


def _acts(pepper: bytes, clock: FakeClock, ids: FakeIds, randomness: FakeRandomness) -> Acts:
    return Acts(actor="cli", ids=ids, randomness=randomness, pepper=pepper, now=clock.now)


def test_the_first_pepper_is_the_right_one(database: Database) -> None:
    """And stays it, however often it is asked for."""
    assert database.read_sync(lambda tx: peppers.fits(tx, ANOTHER)) is None
    for _ in range(2):
        database.transact_sync(lambda tx: peppers.claim_or_require(tx, OURS))
    assert database.read_sync(lambda tx: (peppers.fits(tx, OURS), peppers.fits(tx, ANOTHER))) == (True, False)
    with pytest.raises(PepperChanged, match="under another secret"):
        database.transact_sync(lambda tx: peppers.claim_or_require(tx, ANOTHER))
    assert database.read_sync(lambda tx: peppers.fits(tx, OURS))


def test_no_key_is_made_under_another_pepper(
    database: Database, alice: AccountId, clock: FakeClock, ids: FakeIds, randomness: FakeRandomness
) -> None:
    """It would open nothing. Nor is a first account opened: there is one."""
    ours, other = (_acts(each, clock, ids, randomness) for each in (OURS, ANOTHER))
    database.transact_sync(lambda tx: ours.create_key(tx, alice, KeyPolicy()))
    with pytest.raises(PepperChanged):
        database.transact_sync(lambda tx: other.create_key(tx, alice, KeyPolicy()))
    with pytest.raises(PepperChanged):
        database.transact_sync(lambda tx: other.open_first(tx, credits_micros=1))
    assert len(database.read_sync(lambda tx: keys.of_account(tx, alice, now=clock.now()))) == 1


def test_a_lost_pepper_is_replaced_and_its_keys_are_closed(
    database: Database, alice: AccountId, clock: FakeClock, ids: FakeIds, randomness: FakeRandomness
) -> None:
    """New keys work; should the old pepper turn up again, its keys open nothing."""
    ours, other = (_acts(each, clock, ids, randomness) for each in (OURS, ANOTHER))
    old = database.transact_sync(lambda tx: ours.create_key(tx, alice, KeyPolicy()))
    with pytest.raises(ValueError, match="nothing to reset"):
        database.transact_sync(ours.reset_keys)
    assert database.transact_sync(other.reset_keys) == 1
    new = database.transact_sync(lambda tx: other.create_key(tx, alice, KeyPolicy()))

    def authenticate(secret: str, under: bytes) -> keys.ApiKey:
        return database.read_sync(lambda tx: keys.authenticate(tx, secret, pepper=under, now=clock.now()))

    assert authenticate(new.secret, ANOTHER) == new.key
    with pytest.raises(KeyRefused, match="revoked"):
        authenticate(old.secret, OURS)
    [reset] = [each for each in database.read_sync(audit.records) if each.action == "keys.reset"]
    assert reset.details == {"closed": 1}


def test_of_older_keys_nobody_knows_the_pepper(
    database: Database, alice: AccountId, clock: FakeClock, ids: FakeIds, randomness: FakeRandomness
) -> None:
    """Whoever comes first must not be taken for the right one: its owner would then be refused."""
    ours, other = (_acts(each, clock, ids, randomness) for each in (OURS, ANOTHER))
    database.transact_sync(lambda tx: ours.create_key(tx, alice, KeyPolicy()))
    database.transact_sync(lambda tx: tx.execute(delete(installation)))
    assert database.transact_sync(lambda tx: other.open_first(tx, credits_micros=1)) is None
    assert database.read_sync(lambda tx: (peppers.is_known(tx), peppers.fits(tx, OURS))) == (False, None)
    assert database.transact_sync(ours.reset_keys) == 1
    assert database.read_sync(lambda tx: (peppers.fits(tx, OURS), peppers.fits(tx, ANOTHER))) == (True, False)


def test_no_key_slips_past_a_reset(
    database: Database, alice: AccountId, clock: FakeClock, ids: FakeIds, randomness: FakeRandomness
) -> None:
    """One that is just being made under the old pepper is waited for, and closed with the others."""
    ours, other = (_acts(each, clock, ids, randomness) for each in (OURS, ANOTHER))
    database.transact_sync(lambda tx: ours.create_key(tx, alice, KeyPolicy()))
    made, may_commit = Event(), Event()

    def make(tx: Connection) -> None:
        ours.create_key(tx, alice, KeyPolicy())
        made.set()
        assert may_commit.wait(10)

    with ThreadPoolExecutor(2) as threads:
        making = threads.submit(database.transact_sync, make)
        assert made.wait(10)
        resetting = threads.submit(database.transact_sync, other.reset_keys)
        with pytest.raises(TimeoutError):
            resetting.result(0.3)
        may_commit.set()
        making.result(10)
        assert resetting.result(10) == 2
    assert all(key.revoked_at for key in database.read_sync(lambda tx: keys.of_account(tx, alice, now=clock.now())))
