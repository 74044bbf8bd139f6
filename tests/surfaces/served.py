"""A studio behind a real server on a free port of the loopback, in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from rekontext.api.http1 import Connection, server_config
from tests.api.studio import Studio

START_S_MAX = 60.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """Where a studio answers."""

    studio: Studio
    url: str

    @property
    def key(self) -> str:
        return self.studio.key


@contextmanager
def serve(studio: Studio, *, http: type[Connection] = Connection) -> Iterator[Served]:
    """The studio, answering as long as the block lasts, on connections of this kind."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_config(studio.app, answers_s=5, http=http))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_S_MAX
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server took too long to start"
            thread.join(0.005)
        try:
            yield Served(studio=studio, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(START_S_MAX)
            assert not thread.is_alive(), "the server did not stop"
