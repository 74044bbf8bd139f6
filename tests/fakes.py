"""A clock that stands still, ids that count and randomness from a seed: what tests own instead of the world's."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta


class FakeClock:
    """Time that moves only when told."""

    def __init__(self, start: datetime = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)) -> None:
        self._now = start
        self._passed_s = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._passed_s

    def advance(self, seconds: float) -> datetime:
        assert seconds >= 0, f"time can't go back by {-seconds} s"
        self._now += timedelta(seconds=seconds)
        self._passed_s += seconds
        return self._now

    def set_back(self, seconds: float) -> datetime:
        """What a machine's clock does when it was wrong and is put right."""
        assert seconds > 0, f"a clock can't be set back by {seconds} s"
        self._now -= timedelta(seconds=seconds)
        return self._now


class FakeIds:
    """Ids in a row: 00..01, 00..02, ..."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> str:
        self._last += 1
        return f"{self._last:032x}"


class FakeRandomness:
    """Bytes from a seeded generator."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = random.Random(seed)

    def __call__(self, count: int) -> bytes:
        return self._generator.randbytes(count)
