"""A database that is away is one line in the log, not one a second."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from rekontext.database import DatabaseUnavailable
from rekontext.jobs.outage import REMINDER_S, Outage
from tests.fakes import FakeClock


def test_an_outage_is_said_at_its_start_now_and_then_and_at_its_end() -> None:
    clock = FakeClock()
    with capture_logs() as lines:
        outage = Outage(by="dispatcher", clock=clock, log=structlog.get_logger())
        outage.over()
        for _ in range(int(2 * REMINDER_S)):
            outage.met(DatabaseUnavailable("gone"))
            clock.advance(1)
        outage.over()
        clock.advance(REMINDER_S)
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
    assert {line["by"] for line in lines} == {"dispatcher"}


def test_how_long_it_was_away_is_known_whatever_the_clock_was_set_to() -> None:
    """A machine's clock may be put right meanwhile: the reminders and the times go on as if it had not."""
    clock = FakeClock()
    with capture_logs() as lines:
        outage = Outage(by="dispatcher", clock=clock, log=structlog.get_logger())
        outage.met(DatabaseUnavailable("gone"))
        clock.set_back(3600)
        clock.advance(REMINDER_S)
        outage.met(DatabaseUnavailable("gone"))
        outage.over()
        clock.set_back(3600)
        clock.advance(REMINDER_S)
        outage.over()
    said = [(line["event"], line.get("for_s", line.get("away_s"))) for line in lines]
    assert said == [
        ("database_unavailable", 0.0),
        ("database_unavailable", REMINDER_S),
        ("database_answers_again", REMINDER_S),
    ]


def test_a_database_that_answers_some_questions_and_others_never_is_still_away() -> None:
    """As on a full disk, where a claim that finds nothing writes nothing: one line a minute, and none of its return."""
    clock = FakeClock()
    with capture_logs() as lines:
        outage = Outage(by="dispatcher", clock=clock, log=structlog.get_logger())
        for second in range(int(2 * REMINDER_S)):
            if second % 10:
                outage.over()
            else:
                outage.met(DatabaseUnavailable("full"))
            clock.advance(1)
    said = [(line["event"], line["for_s"]) for line in lines]
    assert said == [("database_unavailable", 0.0), ("database_unavailable", REMINDER_S)]
