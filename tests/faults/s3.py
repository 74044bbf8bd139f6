"""A server that speaks S3, for one test: moto's, in a process of its own, on a free port. Forgets all when it ends.

It checks neither signatures nor their expiry.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

import requests

from tests.needed import missing

BUCKET = "pictures"


@dataclass(kw_only=True)
class S3Server:
    """One server with one bucket, which may be killed and started again at the same place."""

    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What an operator sets to use it."""
        return {
            "AWS_ENDPOINT": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def start(self) -> None:
        """Return once it answers."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                requests.put(f"{self.url}/{BUCKET}", timeout=10).raise_for_status()
                return
        raise AssertionError("the S3 server ended before it answered")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()
            self.process = None


@contextmanager
def running() -> Iterator[S3Server]:
    """A server that answers; skips the test, or in CI fails it, where there is none."""
    if find_spec("moto") is None or find_spec("flask") is None:
        missing("moto's server", "pip install '.[dev]'")
    server = S3Server()
    try:
        server.start()
        yield server
    finally:
        server.kill()
