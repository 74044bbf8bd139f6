"""An office on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rekontext.database import Database
from rekontext.jobs import workers
from tests.jobs.office import Office


@pytest.fixture
def office(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """One account with credits for ten edits; afterwards its books must be right.

    Its clock stands still: PostgreSQL's doesn't, and to be told so in every log says nothing.
    """
    monkeypatch.setattr(workers, "shared_time", lambda _tx: None)
    made = Office(database=database)
    made.open_account()
    yield made
    made.check_books()
