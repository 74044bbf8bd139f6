"""Two things that hold for every request, as plain ASGI: it has an id, and its body has a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER: Final = "x-request-id"
_REQUEST_ID_KEY: Final = "rekontext.request_id"


class BodyTooLarge(ValueError):
    """The request's body is over the limit."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"the request's body has more than {bytes_max} bytes, the most that is allowed")


class RequestIds:
    """Names each request and says the name in its answer. `new_id` makes the names; a caller's own is not taken."""

    def __init__(self, app: ASGIApp, *, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = scope[_REQUEST_ID_KEY] = self._new_id()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        return await self._app(scope, receive, send_named)


def request_id(scope: Scope) -> str:
    """The id that `RequestIds` gave to this request."""
    value: str = scope.get(_REQUEST_ID_KEY, "")
    return value


class BodyLimit:
    """Raises `BodyTooLarge` into whoever reads more than `bytes_max` bytes of body, declared or not.

    Starlette has a limit of its own; it answers in plain text where this API answers in JSON.
    """

    def __init__(self, app: ASGIApp, *, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        is_over = declared.isdecimal() and int(declared[:20]) > self._bytes_max
        seen = 0

        async def receive_limited() -> Message:
            nonlocal seen
            if is_over and seen == 0:
                raise BodyTooLarge(self._bytes_max)
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._bytes_max:
                raise BodyTooLarge(self._bytes_max)
            return message

        return await self._app(scope, receive_limited, send)
