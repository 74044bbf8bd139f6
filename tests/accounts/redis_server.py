"""A Redis server for one test: Debian's package, nothing on disk, a free port on the loopback."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_PORTS_TRIED_MAX = 5


@dataclass(kw_only=True)
class RedisServer:
    """One server that may be killed and started again at the same place."""

    program: str
    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and return once it takes connections."""
        given = self.port
        for _ in range(_PORTS_TRIED_MAX):
            self.port = given or _free_port()
            if self._is_up():
                return
            self.kill()
        raise AssertionError(f"redis-server did not start on any of {_PORTS_TRIED_MAX} ports")

    def kill(self) -> None:
        """End it at once, with all it knows."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def _is_up(self) -> bool:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/")
        assert self.process.stdout is not None
        return any("eady to accept connections" in line for line in self.process.stdout)


@contextmanager
def running(program: str) -> Iterator[RedisServer]:
    """A server that answers, killed at the end."""
    server = RedisServer(program=program)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
