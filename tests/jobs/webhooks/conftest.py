"""A receiver, what delivers to it, and an office whose clock shows what the library that verifies reads."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rekontext.jobs.webhooks import Deliverer
from tests.fakes import FakeClock, FakeRandomness
from tests.jobs.office import Office
from tests.jobs.webhooks.receiver import Receiver


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
