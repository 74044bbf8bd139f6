"""HTTP/1.1 itself: how requests come off a connection, and what a stranger may cost before a route knows the key.

uvicorn's protocol on h11, with bounds that it lacks. On h11 and not on httptools: that one takes any `Upgrade` for the
end of HTTP, so a client that offers h2c (Java's, `curl --http2`) loses its body, and it bounds no head.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import math
import resource
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, Literal, cast

import h11
import orjson
import structlog
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from rekontext.api.middleware import request_id
from rekontext.sources import random_id

HEAD_BYTES_MAX: Final = 2**16
SILENCE_S_MAX: Final = 30.0
STOPPING_S_MAX: Final = 5.0
BYTES_PER_S_MIN: Final = 2048
"""Less than any line gives that pictures are sent over, a phone's whose month is used up (32 or 64 kbit/s) included."""
BODY_S_MAX: Final = 1800.0
"""At 32 kbit/s seven megabytes come in that time, more than a phone's photo has. Meanwhile a body holds memory."""
IDLE_S_MAX: Final = 75
"""Longer than clients and proxies (60 seconds) keep an idle connection: whoever closes first must not be us, or a
request that is just being sent is lost."""
CONNECTIONS_MAX: Final = 4096
_OTHER_FILES: Final = 512
_REFUSED_S_MAX: Final = 1.0
_REFUSED_MAX: Final = 128
"""So many connections too many have so long to read that they are, even if their callers are sending already."""
_RESET: Final = struct.pack("ii", 1, 0)
_log = structlog.get_logger(__name__)

_Owed = Literal["head", "body", "rest"]
"""What we wait for: a request's head, more of its body, or the rest of one that was answered before its end."""


class _Parting:
    """A transport that closes so that an answer arrives, even if its caller is still sending.

    A socket that is closed while bytes come in resets the connection, and the answer is lost with it. So it is closed
    for writing only, and what comes is dropped until the caller closes, too, or took too long (RFC 9112, 9.6).

    Args:
        is_sent_to: whether the caller is still sending.
        wrote: called after each write.

    Attributes:
        written: bytes, since the connection was opened.
    """

    def __init__(
        self, transport: asyncio.Transport, *, is_sent_to: Callable[[], bool], wrote: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._is_sent_to = is_sent_to
        self._wrote = wrote
        self.has_begun = False
        self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.has_begun or self._transport.is_closing()

    def close(self) -> None:
        if not self.is_closing() and self._is_sent_to() and self._transport.can_write_eof():
            self.has_begun = True
            self._transport.write_eof()
            self._transport.resume_reading()
        elif not self.has_begun:
            self._transport.close()

    def write(self, data: bytes) -> None:
        self._transport.write(data)
        self.written += len(data)
        self._wrote()

    def taken(self) -> int:
        """Of the bytes written, how many have reached the caller's machine.

        The transport's buffer alone would tell too late: the kernel takes the next bytes only once a third of its own
        buffer is free, and that is megabytes.
        """
        queued = array.array("i", [0])
        try:
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        except OSError:  # not everywhere can the kernel be asked
            queued[0] = 0
        return self.written - self._transport.get_write_buffer_size() - queued[0]

    def hang_up(self) -> None:
        """Wait for nothing more, not even for what was written to be read."""
        self._transport.abort()

    def reset(self) -> None:
        """As `hang_up`, and the kernel drops what it holds: it would go on offering that for minutes."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()


class Connection(H11Protocol):
    """One connection. It is closed when its caller owes us something and takes too long, or doesn't read its answer.

    Attributes:
        silence_s_max: a whole head has so many seconds, from the opening of the connection or, after an answer, from
            its first byte; the rest of a body that nobody reads any more the same; a body that is read has them from
            one piece to the next; and as often it is looked whether an answer is read.
        bytes_per_s_min: at which bodies come and answers are read, on average.
        body_s_max: a whole body has so many seconds, however fast it comes.
        stopping_s_max: once the server stops it is looked so soon, and then as often, whether an answer is read, and
            a body has no more from one piece to the next.
        connections_max: one more than these is answered 503 and closed.
    """

    silence_s_max: ClassVar[float] = SILENCE_S_MAX
    bytes_per_s_min: ClassVar[float] = BYTES_PER_S_MIN
    body_s_max: ClassVar[float] = BODY_S_MAX
    stopping_s_max: ClassVar[float] = STOPPING_S_MAX
    connections_max: ClassVar[int] = CONNECTIONS_MAX

    def __init__(self, *args: Any, refused: Callable[[int], None] = lambda _status: None, **named: Any) -> None:
        super().__init__(*args, **named)
        self._refused = refused
        self._silence_s = self.silence_s_max
        self._owed: _Owed | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._body_due = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._look_s = self.silence_s_max
        self._to_be_taken = 0
        self._has_answered = False
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._parting = _Parting(
            transport,
            is_sent_to=lambda: self._is_refused or self.conn.their_state in (h11.SEND_BODY, h11.ERROR),
            wrote=self._watch_reading,
        )
        super().connection_made(cast(asyncio.Transport, self._parting))
        if len(self.connections) > self.connections_max:
            _log.warning("connections_full", connections=len(self.connections))
            self._is_refused = len(self.connections) <= self.connections_max + _REFUSED_MAX
            self._refuse(503, "too_many_connections", "There are too many connections for one more. Retry later.")
            if self._parting.has_begun:
                self._owed, self._timer = "rest", self.loop.call_later(_REFUSED_S_MAX, self._took_too_long)
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_looking()
        super().connection_lost(exc)
        # uvicorn leaves the timer of a connection that was reset, and with it all that the connection holds.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        held = self._held()
        if not self._parting.has_begun:
            super().data_received(data)
        self._watch(came=self._held() - held)

    def on_response_complete(self) -> None:
        self._has_answered = True
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        super().shutdown()
        if self._parting.has_begun:  # nobody is waited for any more
            self._parting.hang_up()
        self._silence_s = min(self._silence_s, self.stopping_s_max)
        self._look_s = min(self._look_s, self.stopping_s_max)
        if self._timer is not None:
            self._due_at(min(self._due, self.loop.time() + self._silence_s))
        if self._look is not None:
            self._stop_looking()
            self._watch_reading()

    def wait_for_no_body(self) -> None:
        """Hang up if its caller is still sending: it will not be read any more."""
        if self._owed in ("body", "rest"):
            self._parting.hang_up()

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
        is_at_work = self.cycle is not None and not self.cycle.response_complete
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            name = request_id(cast(Scope, self.cycle.scope)) if is_at_work else random_id()
            body = orjson.dumps({"error": sentence, "code": code, "request_id": name})
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
                ("x-request-id", name),
            ]
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            if not is_at_work:  # else the app tells of it
                client = None if self.client is None else self.client[0]
                _log.info("request", client=client, status=status, code=code, request_id=name)
                self._refused(status)
        self.transport.close()
        if is_at_work:  # there is nobody to answer any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _held(self) -> int:
        """Bytes of the body that have come and weren't given to the application yet."""
        return 0 if self.cycle is None else len(self.cycle.body)

    def _watch(self, *, came: int = 0) -> None:
        """Look at what is owed now. `came` so many bytes of a body: each buys it some time, up to a whole silence."""
        owed, now = self._owes(), self.loop.time()
        latest = now + self._silence_s
        if owed is None:
            self._stop_timer()
        elif owed != self._owed:
            self._body_due = now + self.body_s_max
            self._due_at(latest)
        elif owed == "body" and came:
            self._due_at(min(latest, self._due + came / self.bytes_per_s_min, self._body_due))
        self._owed = owed

    def _owes(self) -> _Owed | None:
        if self.transport.is_closing():
            return "rest" if self._parting.has_begun else None
        match self.conn.their_state:
            case h11.IDLE:
                # After an answer nothing is owed until the next request begins: uvicorn waits for that.
                return None if self._has_answered and not self.conn.trailing_data[0] else "head"
            case h11.SEND_BODY:
                return "rest" if self.conn.our_state is h11.DONE else "body"
            case _:
                return None

    def _took_too_long(self) -> None:
        self._timer = None
        if self.flow.read_paused and not self._parting.has_begun:  # it is we who don't read
            self._body_due += self._silence_s
            self._due_at(self.loop.time() + self._silence_s)
        else:
            self._owed = None
            self._parting.hang_up()

    def _due_at(self, moment: float) -> None:
        self._stop_timer()
        self._due = moment
        self._timer = self.loop.call_at(moment, self._took_too_long)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_reading(self) -> None:
        """Until the next look the caller takes all that it hasn't taken yet, or as much as the slowest may."""
        if self._look is None and self in self.connections:
            slowest = self._parting.taken() + math.ceil(self.bytes_per_s_min * self._look_s)
            self._to_be_taken = min(self._parting.written, slowest)
            self._look = self.loop.call_later(self._look_s, self._look_at_reading)

    def _look_at_reading(self) -> None:
        self._look = None
        if not self.transport.get_write_buffer_size():  # what the kernel holds costs this process nothing
            return
        if self._parting.taken() >= self._to_be_taken:
            self._watch_reading()
        else:
            self._parting.reset()

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None


def server_config(
    app: ASGIApp,
    *,
    answers_s: int,
    refused: Callable[[int], None] = lambda _status: None,
    http: type[Connection] = Connection,
) -> uvicorn.Config:
    """How uvicorn serves this API.

    Args:
        answers_s: how long answers that are under way may take once the server is told to stop.
        refused: told the status of what was answered before it was a request that the app could see.
        http: with other bounds, for tests.
    """
    return uvicorn.Config(
        app,
        http=cast(type[Connection], partial(http, refused=refused)),
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        timeout_keep_alive=IDLE_S_MAX,
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
