"""A studio, or any application, behind a real server on a free port of the loopback, in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from rekontext.api.http1 import Connection, server_config
from tests.api.studio import Studio

START_S_MAX = 60.0
SEND_BYTES_MAX = 2**16
"""What the kernel holds for a caller who doesn't read: little, so that a test needn't send megabytes."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """Where a studio answers."""

    studio: Studio
    url: str

    @property
    def key(self) -> str:
        return self.studio.key


@contextmanager
def serve(studio: Studio, **how: Any) -> Iterator[Served]:
    """The studio, answering as long as the block lasts, as `serve_app` has it."""
    with serve_app(studio.app, **how) as url:
        yield Served(studio=studio, url=url)


@contextmanager
def serve_app(
    app: ASGIApp,
    *,
    http: type[Connection] = Connection,
    answers_s: int = 5,
    refused: Callable[[int], None] = lambda _status: None,
    server_of: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server,
) -> Iterator[str]:
    """Where the application answers as long as the block lasts, on connections of this kind.

    Args:
        answers_s: how long answers that are under way then may take.
        refused: as `server_config` takes it.
        server_of: makes the server.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES_MAX)
        server = server_of(server_config(app, answers_s=answers_s, http=http, refused=refused))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_S_MAX
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server took too long to start"
            thread.join(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_S_MAX)
            assert not thread.is_alive(), "the server did not stop"
