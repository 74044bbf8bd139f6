"""How moments and days are told and read: ISO 8601, in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta


def moment(when: datetime | None) -> str | None:
    """ISO 8601 in UTC, to the millisecond."""
    return None if when is None else when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def day_start(day: date) -> datetime:
    """The first moment of a day in UTC."""
    return datetime.combine(day, time(), tzinfo=UTC)


def day_end(day: date) -> datetime:
    """The first moment after a day in UTC; of the last day there is, its own last moment."""
    return datetime.max.replace(tzinfo=UTC) if day == date.max else day_start(day) + timedelta(days=1)
