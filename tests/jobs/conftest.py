"""An office on each kind of database, and the plant around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rekontext.database import Database
from rekontext.jobs import workers
from rekontext.pictures.store import PictureStore, open_store
from tests.jobs.office import Office
from tests.jobs.plant import Plant


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


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return open_store(f"file://{tmp_path}/objects")


@pytest.fixture
def plant(office: Office, store: PictureStore) -> Plant:
    return Plant(office=office, objects=store)
