"""What every test of the wire starts from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

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
