"""What is logged while the database is away: its going, a reminder now and then, and its coming back."""

from __future__ import annotations

from typing import Any, Final

from rekontext.database import DatabaseUnavailable
from rekontext.sources import Clock

REMINDER_S: Final = 60.0


class Outage:
    """Logs for one asker that the database is away, at first and each minute, and that it is back.

    One that has answered for `REMINDER_S` is back, and not sooner: where a disk is full, or a page is damaged, it
    answers some questions and others never.

    Args:
        by: the asker, as the log names it.
        log: the asker's logger.
    """

    def __init__(self, *, by: str, clock: Clock, log: Any) -> None:
        self._clock = clock
        self._by = by
        self._log = log
        self._since: float | None = None
        self._answers_since: float | None = None
        self._said = clock.monotonic_s()

    def met(self, fault: DatabaseUnavailable) -> None:
        """It didn't answer."""
        now, self._answers_since = self._clock.monotonic_s(), None
        if self._since is None:
            self._since = now
        elif now - self._said < REMINDER_S:
            return
        self._said = now
        for_s = round(now - self._since, 1)
        self._log.error("database_unavailable", by=self._by, fault=str(fault), for_s=for_s)

    def over(self) -> None:
        """It answered."""
        if self._since is None:
            return
        now = self._clock.monotonic_s()
        if self._answers_since is None:
            self._answers_since = now
        if now - self._answers_since >= REMINDER_S:
            away_s = self._answers_since - self._since
            self._since = self._answers_since = None
            self._log.warning("database_answers_again", by=self._by, away_s=round(away_s, 1))
