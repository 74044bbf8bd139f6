"""The whole service behind uvicorn on a free port, around a fleet that edits with Pillow and stops where told."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
from PIL import Image

from rekontext.api.http1 import server_config
from rekontext.contract import EditRequest, EditResult, Fleet, OnProgress, Preview, Progress
from tests.api.studio import PillowFleet, Studio

WAIT_S = 30.0


class PausingFleet(PillowFleet):
    """As `PillowFleet`, and an edit stands still once it has reached `pause_at`, until `Site.go_on`."""

    def __init__(self) -> None:
        super().__init__(step_s=0.2)
        self.pause_at: int | None = None

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        def tell(news: Progress | Preview) -> None:
            if on_progress:
                on_progress(news)
            if isinstance(news, Progress) and news.step == self.pause_at:
                self.may_step.clear()

        return await super().edit(request, on_progress=tell)


class _Server(uvicorn.Server):
    """uvicorn in a thread, saying when it listens and on which loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.listens.set()


class Site:
    """A running service and what a test may do to it from its own thread."""

    def __init__(self, studio: Studio, server: _Server, url: str) -> None:
        self.studio = studio
        self.url = url
        self._server = server

    @property
    def key(self) -> str:
        """Of the first account: it may do everything."""
        return self.studio.key

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """On which it serves."""
        assert self._server.loop is not None
        return self._server.loop

    @property
    def fleet(self) -> PausingFleet:
        fleet = self.studio.fleet
        assert isinstance(fleet, PausingFleet)
        return fleet

    def go_on(self) -> None:
        """Let every edit run to its end."""
        self.fleet.pause_at = None
        self._call(self.fleet.may_step.set)

    def _call(self, work: Any) -> None:
        self.loop.call_soon_threadsafe(work)


@contextmanager
def served(folder: Path, *, fleet: Fleet | None = None, **settings: Any) -> Iterator[Site]:
    """A service with a database of its own, until the end of the block; around a `PausingFleet` if none is given."""
    defaults = {
        "body_bytes_max": 2_000_000,
        "picture_bytes_max": 1_000_000,
        "picture_pixels_max": 2_000_000,
        "fetch_allow": ("127.0.0.0/8", "localhost"),
        "webhook_allow": ("127.0.0.0/8",),
    }
    # A studio only hands its fleet on, so any will do.
    studio = Studio(folder=folder, settings=defaults | settings, fleet=cast(PillowFleet, fleet or PausingFleet()))
    server = _Server(server_config(studio.app, answers_s=5))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="site", daemon=True)
        thread.start()
        assert server.listens.wait(WAIT_S), "the service did not start"
        site = Site(studio, server, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield site
        finally:
            site._call(studio.service.hang_up)
            if isinstance(studio.fleet, PausingFleet):
                site.go_on()
            server.should_exit = True
            thread.join(WAIT_S)
    assert not thread.is_alive(), "the service did not stop"
    assert not studio.broken, studio.broken


def photo_bytes(*, size: tuple[int, int] = (120, 80), colour: tuple[int, int, int] = (200, 120, 40)) -> bytes:
    """A small jpeg whose left half is darker than its right."""
    picture = Image.new("RGB", size, colour)
    picture.paste((40, 40, 60), (0, 0, size[0] // 2, size[1]))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()
