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
    """The request carries no key where one is looked for."""

    def __init__(self, *, has_authorization: bool) -> None:
        super().__init__(
            "Authorization is not read here: send the key in the x-api-key header"
            if has_authorization
            else "Missing Authorization or x-api-key in header"  # Segmind's own words, which its clients know
        )


class InvalidKey(PermissionError):
    """The key is nobody's."""
