"""An account's edits added up by day."""

from __future__ import annotations

from rekontext.jobs import usage
from tests.jobs.office import ALICE, PRICE, Office


def test_days_without_edits_are_there_and_empty(office: Office) -> None:
    """The earliest first, today last."""
    office.complete(office.start().lease)
    office.clock.advance(24 * 3600)
    office.accept()
    days, total = office.database.read_sync(lambda tx: usage.by_day(tx, ALICE, days=3, now=office.clock.now()))
    assert [(its.edits, its.completed, its.cost_micros) for its in days.values()] == [
        (0, 0, 0),
        (1, 1, PRICE),
        (1, 0, 0),
    ]
    assert (total.edits, total.completed, total.cost_micros) == (2, 1, PRICE)


def test_edits_of_tomorrow_count_as_today_s(office: Office) -> None:
    """The clock was set back over midnight."""
    office.complete(office.start().lease)
    office.clock.set_back(24 * 3600)
    days, _ = office.database.read_sync(lambda tx: usage.by_day(tx, ALICE, days=2, now=office.clock.now()))
    assert [its.edits for its in days.values()] == [0, 1]
