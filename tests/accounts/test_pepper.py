"""A database beside the wrong secret says so, instead of refusing every customer."""

from __future__ import annotations

import pytest

from rekontext.accounts import Acts, KeyPolicy, KeyRefused, PepperChanged, audit, keys, pepper
from rekontext.database import AccountId, Database
from tests.fakes import FakeClock, FakeIds, FakeRandomness

OURS = b"0123456789abcdef0123456789abcdef"
ANOTHER = b"another pepper, of another secret"


def _acts(pepper: bytes, clock: FakeClock, ids: FakeIds, randomness: FakeRandomness) -> Acts:
    return Acts(actor="cli", ids=ids, randomness=randomness, pepper=pepper, now=clock.now)


def test_the_first_pepper_is_the_right_one(database: Database) -> None:
    """And stays it, however often it is asked for."""
    assert database.read_sync(lambda tx: pepper.fits(tx, ANOTHER))
    for _ in range(2):
        database.transact_sync(lambda tx: pepper.require(tx, OURS))
    assert database.read_sync(lambda tx: (pepper.fits(tx, OURS), pepper.fits(tx, ANOTHER))) == (True, False)
    with pytest.raises(PepperChanged, match="under another secret"):
        database.transact_sync(lambda tx: pepper.require(tx, ANOTHER))
    assert database.read_sync(lambda tx: pepper.fits(tx, OURS))


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
    assert len(database.read_sync(lambda tx: keys.of_account(tx, alice))) == 1


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
