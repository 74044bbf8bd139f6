"""What holds for every request, as plain ASGI: it has an id, its body has a limit, and it is counted and logged."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER: Final = "x-request-id"
_REQUEST_ID_KEY: Final = "rekontext.request_id"
_NOTED_KEY: Final = "rekontext.noted"
_DAY_S: Final = 86_400
_WHOLE: Final = re.compile(rb"https?://(?P<host>[^/]*)(?P<path>/.*)?", re.IGNORECASE)
_PATH_LOGGED: Final = 200
"""Characters: a stranger's may have as many as a head."""
_AGENT_LOGGED: Final = 80
_DOING_GETS: Final = frozenset({"/webhook/inactive"})
"""Where GET does something, as an SDK wants it: HEAD has a route of its own there, which only looks."""
_QUIET: Final = frozenset(
    {"healthz", "readyz", "scrape", "status", "fal_get_status", "bfl_get_result", "replicate_get_prediction"}
)
"""What is asked again and again: worth a line only where something is wrong."""
_log = structlog.get_logger("rekontext.http")

Answered = Callable[[str, int, float], None]
"""Told of each answer: what was asked for, the status, and the seconds until it began."""


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
        rename(scope, self._new_id())

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id(scope)
            await send(message)

        return await self._app(scope, receive, send_named)


class Sight:
    """Counts and logs each request by its path, never by its query, which may be a signature.

    Args:
        client_of: tells the address that a request comes from.
    """

    def __init__(self, app: ASGIApp, *, answered: Answered, client_of: Callable[[Request], str | None]) -> None:
        self._app = app
        self._answered = answered
        self._client_of = client_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        scope[_NOTED_KEY] = {}
        is_noted = False

        async def send_seen(message: Message) -> None:
            nonlocal is_noted
            if message["type"] == "http.response.start":
                is_noted = True
                self._note(scope, message["status"], time.perf_counter() - began)
            await send(message)

        try:
            return await self._app(scope, receive, send_seen)
        except Exception:
            if not is_noted:  # else the answer broke after its start, of which the server's log tells
                self._note(scope, 500, time.perf_counter() - began)
            raise

    def _note(self, scope: Scope, status: int, took_s: float) -> None:
        # The handler's name: paths hold ids, and strangers make up paths without end.
        operation = getattr(scope.get("endpoint"), "__name__", "unknown")
        self._answered(operation, status, took_s)
        log = _log.debug if operation in _QUIET and status < 500 else _log.info
        request = Request(scope)
        asked = {"method": scope["method"], "path": scope["path"][:_PATH_LOGGED], "client": self._client_of(request)}
        if agent := request.headers.get("user-agent"):
            asked["agent"] = agent[:_AGENT_LOGGED]
        log("request", **asked, status=status, took_ms=round(took_s * 1000, 1), **scope[_NOTED_KEY])


class WholeTargets:
    """Takes a request for a whole URL as one for its path: so ask those who take us for their proxy.

    Its host counts, and the header's doesn't (RFC 9112, 3.2.2). A server has many names, so none is refused.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = _WHOLE.fullmatch(scope.get("raw_path", b"")) if scope["type"] == "http" else None
        if whole is not None:
            path = whole["path"] or b"/"
            headers = [(b"host", whole["host"]), *(pair for pair in scope["headers"] if pair[0] != b"host")]
            scope = {**scope, "path": unquote(path.decode("ascii")), "raw_path": path, "headers": headers}
        await self._app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET is answered, less the body: routes need to know GET only (RFC 9110, 9.3.2).

    With the head the answer is over, for the app too: a stream would hold up the connection for as long as it goes on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        method = "HEAD" if scope["path"] in _DOING_GETS else "GET"
        is_over = False

        async def send_head(message: Message) -> None:
            nonlocal is_over
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                is_over = True

        async def receive_until_over() -> Message:
            return {"type": "http.disconnect"} if is_over else await receive()

        return await self._app({**scope, "method": method}, receive_until_over, send_head)


class NotKept:
    """Says of JSON that no cache may keep it: one in between can't know that our key's header makes an answer private.

    Of Authorization it would know (RFC 9111, 3.5). Answers that say something themselves are left alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unkept(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("application/json"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_unkept)


class OpenToPages:
    """Lets web pages of any origin call the paths that begin with one of `prefixes`, and read every header.

    What these answer depends on the key or the link that a caller shows, never on cookies or on where it sits. So a
    page gets no more than anybody else.
    """

    def __init__(self, app: ASGIApp, *, prefixes: tuple[str, ...], headers: Sequence[str]) -> None:
        self._app = app
        self._prefixes = prefixes
        self._open = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,  # a page on the internet calling a server of its reader's own network
            expose_headers=headers,
            max_age=_DAY_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and scope["path"].startswith(self._prefixes)
        await (self._open if is_open else self._app)(scope, receive, send)


def request_id(scope: Scope) -> str:
    """The id that `RequestIds` gave to this request."""
    value: str = scope.get(_REQUEST_ID_KEY, "")
    return value


def rename(scope: Scope, name: str) -> None:
    """Answer and log under this id: a new one, or that of an earlier request, which this one repeats."""
    scope[_REQUEST_ID_KEY] = name
    structlog.contextvars.bind_contextvars(request_id=name)


def note(scope: Scope, **facts: str) -> None:
    """Have the log's line on this request say this, too."""
    noted: dict[str, str] = scope.get(_NOTED_KEY, {})
    noted.update(facts)


class Unforeseen:
    """Answers a fault that nothing else has answered, and raises it on, for whoever counts and logs.

    Starlette's own does so outside of all middleware, and what that adds to answers is missing there.
    """

    def __init__(self, app: ASGIApp, *, answer: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_seen(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        except Exception as fault:
            if scope["type"] == "http" and not has_begun:
                response = await self._answer(Request(scope), fault)
                response.headers["connection"] = "close"  # so does the server with whatever raises
                await response(scope, receive, send)
            raise


class BodyLimit:
    """Raises `BodyTooLarge` into whoever reads more than `bytes_max` bytes of body, declared or not.

    Starlette has a limit of its own; it answers in plain text where this API answers in JSON.

    Args:
        others: what holds instead for paths that begin so.
    """

    def __init__(self, app: ASGIApp, *, bytes_max: int, others: Mapping[str, int]) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        others = (most for prefix, most in self._others.items() if scope["path"].startswith(prefix))
        bytes_max = next(others, self._bytes_max)
        declared = Headers(scope=scope).get("content-length", "")
        is_over = declared.isdecimal() and int(declared[:20]) > bytes_max
        seen = 0

        async def receive_limited() -> Message:
            nonlocal seen
            if is_over and seen == 0:
                raise BodyTooLarge(bytes_max)
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > bytes_max:
                raise BodyTooLarge(bytes_max)
            return message

        return await self._app(scope, receive_limited, send)
