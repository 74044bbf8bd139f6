"""HTTP/1.1 itself: how requests come off a connection, and what a stranger may cost before a route knows the key.

uvicorn's protocol on h11, with bounds that it lacks. On h11 and not on httptools: that one takes any `Upgrade` for the
end of HTTP, so a client that offers h2c (Java's, `curl --http2`) loses its body, and it bounds no head.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar, Final, Literal

import h11
import orjson
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from rekontext.sources import random_id

HEAD_BYTES_MAX: Final = 2**16
SILENCE_S_MAX: Final = 30.0
CONNECTIONS_MAX: Final = 4096
_OTHER_FILES: Final = 512
_log = structlog.get_logger(__name__)

_Owed = Literal["head", "body", "rest"]
"""What we wait for: a request's head, more of its body, or the rest of one that was answered before its end."""


class Connection(H11Protocol):
    """One connection. It is closed when its caller owes us something and takes too long.

    Attributes:
        silence_s_max: a whole head has so many seconds, the rest of a body that nobody reads any more the same; a body
            that is read has them from one piece to the next.
        connections_max: one more than these is answered 503 and closed.
    """

    silence_s_max: ClassVar[float] = SILENCE_S_MAX
    connections_max: ClassVar[int] = CONNECTIONS_MAX

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._owed: _Owed | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            _log.warning("connections_full", connections=len(self.connections))
            self._refuse(503, "too_many_connections", "There are too many connections for one more. Retry later.")
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(came=True)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            400,
            "malformed_request",
            f"This is no HTTP/1.1 request, or its head has more than {HEAD_BYTES_MAX} bytes, the most that is allowed.",
        )

    def _should_upgrade(self) -> bool:
        return False  # there is nothing else here to speak, and an Upgrade that isn't wanted is ignored (RFC 9110, 7.8)

    def _refuse(self, status: int, code: str, sentence: str) -> None:
        """Answer what can't become a request, in the form that every error has, and hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            name = random_id()
            body = orjson.dumps({"error": sentence, "code": code, "request_id": name})
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
                ("x-request-id", name),
            ]
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self, *, came: bool = False) -> None:
        owed = None if self.transport.is_closing() else self._owes()
        if owed != self._owed or (owed == "body" and came):
            self._stop_timer()
            self._owed = owed
            if owed is not None:
                self._timer = self.loop.call_later(self.silence_s_max, self._took_too_long)

    def _owes(self) -> _Owed | None:
        match self.conn.their_state:
            case h11.IDLE:
                return "head"
            case h11.SEND_BODY:
                return "rest" if self.conn.our_state is h11.DONE else "body"
            case _:
                return None

    def _took_too_long(self) -> None:
        self._timer = self._owed = None
        if self.flow.read_paused:  # it is we who don't read
            self._watch()
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def server_config(app: ASGIApp, *, answers_s: int, http: type[Connection] = Connection) -> uvicorn.Config:
    """How uvicorn serves this API.

    Args:
        answers_s: how long answers that are under way may take once the server is told to stop.
        http: with other bounds, for tests.
    """
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        log_config=None,
        access_log=False,  # the service writes its own, without the signatures in queries
        proxy_headers=False,  # the service reads them itself, from proxies that are trusted
        timeout_graceful_shutdown=answers_s,
        server_header=False,
    )


def make_room() -> None:
    """Let this process hold as many connections as it accepts, and the files that it needs besides."""
    wanted = CONNECTIONS_MAX + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            _log.warning("few_files_allowed", allowed=most, wanted=wanted)
