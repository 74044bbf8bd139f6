"""What connections may do and cost: heads, bodies and silences that no HTTP client library would send."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from rekontext.api import sse
from rekontext.api.http1 import HEAD_BYTES_MAX, Connection, server_config
from tests.api.studio import Studio
from tests.faults.test_drain import ORDER
from tests.surfaces.served import Served, serve, serve_app

V1: Final = "/v1/flux-kontext-dev"
BUNDLE: Final = "/docs/assets/swagger-ui-bundle.js"
BODY: Final = json.dumps(ORDER).encode()


class Hasty(Connection):
    """Bounds that a test can see the end of; what it sends arrives within them also where others compute."""

    silence_s_max: ClassVar[float] = 0.5


class Demanding(Hasty):
    bytes_per_s_min: ClassVar[float] = 2**17


class Ending(Hasty):
    body_s_max: ClassVar[float] = 2.0


class Roomy(Hasty):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=2**24)
        super().connection_made(transport)


class Stopping(Connection):
    silence_s_max: ClassVar[float] = 600.0
    stopping_s_max: ClassVar[float] = 0.2


class Lonely(Connection):
    connections_max: ClassVar[int] = 1


@contextmanager
def dialled(served: Served | str) -> Iterator[socket.socket]:
    place = urlsplit(served if isinstance(served, str) else served.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as connection:
        yield connection


@contextmanager
def narrow(served: Served | str) -> Iterator[socket.socket]:
    """A connection whose kernel takes hardly more than what is read."""
    place = urlsplit(served if isinstance(served, str) else served.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(30)
        connection.connect((place.hostname, place.port))
        yield connection


def is_cut_off(connection: socket.socket, *, within_s: float = 20 * Hasty.silence_s_max) -> bool:
    """Whether the other side gives up a connection that isn't read to its end."""
    waiting = select.poll()
    waiting.register(connection, 0)  # an end or a fault is told always
    return bool(waiting.poll(1000 * within_s))


def send_slowly(connection: socket.socket, body: bytes, *, piece: int, every_s: float) -> bytes:
    """Send it in pieces as long as nothing comes; what came."""
    until, patience_s = time.monotonic() + 20 * Hasty.silence_s_max, connection.gettimeout()
    connection.settimeout(every_s)
    for start in range(0, len(body), piece):
        connection.sendall(body[start : start + piece])
        assert time.monotonic() < until, "it goes on for ever"
        with suppress(TimeoutError):
            return connection.recv(65536)
    connection.settimeout(patience_s)
    return to_the_end(connection)


def head(served: Served, *lines: str, method: str = "POST", path: str = V1, version: str = "1.1") -> bytes:
    return "\r\n".join(
        [f"{method} {path} HTTP/{version}", "host: studio", f"x-api-key: {served.key}", *lines, "", ""]
    ).encode()


def sized(body: bytes) -> tuple[str, str]:
    return "content-type: application/json", f"content-length: {len(body)}"


def order_head(served: Served, *lines: str) -> bytes:
    return head(served, *sized(BODY), *lines)


def send_on(connection: socket.socket) -> None:
    """For much longer than anybody may."""
    until = time.monotonic() + 100 * Hasty.silence_s_max
    while time.monotonic() < until:
        connection.sendall(bytes(2**16))


def to_the_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def read_until(connection: socket.socket, is_enough: Callable[[bytes], bool]) -> bytes:
    """What comes, piece by piece."""
    said = b""
    while not is_enough(said):
        came = connection.recv(65536)
        assert came, f"it was closed after {said!r}"
        said += came
    return said


def read_nothing(connection: socket.socket) -> None:
    """It is still open, and nothing came."""
    connection.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connection.recv(1)


def of_kind(http: type[Connection]) -> list[Connection]:
    return [each for each in gc.get_objects() if issubclass(type(each), http)]  # no proxy is asked what it is


def id_in(said: bytes) -> str:
    return str(json.loads(said.partition(b"\r\n\r\n")[2])["request_id"])


def is_healthy(said: bytes) -> bool:
    """Whether this is all of a good answer of /healthz."""
    return said.startswith(b"HTTP/1.1 200 ") and said.endswith(b'{"status":"ok"}')


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(Studio(folder=tmp_path_factory.mktemp("hasty")), http=Hasty) as served:
        yield served


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "anything/1"])
def test_an_offer_to_speak_another_protocol_is_ignored(served: Served, protocol: str) -> None:
    """Java's client makes one with every request: the request is answered as if it hadn't, its body included."""
    headers = {
        "x-api-key": served.key,
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": protocol,
        "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    }
    answer = httpx.post(served.url + V1, json=ORDER, headers=headers, timeout=30)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://edits.example/v2/requests/none/status", 404),
        ("HTTPS://edits.example:8443/v2/requests/none/status?x=1", 404),
        ("http://edits.example", 200),
        ("http://edits.example/openapi%2Ejson", 200),
        ("ftp://edits.example/readyz", 404),
    ],
)
def test_a_whole_url_in_the_first_line_is_one_of_ours(served: Served, url: str, status: int) -> None:
    """A client that takes us for its proxy sends one, and a server has to take it (RFC 9112, 3.2.2)."""
    with dialled(served) as connection:
        connection.sendall(head(served, "connection: close", method="GET", path=url))
        said, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    assert said.startswith(f"HTTP/1.1 {status} ".encode())
    if status == 404:
        assert json.loads(body)["code"] == ("not_found" if url.startswith("ftp") else "request_not_found")


def test_the_host_of_a_whole_url_counts(served: Served) -> None:
    """Answers name us as their caller does, whatever its Host header says."""
    url = "http://edits.example:81/v2/flux-kontext-dev"
    with dialled(served) as connection:
        lines = ("content-type: application/json", f"content-length: {len(BODY)}", "connection: close")
        connection.sendall(head(served, *lines, path=url) + BODY)
        _, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    assert json.loads(body)["status_url"].startswith("http://edits.example:81/v2/requests/")


def test_a_head_without_end_is_refused(served: Served) -> None:
    """In the form of every error, and without reading on."""
    with dialled(served) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: studio\r\nx-long: ")
        connection.sendall(b"a" * HEAD_BYTES_MAX)
        said, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")
    told = json.loads(body)
    assert (told["code"], f"x-request-id: {told['request_id']}".encode() in said) == ("malformed_request", True)
    assert str(HEAD_BYTES_MAX) in told["error"]


def test_nonsense_in_the_middle_of_a_body_is_refused(served: Served) -> None:
    """Chunks that are none."""
    with dialled(served) as connection:
        connection.sendall(head(served, "content-type: application/json", "transfer-encoding: chunked") + b"x\r\n\r\n")
        assert to_the_end(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nho", id="half a head"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\nGET", id="a request and half a head"),
        pytest.param(
            b"POST /v1/flux-kontext-dev HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc", id="a refused body"
        ),
    ],
)
def test_a_silent_connection_is_closed(hasty: Served, sent: bytes) -> None:
    """Wherever its caller fell silent; what was asked before is answered."""
    with dialled(hasty) as connection:
        connection.sendall(sent)
        said = to_the_end(connection)
    assert said.count(b"HTTP/1.1 ") == (b"\r\n\r\n" in sent)


def test_an_unfinished_body_is_not_waited_for(hasty: Served) -> None:
    """Whoever has a key may be slow, but not silent."""
    with dialled(hasty) as connection:
        connection.sendall(order_head(hasty) + BODY[:100])
        assert to_the_end(connection) == b""


def test_a_body_that_only_drips_is_not_waited_for(hasty: Served) -> None:
    """A byte now and then is no body that will ever be whole."""
    with dialled(hasty) as connection:
        connection.sendall(order_head(hasty))
        assert send_slowly(connection, BODY, piece=1, every_s=Hasty.silence_s_max / 10) == b""


def test_a_body_may_come_slowly(hasty: Served) -> None:
    """Over a bad line it takes many times the silence that is allowed, and arrives."""
    body = BODY + b" " * 2**14
    every_s = Hasty.silence_s_max / 5
    piece = math.ceil(4 * Hasty.bytes_per_s_min * every_s)
    assert len(body) / piece * every_s > 3 * Hasty.silence_s_max
    with dialled(hasty) as connection:
        lines = ("content-type: application/json", f"content-length: {len(body)}", "connection: close")
        connection.sendall(head(hasty, *lines))
        assert send_slowly(connection, body, piece=piece, every_s=every_s).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_comes_for_too_long_is_not_waited_for(tmp_path: Path) -> None:
    """However steadily: it holds memory meanwhile. The next request of a connection has all the time again."""
    pieces, every_s = 8, Hasty.silence_s_max / 5
    assert pieces * every_s < Ending.body_s_max / 2 < 3 * pieces * every_s / 2
    body = BODY.ljust(pieces * 2**12)
    with serve(Studio(folder=tmp_path), http=Ending) as served, dialled(served) as connection:
        for _ in range(3):
            connection.sendall(head(served, *sized(body), path="/v2/flux-kontext-dev"))
            for start in range(0, len(body), 2**12):
                select.select([], [], [], every_s)
                connection.sendall(body[start : start + 2**12])
            assert b'"QUEUED"' in read_until(connection, lambda said: said.endswith(b"}"))
        endless = BODY.ljust(2**18)
        connection.sendall(head(served, *sized(endless)))
        began = time.monotonic()
        assert send_slowly(connection, endless, piece=2**11, every_s=every_s) == b""
        assert time.monotonic() - began > Ending.body_s_max - every_s


@pytest.mark.parametrize("lines", [[], ["connection: close"]], ids=["kept", "closing"])
def test_who_does_not_read_is_cut_off(hasty: Served, lines: list[str]) -> None:
    """An answer without a key, larger than all that lies between us."""
    with narrow(hasty) as connection:
        connection.sendall(head(hasty, *lines, method="GET", path=BUNDLE))
        assert is_cut_off(connection)


def test_small_answers_have_to_be_read_too(tmp_path: Path) -> None:
    """A transport that never was full holds them as long."""
    with serve(Studio(folder=tmp_path), http=Roomy) as served, narrow(served) as connection:
        connection.sendall(head(served, method="GET", path=BUNDLE))
        assert is_cut_off(connection)


def test_who_reads_next_to_nothing_is_cut_off(tmp_path: Path) -> None:
    """A little now and then is no reading that will ever end."""
    with serve(Studio(folder=tmp_path), http=Demanding) as served, narrow(served) as connection:
        connection.sendall(head(served, method="GET", path=BUNDLE))
        until = time.monotonic() + 20 * Hasty.silence_s_max
        while not is_cut_off(connection, within_s=Hasty.silence_s_max / 10):
            assert connection.recv(1024)
            assert time.monotonic() < until, "it goes on for ever"


def test_an_answer_may_be_read_slowly(hasty: Served) -> None:
    """It takes many times the silence that is allowed, and arrives whole."""
    with narrow(hasty) as connection:
        connection.sendall(head(hasty, "connection: close", method="GET", path=BUNDLE))
        said = read_until(connection, lambda said: b"\r\n\r\n" in said)
        until = time.monotonic() + 4 * Hasty.silence_s_max
        while time.monotonic() < until:
            said += connection.recv(2048)
            select.select([], [], [], Hasty.silence_s_max / 20)
        told, _, begun = said.partition(b"\r\n\r\n")
        length = int(told.lower().partition(b"content-length: ")[2].split()[0])
        assert len(begun) < length, "it was over too soon to tell"
        assert len(begun + to_the_end(connection)) == length


def test_a_stream_that_is_not_read_ends() -> None:
    """Its events are dropped with it."""
    ended = threading.Event()

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield sse.frame("preview", {"image": "x" * 2**14}, "1")
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def events(_: Request) -> StreamingResponse:
        return StreamingResponse(sse.stream(frames(), closing=asyncio.Event()), media_type="text/event-stream")

    with serve_app(Starlette(routes=[Route("/", events)]), http=Hasty) as url, narrow(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert is_cut_off(connection)
        assert ended.wait(30)


def test_a_stream_may_say_little(tmp_path: Path) -> None:
    """Only what isn't read counts: between two events it may be silent for as long as an edit takes."""
    studio = Studio(folder=tmp_path)
    studio.fleet.may_step.clear()
    with serve(studio, http=Hasty) as served:
        made = httpx.post(served.url + "/v2/flux-kontext-dev", json=ORDER, headers=studio.headers, timeout=30).json()
        with dialled(served) as connection:
            connection.sendall(head(served, method="GET", path=urlsplit(made["events_url"]).path))
            read_until(connection, lambda said: b"event: progress" in said)
            connection.settimeout(Hasty.silence_s_max * 3)
            with pytest.raises(TimeoutError):
                connection.recv(1)


def test_a_stop_does_not_wait_for_who_does_not_read(tmp_path: Path) -> None:
    """Edits may be given longer to end than `serve` waits."""
    with ExitStack() as left_open, serve(Studio(folder=tmp_path), http=Stopping, answers_s=600) as served:
        connection = left_open.enter_context(narrow(served))
        connection.sendall(head(served, method="GET", path=BUNDLE))
        connection.recv(1)


def test_a_stop_does_not_wait_for_a_body_that_stalls(tmp_path: Path) -> None:
    """Its caller may have gone long ago, and there is no edit yet."""
    with ExitStack() as left_open, serve(Studio(folder=tmp_path), http=Stopping, answers_s=600) as served:
        connection = left_open.enter_context(dialled(served))
        connection.sendall(order_head(served) + BODY[:100])
        read_nothing(connection)


def test_a_connection_that_was_reset_is_forgotten(hasty: Served) -> None:
    """With an answer behind it: uvicorn's timer held it for as long as an idle one is kept, and no limit counted it."""
    gc.collect()
    before = len(of_kind(Hasty))
    for _ in range(5):
        with dialled(hasty) as connection:
            connection.sendall(head(hasty, method="GET", path="/healthz"))
            read_until(connection, is_healthy)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until = time.monotonic() + 30
    while len(of_kind(Hasty)) > before:
        assert time.monotonic() < until, "they are kept"
        time.sleep(0.05)
        gc.collect()


def test_what_is_no_request_is_logged_and_counted_by_what_it_was_told(tmp_path: Path) -> None:
    """An operator looks for the id that a caller was told, and alarms go by the counts."""
    refused: list[int] = []
    studio = Studio(folder=tmp_path)
    with capture_logs() as lines, serve(studio, http=Lonely, refused=refused.append) as served:
        with dialled(served) as connection:
            connection.sendall(b"NONSENSE\r\n\r\n")
            malformed = to_the_end(connection)
        with dialled(served) as first:
            first.sendall(head(served, method="GET", path="/healthz"))
            read_until(first, is_healthy)
            with dialled(served) as second:
                full = to_the_end(second)
    assert refused == [400, 503]
    coded = [line for line in lines if line.get("code")]
    told = [(line["status"], line["code"], line["request_id"]) for line in coded]
    assert told == [(400, "malformed_request", id_in(malformed)), (503, "too_many_connections", id_in(full))]
    assert [line["client"] for line in coded] == ["127.0.0.1"] * 2


def test_a_body_that_turns_out_to_be_none_belongs_to_its_request(tmp_path: Path) -> None:
    """Its caller is told the id under which the log has it, once and with its account."""
    refused: list[int] = []
    with capture_logs() as lines, serve(Studio(folder=tmp_path), refused=refused.append) as served:
        with dialled(served) as connection:
            connection.sendall(head(served, "content-type: application/json", "transfer-encoding: chunked"))
            connection.sendall(b"5\r\n{    \r\nZZZ\r\n")
            said = to_the_end(connection)
        until = time.monotonic() + 30
        while not (told := [line for line in lines if line["event"] == "request"]) and time.monotonic() < until:
            time.sleep(0.02)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert [(line["status"], line["account"]) for line in told] == [(499, served.studio.account)]
    assert refused == []
    assert id_in(said) == served_id(said)


def served_id(said: bytes) -> str:
    """In the answer's head."""
    return said.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()


def test_who_waits_for_us_may_be_silent(hasty: Served) -> None:
    """An edit takes as long as it takes."""
    hasty.studio.fleet.may_step.clear()
    with dialled(hasty) as connection:
        connection.sendall(order_head(hasty) + BODY)
        connection.settimeout(Hasty.silence_s_max * 2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param(["content-type: application/json"], 401, id="no key"),
        pytest.param(["content-type: text/plain", "x-api-key: {key}"], 415, id="no such type"),
        pytest.param(["content-type: application/json", "x-api-key: {key}", "x-long: " + "a" * 2**20], 400, id="head"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_refusal_reaches_who_is_still_sending(served: Served, lines: list[str], status: int, version: str) -> None:
    """Also one that wants the connection closed, which would else be reset under its answer (RFC 9112, 9.6)."""
    size = 8 * 2**20
    first = [f"POST {V1} HTTP/{version}", "host: studio", "connection: close", f"content-length: {size}"]
    with dialled(served) as connection:
        connection.sendall("\r\n".join([*first, *(line.format(key=served.key) for line in lines), "", ""]).encode())
        for _ in range(128):
            connection.sendall(bytes(size // 128))
        assert to_the_end(connection).startswith(f"HTTP/1.1 {status} ".encode())


def test_who_never_stops_sending_is_cut_off(hasty: Served) -> None:
    """It had its answer, and time to read it."""
    with dialled(hasty) as connection:
        connection.sendall(b"POST /v1/flux-kontext-dev HTTP/1.0\r\nhost: a\r\ncontent-length: 1000000000000\r\n\r\n")
        with pytest.raises(ConnectionError):
            send_on(connection)


def test_a_connection_may_be_idle_between_requests(hasty: Served) -> None:
    """For longer than clients and proxies keep one, so that they are the ones who close it: 60 seconds is usual."""
    assert server_config(hasty.studio.app, answers_s=1).timeout_keep_alive > 60
    get = head(hasty, method="GET", path="/healthz")
    with dialled(hasty) as connection:
        connection.sendall(get)
        read_until(connection, is_healthy)
        patience_s = connection.gettimeout()
        connection.settimeout(Hasty.silence_s_max * 2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(patience_s)
        connection.sendall(get)
        read_until(connection, is_healthy)


def test_one_connection_too_many_is_told_so(tmp_path: Path) -> None:
    """And those that are there go on."""
    with serve(Studio(folder=tmp_path), http=Lonely) as served, dialled(served) as first:
        with dialled(served) as second:
            said, _, body = to_the_end(second).partition(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 503 ")
        assert json.loads(body)["code"] == "too_many_connections"
        # As clients do, who send before they read: a socket that is closed on them takes the answer along.
        for _ in range(5):
            with dialled(served) as third:
                third.sendall(order_head(served) + bytes(2**20))
                assert to_the_end(third).startswith(b"HTTP/1.1 503 ")
        first.sendall(head(served, "connection: close", method="GET", path="/healthz"))
        assert to_the_end(first).startswith(b"HTTP/1.1 200 ")


def test_a_connection_too_many_is_soon_gone(tmp_path: Path) -> None:
    """It holds a file: whoever leaves it open is waited for no longer than it takes to send a little."""
    with serve(Studio(folder=tmp_path), http=Lonely) as served, dialled(served), dialled(served) as second:
        to_the_end(second)
        with pytest.raises(ConnectionError):
            send_on(second)


def test_requests_may_be_sent_ahead(served: Served) -> None:
    """Each is answered, in their order (RFC 9112, 9.3.2)."""
    get = head(served, method="GET", path="/readyz")
    last = head(served, "connection: close", method="GET", path="/nowhere")
    with dialled(served) as connection:
        connection.sendall(order_head(served) + BODY + get + last)
        said = to_the_end(connection)
    assert [said.count(b"HTTP/1.1 %d " % status) for status in (200, 404)] == [2, 1]
    assert said.rindex(b"HTTP/1.1 404 ") > said.rindex(b"HTTP/1.1 200 ")


def test_whoever_asks_before_sending_a_body_is_told(served: Served) -> None:
    """To go on, or that there is no need to."""
    with dialled(served) as connection:
        connection.sendall(order_head(served, "expect: 100-continue", "connection: close"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert to_the_end(connection).startswith(b"HTTP/1.1 200 ")
    with dialled(served) as connection:
        connection.sendall(order_head(served, "expect: 100-continue").replace(b"x-api-key", b"x-none"))
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_blanks_around_a_header_are_not_part_of_it(served: Served) -> None:
    """A key pasted with a blank or a tab behind it is the key (RFC 9112, 5.1)."""
    with dialled(served) as connection:
        get = head(served, "connection: close", method="GET", path="/v1/get-user-credits")
        connection.sendall(get.replace(served.key.encode(), b" \t " + served.key.encode() + b" \t "))
        assert to_the_end(connection).startswith(b"HTTP/1.1 200 ")


def test_http_1_0_gets_streams_without_chunks(tmp_path: Path) -> None:
    """It doesn't know them: the stream ends with the connection."""
    studio = Studio(folder=tmp_path)
    studio.fleet.may_step.clear()
    with serve(studio) as served:
        made = httpx.post(served.url + "/v2/flux-kontext-dev", json=ORDER, headers=studio.headers, timeout=30).json()
        with dialled(served) as connection:
            path = urlsplit(made["events_url"]).path
            connection.sendall(head(served, method="GET", path=path, version="1.0"))
            said = read_until(connection, lambda said: b"\n\n" in said.partition(b"\r\n\r\n")[2])
    told, _, events = said.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in told.lower()
    assert events.startswith((b"id: ", b"event: ", b":")), events
