"""URLs are fetched within limits, and never from an address that is not public."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from rekontext.dialling import AllowList
from rekontext.pictures import Fetcher, PictureTooLarge, PictureUnreachable, StoreUnavailable, shown_address
from rekontext.pictures.fetch import PER_CALLER_MAX

pytestmark = pytest.mark.anyio

PHOTO = b"\xff\xd8\xff" + bytes(2000)


class Site:
    """A web site on loopback that counts its visitors."""

    def __init__(self) -> None:
        self.port = 0
        self.visits: list[str] = []
        self.asked = self.accept = ""
        self.never = asyncio.Event()

    async def page(self, request: web.Request) -> web.StreamResponse:
        self.visits.append(request.path)
        self.asked = request.raw_path
        self.accept = request.headers["accept"]
        match request.path:
            case "/photo":
                return web.Response(body=PHOTO)
            case "/signed":
                return web.Response(status=302, headers={"Location": "/photo?sig=a%2Fb%3D%3a&x=~"})
            case "/tagged":
                if request.headers.get("if-none-match") == '"one"':
                    return web.Response(status=304)
                return web.Response(body=PHOTO, headers={"ETag": '"one"'})
            case "/once":
                raise web.HTTPFound("/photo")
            case "/away":
                raise web.HTTPFound(self.url("/photo"))
            case "/round":
                raise web.HTTPFound("/round")
            case "/file":
                raise web.HTTPFound("file:///etc/passwd")
            case "/zipped":
                return web.Response(body=PHOTO, headers={"Content-Encoding": "gzip"})
            case "/chunked":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(100):
                    await response.write(bytes(1000))
                return response
            case "/slow":
                await self.never.wait()
        raise web.HTTPNotFound

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.port = runner.addresses[0][1]
    yield site
    site.never.set()
    await runner.cleanup()


def fetcher(*allow: str, timeout_s: float = 5) -> Fetcher:
    return Fetcher(timeout_s=timeout_s, redirects_max=2, agent="test", allow=AllowList(allow))


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/photo?sig=a%2Fb%2bc%3D%3D&x=%3A~%7E[1]", "/photo?sig=a%2Fb%2bc%3D%3D&x=%3A~%7E[1]"),
        ("/%70hoto", "/%70hoto"),
        ("/photo?name=my cat|ü%20", "/photo?name=my+cat%7C%C3%BC%20"),
        ("/signed", "/photo?sig=a%2Fb%3D%3a&x=~"),
    ],
)
async def test_a_url_is_asked_for_as_it_is_spelled(site: Site, path: str, asked: str) -> None:
    """Signatures are often over the spelling; only what can't stand in a URL is escaped."""
    async with fetcher("127.0.0.0/8") as opened:
        assert await opened.fetch(site.url(path), bytes_max=5000) == PHOTO
    assert site.asked == asked


async def test_what_can_be_read_is_asked_for_by_name(site: Site) -> None:
    """Or a host that converts pictures may send a newer format."""
    async with fetcher("127.0.0.0/8") as opened:
        await opened.fetch(site.url("/photo"), bytes_max=5000)
    assert "image/*" not in site.accept
    assert all(f"image/{each}" in site.accept for each in ("jpeg", "png", "gif", "webp"))


async def test_an_allowed_network_is_fetched(site: Site) -> None:
    """An operator's network is open, and redirects inside it are followed."""
    async with fetcher("127.0.0.0/8") as opened:
        assert await opened.fetch(site.url("/photo"), bytes_max=5000) == PHOTO
        assert await opened.fetch(site.url("/once"), bytes_max=5000) == PHOTO


async def test_an_allowed_host_is_fetched_by_that_name_only(site: Site) -> None:
    """Opening a name opens neither its address nor its neighbours."""
    async with fetcher("localhost") as opened:
        assert await opened.fetch(site.url("/photo", "LOCALHOST"), bytes_max=5000) == PHOTO
        with pytest.raises(PictureUnreachable, match=r"127\.0\.0\.1 is not a public address"):
            await opened.fetch(site.url("/photo"), bytes_max=5000)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]", "[::]"],
)
async def test_no_spelling_of_loopback_is_dialled(site: Site, host: str) -> None:
    """The guard sees the address that would be dialled, however it is spelled."""
    async with fetcher() as opened:
        with pytest.raises(PictureUnreachable):
            await opened.fetch(site.url("/photo", host), bytes_max=5000)
    assert site.visits == []


async def test_a_redirect_meets_the_guard_too(site: Site) -> None:
    """An allowed host can't send us to one that is not."""
    async with fetcher("localhost") as opened:
        with pytest.raises(PictureUnreachable, match="not a public address"):
            await opened.fetch(site.url("/away", "localhost"), bytes_max=5000)
    assert site.visits == ["/away"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nothing", "answered 404, not 200"),
        ("/round", "redirects more than 2 times"),
        ("/file", "not a complete http or https URL"),
        ("/zipped", "compressed body"),
    ],
)
async def test_what_goes_wrong_is_said(site: Site, path: str, says: str) -> None:
    """Each way to fail has its sentence."""
    async with fetcher("127.0.0.1") as opened:
        with pytest.raises(PictureUnreachable, match=says):
            await opened.fetch(site.url(path), bytes_max=5000)


@pytest.mark.parametrize("path", ["/photo", "/chunked"])
async def test_the_byte_limit_holds_declared_or_not(site: Site, path: str) -> None:
    """A body is cut off at the limit, with a Content-Length and without one."""
    async with fetcher("127.0.0.1") as opened:
        with pytest.raises(PictureTooLarge, match="more than 1000 bytes"):
            await opened.fetch(site.url(path), bytes_max=1000)


async def test_a_slow_site_is_given_up(site: Site) -> None:
    """The timeout holds for the whole fetch."""
    async with fetcher("127.0.0.1", timeout_s=0.05) as opened:
        with pytest.raises(PictureUnreachable, match=r"did not answer within 0\.05 s"):
            await opened.fetch(site.url("/slow"), bytes_max=1000)


async def test_a_closed_port_is_said(site: Site) -> None:
    """A refused connection is the caller's URL's fault, in words."""
    with socket.socket() as taken:  # so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with fetcher("127.0.0.1") as opened:
            with pytest.raises(PictureUnreachable, match=r"can't be fetched: it refused the connection$"):
                await opened.fetch(f"http://127.0.0.1:{port}/", bytes_max=1000)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "the connection broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "the connection broke off"),
        (b"220 mail.example ESMTP\r\n", "it didn't answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnine\r\n", "it didn't answer in HTTP"),
    ],
)
async def test_a_site_that_breaks_the_protocol_is_told_in_plain_words(answer: bytes, says: str) -> None:
    """Nothing of a library's own words, which name its classes and repeat the URL with its query."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, fetcher("127.0.0.1") as opened:
        with pytest.raises(PictureUnreachable) as caught:
            await opened.fetch(f"http://127.0.0.1:{port}/cat.png?token=hush", bytes_max=1000)
    assert str(caught.value) == f"http://127.0.0.1:{port}/cat.png can't be fetched: {says}"


async def test_tls_to_a_site_without_it_is_told(site: Site) -> None:
    """And not in OpenSSL's words."""
    async with fetcher("127.0.0.1") as opened:
        with pytest.raises(PictureUnreachable, match=r"can't be fetched: no TLS connection could be made$"):
            await opened.fetch(f"https://127.0.0.1:{site.port}/photo", bytes_max=5000)


async def test_hosts_that_never_answer_hold_up_their_own_callers_fetches_only(site: Site) -> None:
    """A caller may name as many of them as it has requests."""
    async with fetcher("127.0.0.1", timeout_s=60) as opened:
        slow = [
            asyncio.create_task(opened.fetch(site.url("/slow"), bytes_max=1000, caller="greedy"))
            for _ in range(2 * PER_CALLER_MAX)
        ]
        while site.visits.count("/slow") < PER_CALLER_MAX:  # noqa: ASYNC110 - another task makes it true
            await asyncio.sleep(0.01)
        assert await opened.fetch(site.url("/photo"), bytes_max=5000, caller="other") == PHOTO
        own = asyncio.create_task(opened.fetch(site.url("/photo"), bytes_max=5000, caller="greedy"))
        await asyncio.sleep(0.05)
        assert not own.done()
        for fetch in slow:
            fetch.cancel()
        assert await own == PHOTO
        assert site.visits.count("/slow") == PER_CALLER_MAX


async def test_a_fetch_that_never_had_its_turn_says_why(site: Site) -> None:
    """Its own host isn't the one that doesn't answer."""
    async with fetcher("127.0.0.1", timeout_s=0.2) as opened:
        full = opened._places.setdefault("greedy", asyncio.Semaphore(0))
        with pytest.raises(PictureUnreachable, match=f"/photo was not asked: {PER_CALLER_MAX} of your other URLs"):
            await opened.fetch(site.url("/photo"), bytes_max=5000, caller="greedy")
    assert full.locked()
    assert site.visits == []


async def test_secrets_in_a_url_are_not_repeated(site: Site) -> None:
    """Neither the password nor the signed query comes back in the message."""
    async with fetcher("127.0.0.1") as opened:
        with pytest.raises(PictureUnreachable) as caught:
            await opened.fetch(f"http://me:hush@127.0.0.1:{site.port}/nothing?sig=hush", bytes_max=1000)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:hush@a.example/x@2.png?sig=hush#token=hush", "https://a.example/x@2.png"),
        ("https://a.example/x.png#token=hush", "https://a.example/x.png"),
        ("me:hush@a.example/x.png", "a.example/x.png"),
        ("http:/me:hush@a.example/x.png", "a.example/x.png"),
        ("owner/name/x.safetensors", "owner/name/x.safetensors"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert shown_address(address) == shown


class Taken:
    """What was fetched in pieces."""

    def __init__(self) -> None:
        self.data = b""

    async def take(self, piece: bytes) -> None:
        self.data += piece


async def test_a_large_file_comes_in_pieces(site: Site) -> None:
    """With the tag by which it is known again; where it is the same still, nothing is sent."""
    there, again, untagged = Taken(), Taken(), Taken()
    async with fetcher("127.0.0.1") as fetch:
        tag = await fetch.fetch_pieces(site.url("/tagged"), there.take, bytes_max=10_000)
        assert (tag, there.data) == ('"one"', PHOTO)
        assert await fetch.fetch_pieces(site.url("/tagged"), again.take, bytes_max=10_000, tag='"one"') is None
        assert await fetch.fetch_pieces(site.url("/chunked"), untagged.take, bytes_max=200_000, tag='"one"') == ""
    assert (again.data, untagged.data) == (b"", bytes(100_000))


async def test_whoever_can_t_take_a_piece_is_heard(site: Site) -> None:
    """That isn't the fault of the address."""

    async def take(_piece: bytes) -> None:
        raise StoreUnavailable("the disk is full")

    async with fetcher("127.0.0.1") as fetch:
        with pytest.raises(StoreUnavailable):
            await fetch.fetch_pieces(site.url("/chunked"), take, bytes_max=200_000)


async def test_a_file_s_bounds_are_a_picture_s(site: Site) -> None:
    """In bytes, told beforehand or not, and in the name of what it should have been."""
    async with Fetcher(
        timeout_s=5, redirects_max=2, agent="test", allow=AllowList(["127.0.0.1"]), what="LoRA", accept="*/*"
    ) as fetch:
        for path in ("/photo", "/chunked"):
            with pytest.raises(PictureTooLarge, match=rf"the LoRA at http://127.0.0.1:\d+{path} has more than 1999"):
                await fetch.fetch_pieces(site.url(path), Taken().take, bytes_max=1999)
        assert site.accept == "*/*"
        with pytest.raises(PictureUnreachable, match="answered 404"):
            await fetch.fetch_pieces(site.url("/none"), Taken().take, bytes_max=10_000)
