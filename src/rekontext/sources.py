"""Where the service draws time, ids and randomness from, so that tests can own all three.

Knows nothing of what they are used for.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

Randomness = Callable[[int], bytes]
"""Takes a number of bytes and returns that many unguessable ones."""

Ids = Callable[[], str]
"""Returns a new id at each call, 32 hex digits, never the same twice."""


RANDOM_SEED_MAX: Final = 2**32 - 1
"""Random seeds stay below it: JavaScript can't hold larger ones exactly."""


class Clock(Protocol):
    def now(self) -> datetime:
        """The present moment, timezone-aware."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some moment, for durations: they pass evenly, whatever the wall clock is set to."""
        ...


class SystemClock:
    """The machine's: its wall clock in UTC, and the one that can't be set."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()


def random_bytes(count: int) -> bytes:
    """`count` bytes from the operating system's generator."""
    return secrets.token_bytes(count)


def random_id() -> str:
    """A version 4 UUID without dashes."""
    return uuid.uuid4().hex


def draw_seed() -> int:
    """The seed of an edit that came without one."""
    return secrets.randbelow(RANDOM_SEED_MAX + 1)
