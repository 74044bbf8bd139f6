"""A database that is away is one line in the log, not one a second."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from rekontext.database import DatabaseUnavailable
from rekontext.jobs.outage import REMINDER_S, Outage
from tests.fakes import FakeClock


def test_an_outage_is_said_at_its_start_now_and_then_and_at_its_end() -> None:
    clock = FakeClock()
    outage = Outage(clock=clock, log=structlog.get_logger())
    with capture_logs() as lines:
        outage.over()
        for _ in range(int(2 * REMINDER_S)):
            outage.met(DatabaseUnavailable("gone"))
            clock.advance(1)
        outage.over()
        outage.over()
        outage.met(DatabaseUnavailable("gone again"))
    said = [(line["event"], line.get("fault"), line.get("for_s", line.get("away_s"))) for line in lines]
    assert said == [
        ("database_unavailable", "gone", 0.0),
        ("database_unavailable", "gone", REMINDER_S),
        ("database_answers_again", None, 2 * REMINDER_S),
        ("database_unavailable", "gone again", 0.0),
    ]
