"""How webhooks leave the house: one POST, to a public address, without redirects. See webhooks.py."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from rekontext.dialling import AllowList, GuardedSessions, reason
from rekontext.jobs.webhooks import NotDelivered


class WebhookPost:
    """A `Send` of webhooks.py. One per process, open between `async with` and its end.

    Args:
        allow: receivers that may be called though their addresses are not public.
        agent: the User-Agent header.
    """

    def __init__(self, *, allow: AllowList, agent: str) -> None:
        self._sessions = GuardedSessions(allow, headers={"User-Agent": agent})

    async def __aenter__(self) -> Self:
        await self._sessions.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._sessions.__aexit__(kind, fault, traceback)

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send it; the HTTP status.

        Raises:
            NotDelivered: no answer came. The time that one may take is bounded by the caller.
        """
        try:
            session = self._sessions.to(URL(url))
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            raise NotDelivered(f"The receiver could not be reached: {reason(fault)}") from fault
