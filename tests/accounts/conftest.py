"""Accounts to try things on."""

from __future__ import annotations

import pytest

from rekontext.accounts import registry
from rekontext.database import AccountId, Database
from tests.fakes import FakeClock, FakeRandomness

ALICE = AccountId("acc_alice")


@pytest.fixture
def alice(database: Database, clock: FakeClock, randomness: FakeRandomness) -> AccountId:
    """An account without credits."""
    database.transact_sync(
        lambda tx: registry.create(tx, "Alice", account=ALICE, randomness=randomness, now=clock.now())
    )
    return ALICE
