"""What is logged while the database is away: its going, a reminder now and then, and its coming back."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from rekontext.database import DatabaseUnavailable
from rekontext.sources import Clock

REMINDER_S: Final = 60.0


class Outage:
    """The database's being away, as one asker notices it: often, and each time with the same sentence.

    Args:
        log: the asker's logger.
    """

    def __init__(self, *, clock: Clock, log: Any) -> None:
        self._clock = clock
        self._log = log
        self._since: datetime | None = None
        self._said = clock.now()

    def met(self, fault: DatabaseUnavailable) -> None:
        """It didn't answer."""
        now = self._clock.now()
        if self._since is None:
            self._since = now
        elif (now - self._said).total_seconds() < REMINDER_S:
            return
        self._said = now
        self._log.error("database_unavailable", fault=str(fault), for_s=round((now - self._since).total_seconds(), 1))

    def over(self) -> None:
        """It answered."""
        if self._since is not None:
            away_s = (self._clock.now() - self._since).total_seconds()
            self._since = None
            self._log.warning("database_answers_again", away_s=round(away_s, 1))
