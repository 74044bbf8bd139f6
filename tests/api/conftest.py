"""What every test of the wire starts from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

from tests.api.brought import LoraSite, open_site
from tests.api.studio import PillowFleet, Studio

MakeStudio = Callable[..., Studio]


@pytest.fixture
def make_studio(tmp_path: Path) -> MakeStudio:
    """Makes the test's studio, with settings and a fleet that differ from the usual ones."""

    def make(fleet: PillowFleet | None = None, **settings: Any) -> Studio:
        return Studio(folder=tmp_path, settings=settings, fleet=fleet or PillowFleet())

    return make


@pytest.fixture
def studio(make_studio: MakeStudio) -> Studio:
    return make_studio()


@pytest.fixture
async def client(studio: Studio) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the studio at work."""
    async with studio.open() as client:
        yield client


class Receiver:
    """A server that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.put_nowait((headers, await request.read()))
        return web.Response(status=204)

    async def next(self) -> tuple[dict[str, str], bytes]:
        return await asyncio.wait_for(self.got.get(), 10)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def site() -> AsyncIterator[LoraSite]:
    async with open_site() as site:
        yield site
