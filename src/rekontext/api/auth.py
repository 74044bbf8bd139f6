"""Who is calling. The wire asks one question and does not know where keys are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody whose key was found good."""

    name: str


class Keys(Protocol):
    async def authenticate(self, key: str) -> Caller:
        """The caller that this key belongs to.

        Raises:
            InvalidKey: it belongs to nobody.
        """
        ...


class MissingKey(PermissionError):
    """The request carries no key."""


class InvalidKey(PermissionError):
    """The key is nobody's."""
