"""A page's programs, run as whoever reads it runs them: as they stand but for the port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rekontext.settings import Settings
from tests.api.studio import Studio
from tests.needed import program
from tests.surfaces.served import Served, serve

ORIGIN: Final = "http://127.0.0.1:8000"


@contextmanager
def readers_server(folder: Path) -> Iterator[Served]:
    """With the limits that a reader's server has, not those of the other tests."""
    usual = Settings.model_fields
    settings = {name: usual[name].default for name in ("body_bytes_max", "picture_bytes_max", "picture_pixels_max")}
    with serve(Studio(folder=folder, settings=settings)) as served:
        yield served


def blocks(page: Path, language: str) -> list[str]:
    """A page's blocks of code in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def run(
    code: str, folder: Path, served: Served, *, language: str = "python", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in this folder. It must call the server; further variables may be in its environment."""
    assert ORIGIN in code
    if language == "sh":
        program("curl", "curl")
    return subprocess.run(
        [*(["sh", "-e", "-c"] if language == "sh" else [sys.executable, "-c"]), code.replace(ORIGIN, served.url)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
