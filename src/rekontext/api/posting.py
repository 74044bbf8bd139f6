"""How webhooks leave the house: one POST, to a public address, without redirects. See jobs/webhooks.py."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from rekontext.jobs import NotDelivered
from rekontext.pictures import AllowList, guarded_connector, reason


class WebhookPost:
    """A `rekontext.jobs.Send`. One per process, open between `async with` and its end.

    Args:
        allow: receivers that may be called though their addresses are not public.
        agent: the User-Agent header.
    """

    def __init__(self, *, allow: AllowList, agent: str) -> None:
        self._allow = allow
        self._agent = agent
        self._guarded: aiohttp.ClientSession | None = None
        self._open: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._guarded = self._session(guarded_connector(self._allow))
        self._open = self._session(aiohttp.TCPConnector())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in (self._guarded, self._open):
            if session is not None:
                await session.close()
        self._guarded = self._open = None

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send it; the HTTP status.

        Raises:
            NotDelivered: no answer came. The time that one may take is bounded by the caller.
        """
        try:
            host = URL(url).host or ""
            session = self._open if self._allow.has_host(host) else self._guarded
            assert session is not None, "webhooks are sent inside `async with` only"
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            raise NotDelivered(f"The receiver could not be reached: {reason(fault)}") from fault

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            trust_env=False,  # a proxy would do the dialling, out of the guard's sight
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._agent},
        )
