"""One server for the tests of a surface: each uses an account of its own where it matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.studio import Studio
from tests.pictures.samples import photo_bytes
from tests.surfaces.served import Served, serve


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    studio = Studio(folder=tmp_path_factory.mktemp("surface"))
    with serve(studio) as served:
        yield served


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture on disk."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo_bytes())
    return path
