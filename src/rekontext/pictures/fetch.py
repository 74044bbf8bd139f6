"""Pictures and other files by URL, without ever dialling an address that the caller could not reach from outside.

See dialling.py. Knows nothing of what they are: it brings bytes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Final, Self
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from rekontext.dialling import AllowList, GuardedSessions, reason
from rekontext.pictures.refused import PictureRefused, PictureTooLarge, PictureUnreachable

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES: Final = 2**16
_PIECE_BYTES: Final = 4 * 2**20
_SECRETS: Final = re.compile(r"[?#]")
"""Behind the first of them signatures and tokens stand."""
Take = Callable[[bytes], Awaitable[None]]
PER_CALLER_MAX: Final = 8
"""Fetches of one caller that may be under way; more wait for each other, within their own time.

Hosts that never answer, all of one caller, would else hold up everybody's."""

# By name: "image/*" invites hosts that choose to send what we can't read.
_PICTURES: Final = "image/jpeg, image/png, image/webp, image/gif, */*;q=0.1"
_COMPLETE_URL: Final = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")


class Fetcher:
    """Fetches URLs within limits. One per process, open between `async with` and its end.

    Args:
        timeout_s: for the whole fetch, redirects included.
        redirects_max: how many redirects are followed.
        agent: the User-Agent header.
        what: what is fetched, in messages.
        accept: the Accept header.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        redirects_max: int,
        agent: str,
        allow: AllowList | None = None,
        what: str = "picture",
        accept: str = _PICTURES,
    ) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._redirects_max = redirects_max
        self._places: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()
        self._sessions = GuardedSessions(
            allow or AllowList(),
            headers={"User-Agent": agent, "Accept": accept, "Accept-Encoding": "identity"},
            auto_decompress=False,  # a compressed body can grow past any limit in one read
        )

    async def __aenter__(self) -> Self:
        await self._sessions.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._sessions.__aexit__(kind, fault, traceback)

    async def fetch(self, address: str, *, bytes_max: int, caller: Hashable = None) -> bytes:
        """GET `address`, following redirects.

        Args:
            caller: for whom; see `PER_CALLER_MAX`.

        Raises:
            PictureTooLarge: more than `bytes_max` bytes.
            PictureUnreachable: everything else that went wrong; the message says what.
        """
        body = bytearray()

        async def take(chunk: bytes) -> None:
            body.extend(chunk)

        await self._fetch(address, take, bytes_max=bytes_max, caller=caller)
        return bytes(body)

    async def fetch_pieces(
        self, address: str, take: Take, *, bytes_max: int, caller: Hashable = None, tag: str = ""
    ) -> str | None:
        """GET `address` some megabytes at a time, of which part was taken if it fails.

        Args:
            take: what it raises, the caller of this gets.
            tag: of what is known of it; empty for nothing.

        Returns:
            The tag of what was taken, empty if its server gives none; None where it is what is known: then nothing was.

        Raises:
            PictureTooLarge, PictureUnreachable: as `fetch`.
        """
        waiting = bytearray()

        async def gather(chunk: bytes) -> None:
            waiting.extend(chunk)
            if len(waiting) >= _PIECE_BYTES:
                await take(bytes(waiting))
                waiting.clear()

        found = await self._fetch(address, gather, bytes_max=bytes_max, caller=caller, tag=tag)
        if waiting:
            await take(bytes(waiting))
        return found

    async def _fetch(self, address: str, take: Take, *, bytes_max: int, caller: Hashable, tag: str = "") -> str | None:
        places = self._places.setdefault(caller, asyncio.Semaphore(PER_CALLER_MAX))
        has_begun = False
        try:
            async with asyncio.timeout(self._timeout_s), places:
                has_begun = True
                return await self._follow(address, take, bytes_max, tag)
        except TimeoutError as fault:
            why = f"{shown_address(address)} did not answer within {self._timeout_s:g} s"
            if not has_begun:
                why = f"{shown_address(address)} was not asked: {PER_CALLER_MAX} of your other URLs don't answer"
            raise PictureUnreachable(why) from fault
        except PictureRefused:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as fault:  # ValueError: names that IDNA can't spell
            raise PictureUnreachable(f"{shown_address(address)} can't be fetched: {reason(fault)}") from fault

    async def _follow(self, address: str, take: Take, bytes_max: int, tag: str) -> str | None:
        url = _parse(address)
        asked = {"If-None-Match": tag} if tag else {}
        for _ in range(self._redirects_max + 1):
            async with self._sessions.to(url).get(url, allow_redirects=False, headers=asked) as answer:
                if answer.status in _REDIRECTS and "location" in answer.headers:
                    url = _parse(answer.headers["location"], base=url)
                    continue
                if answer.status == 304 and tag:
                    return None
                if answer.status != 200:
                    raise PictureUnreachable(f"{shown_address(str(url))} answered {answer.status}, not 200")
                if answer.headers.get("content-encoding", "identity").lower() != "identity":
                    raise PictureUnreachable(
                        f"{shown_address(str(url))} answered with a compressed body, which is not read"
                    )
                await self._body(answer, take, bytes_max)
                return answer.headers.get("etag", "")
        raise PictureUnreachable(f"{shown_address(address)} redirects more than {self._redirects_max} times")

    async def _body(self, answer: aiohttp.ClientResponse, take: Take, bytes_max: int) -> None:
        too_large = PictureTooLarge(
            f"the {self._what} at {shown_address(str(answer.url))} has more than {bytes_max} bytes"
        )
        if (answer.content_length or 0) > bytes_max:
            raise too_large
        count = 0
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            count += len(chunk)
            if count > bytes_max:
                raise too_large
            await take(chunk)


def _parse(text: str, *, base: URL | None = None) -> URL:
    try:
        # What is a URL already stays as it is spelled: a signature in it may be over the spelling.
        url = URL(text, encoded=_COMPLETE_URL.fullmatch(text) is not None)
        url = url if base is None else base.join(url)
        valid = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError as fault:
        raise PictureUnreachable(f"{shown_address(text)} is not a valid URL") from fault
    if not valid:
        raise PictureUnreachable(f"{shown_address(text)} is not a complete http or https URL")
    return url


def shown_address(address: str, *, most: int = 120) -> str:
    """An address to be shown or kept: at most so many characters, without the password or signature in it."""
    bare = _SECRETS.split(address, maxsplit=1)[0]
    scheme, separator, rest = bare.partition("://")
    if not separator:  # it is none, and what was meant as its password may stand anywhere
        return bare.rpartition("@")[2][:most]
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"[:most]
