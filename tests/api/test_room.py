"""Bodies that are held at a time: whoever has a key can't take the server's memory with bodies that don't end."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.requests import Request
from starlette.types import Message

from rekontext.api.bodies import read_raw
from rekontext.api.connection import CallerGone
from rekontext.api.room import SMALL_BYTES_MAX, BodiesFull, BodyRoom, TooManyBodies
from rekontext.database import AccountId
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V1, V2
from tests.api.studio import SOON_S, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

ANNA, BEN, CARL, STRANGER = AccountId("anna"), AccountId("ben"), AccountId("carl"), None
HALF: Final = 400_000
ROOM: Final[dict[str, Any]] = {"body_bytes_max": HALF, "bodies_bytes_max": 2 * HALF}
JSON: Final = {"content-type": "application/json"}


def order_of(size: int) -> bytes:
    """An order whose body has so many bytes."""
    order = json.dumps(GOOD).encode()
    assert len(order) <= size
    return order.ljust(size)


class Unfinished:
    """A request whose body doesn't end, spoken in ASGI; the rest of it never comes."""

    def __init__(self, studio: Studio, headers: Mapping[str, str], *pieces: bytes, path: str, method: str) -> None:
        self._studio = studio
        url = urlsplit(path)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": url.path,
            "raw_path": url.path.encode(),
            "query_string": url.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "scheme": "http",
            "server": ("studio", 80),
            "client": ("caller", 1),
        }
        self._pieces = list(pieces)
        self.is_waited_for = asyncio.Event()
        self.hang_up = asyncio.Event()
        self.said: list[Message] = []

    async def _receive(self) -> Message:
        if self._pieces:
            return {"type": "http.request", "body": self._pieces.pop(0), "more_body": True}
        self.is_waited_for.set()
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.said.append(message)

    async def run(self) -> None:
        await self._studio.app(self._scope, self._receive, self._send)


@asynccontextmanager
async def unfinished(
    studio: Studio, *pieces: bytes, size: int | None, key: str = "", path: str = V2, method: str = "POST"
) -> AsyncIterator[None]:
    """So long somebody sends a body of `size` bytes, or of a size that isn't told, and doesn't get to its end."""
    shown = {} if key == "none" else {"x-api-key": key or studio.key}
    length = {} if size is None else {"content-length": str(size)}
    sending = Unfinished(studio, JSON | shown | length, *(pieces or (b"{",)), path=path, method=method)
    task = asyncio.create_task(sending.run())
    async with asyncio.timeout(SOON_S):
        waiting = asyncio.create_task(sending.is_waited_for.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done(), sending.said
        try:
            yield
        finally:
            sending.hang_up.set()
            await task


async def sent(client: httpx2.AsyncClient, size: int, path: str = V2) -> tuple[int, str | None, str | None]:
    """The status of an order of `size` bytes, the code and when to come again if it was refused."""
    answer = await client.post(path, content=order_of(size), headers=JSON)
    return answer.status_code, answer.json().get("code"), answer.headers.get("retry-after")


def test_an_account_gets_no_more_than_stays_free() -> None:
    """Each that comes finds as much as the one before it has left twice over; what is given back is there again."""
    room = BodyRoom(bytes_max=800)
    room.take(ANNA, 400)
    with pytest.raises(TooManyBodies, match="400 bytes of other bodies"):
        room.take(ANNA, 1)
    room.take(BEN, 150)
    with pytest.raises(TooManyBodies):
        room.take(BEN, 51)
    with pytest.raises(BodiesFull):
        room.take(CARL, 126)
    room.take(STRANGER, 125)
    room.give_back(ANNA, 400)
    room.take(CARL, 250)
    for account, size in ((BEN, 150), (STRANGER, 125), (CARL, 250)):
        room.give_back(account, size)
    assert room.free == 800
    room.take(BEN, 400)


async def test_unfinished_bodies_of_one_account_leave_room_for_others(make_studio: MakeStudio) -> None:
    """Its keys share what it may have; the answer says so, and when to come again."""
    studio = make_studio(**ROOM)
    other = studio.new_account("other", credits_micros=1_000_000)
    async with studio.open() as client, studio.client(other.secret) as others:
        async with unfinished(studio, size=HALF, key=studio.new_key().secret):
            assert await sent(client, SMALL_BYTES_MAX + 1) == (429, "too_many_bodies", "5")
            assert await sent(others, HALF // 2) == (200, None, None)
            assert await sent(others, HALF) == (503, "bodies_full", "5")
        assert await sent(client, HALF) == (200, None, None)


async def test_small_bodies_need_no_room(make_studio: MakeStudio) -> None:
    """Orders by URL and everything that holds no picture go on."""
    studio = make_studio(**ROOM)
    async with studio.open() as client, unfinished(studio, size=HALF):
        assert await sent(client, SMALL_BYTES_MAX) == (200, None, None)


async def test_a_body_whose_length_is_not_told_takes_room_as_it_comes(make_studio: MakeStudio) -> None:
    """And is refused in its middle."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, HALF // 2, 50_000):
            yield order_of(HALF // 2)[start : start + 50_000]

    studio = make_studio(**ROOM)
    async with studio.open() as client:
        async with unfinished(studio, *[b" " * 90_000] * 3, size=None):
            refused = await client.post(V2, content=pieces(), headers=JSON)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_bodies")
        assert (await client.post(V2, content=pieces(), headers=JSON)).status_code == 200


async def test_whoever_waits_for_an_edit_has_given_its_room_back(make_studio: MakeStudio) -> None:
    """Edits take minutes, and of the body nothing is left."""
    studio = make_studio(**ROOM)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        waiting = asyncio.create_task(client.post(V1, content=order_of(HALF), headers=JSON))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        assert await sent(client, HALF) == (200, None, None)
        studio.fleet.may_step.set()
        assert (await waiting).status_code == 200


async def test_who_sends_without_a_key_counts_as_the_account_whose_link_it_is(make_studio: MakeStudio) -> None:
    """fal's URLs for one PUT."""
    studio = make_studio(**ROOM)
    other = studio.new_account("other", credits_micros=1_000_000)
    async with studio.open() as client, studio.client(other.secret) as others:
        url = (await client.post("/fal/rest/storage/upload/initiate", json={})).json()["upload_url"]
        path = url.removeprefix("http://studio")
        async with unfinished(studio, size=HALF, key="none", path=path, method="PUT"):
            assert await sent(client, HALF // 2) == (429, "too_many_bodies", "5")
            assert await sent(others, HALF // 2) == (200, None, None)


async def test_clients_of_other_vendors_are_told_in_their_form(make_studio: MakeStudio) -> None:
    """OpenAI's come again by themselves, if nothing says that they shouldn't."""
    studio = make_studio(**ROOM)
    photo = {"image": ("photo.jpg", photo_bytes() + bytes(HALF // 2), "image/jpeg")}
    async with studio.open() as client, unfinished(studio, size=HALF):
        refused = await client.post("/v1/images/edits", data={"prompt": "invert it"}, files=photo)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_bodies")
    assert (refused.headers["retry-after"], "x-should-retry" in refused.headers) == ("5", False)


async def test_nothing_of_a_body_that_broke_off_waits_for_the_garbage_collector() -> None:
    """A fault keeps the frames that it went through, and a large body in them would be kept for minutes."""
    left = 8

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return (
            {"type": "http.disconnect"}
            if left < 0
            else {"type": "http.request", "body": bytes(2**20), "more_body": True}
        )

    tracemalloc.start()
    try:
        with pytest.raises(CallerGone) as fault:
            await read_raw(Request({"type": "http", "method": "POST", "headers": []}, receive))
        assert fault.value.__traceback__ is not None
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak > 2**23
    assert held < 2**21, "more than its last piece"
