"""An office on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rekontext.database import Database
from tests.jobs.office import Office


@pytest.fixture
def office(database: Database) -> Iterator[Office]:
    """One account with credits for ten edits; afterwards its books must be right."""
    made = Office(database=database)
    made.open_account()
    yield made
    made.check_books()
