"""The programs on docs/api's pages with which one begins, run as they stand but for the port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from tests.pictures.samples import encoded, gradient
from tests.surfaces.reader import blocks, readers_server, run
from tests.surfaces.served import Served

PAGES: Final = Path(__file__).parents[2] / "docs/api"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with readers_server(tmp_path_factory.mktemp("pages")) as served:
        yield served


@pytest.mark.parametrize(
    ("page", "language"), [("README.md", "sh"), ("README.md", "python"), ("segmind.md", "python"), ("edits.md", "sh")]
)
def test_the_program_leaves_the_edited_photo(page: str, language: str, served: Served, tmp_path: Path) -> None:
    """With a photo and a mask beside it, and a key in the environment."""
    (tmp_path / "photo.jpg").write_bytes(encoded(gradient(300, 260), "JPEG"))
    Image.linear_gradient("L").resize((300, 260)).save(tmp_path / "mask.png")
    first, *_ = blocks(PAGES / page, language)
    done = run(first, tmp_path, served, language=language, REKONTEXT_KEY=served.key)
    assert done.returncode == 0, done.stderr
    [left] = {"night.png", "edited.png"} & {each.name for each in tmp_path.iterdir()}
    with Image.open(tmp_path / left) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (300, 260))
