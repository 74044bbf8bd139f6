"""What every test of the wire starts from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.api.studio import Studio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def studio() -> AsyncIterator[Studio]:
    studio = Studio()
    async with studio.fetcher:
        yield studio


@pytest.fixture
async def client(studio: Studio) -> AsyncIterator[httpx2.AsyncClient]:
    async with studio.client() as client:
        yield client
