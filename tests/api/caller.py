"""A caller whose connection breaks when a test says so, and the one job that it leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import orjson
from starlette.types import Message, Scope

from tests.api.orders import V1


class Caller:
    """One connection, spoken to in ASGI, so that a test decides when it breaks."""

    def __init__(self, body: dict[str, Any], headers: dict[str, str], path: str = V1) -> None:
        self._body = orjson.dumps(body)
        self._headers = headers
        self._path = path
        self._has_sent = False
        self.hang_up = asyncio.Event()
        self.got: list[Message] = []

    @property
    def scope(self) -> Scope:
        headers = [
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in self._headers.items()),
        ]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("studio", 80),
            "client": ("caller", 1),
        }

    async def receive(self) -> Message:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.got.append(message)


async def only_request(client: httpx2.AsyncClient) -> dict[str, Any]:
    """The one job that the account has."""
    [row] = (await client.get("/console/api/requests")).json()["data"]
    found: dict[str, Any] = row
    return found
