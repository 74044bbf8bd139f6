"""What the README tells a newcomer to type, run as it stands but for the port."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.surfaces.reader import blocks, readers_server, run
from tests.surfaces.served import Served

ROOT = Path(__file__).parents[2]


def sample(language: str, holding: str) -> str:
    """The README's one code block in this language that has these words in it."""
    (found,) = [block for block in blocks(ROOT / "README.md", language) if holding in block]
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with readers_server(tmp_path_factory.mktemp("readme")) as served:
        yield served


def run_sample(
    language: str, holding: str, served: Served, folder: Path, *, key: str
) -> subprocess.CompletedProcess[str]:
    """From the folder of a clone, with this key in the environment."""
    (folder / "src").symlink_to(ROOT / "src")
    return run(sample(language, holding), folder, served, language=language, REKONTEXT_KEY=key)


FIRST = [("sh", "curl"), ("python", "requests.post")]
OPENAI = ("python", "from openai")


@pytest.mark.parametrize(("language", "holding"), [*FIRST, OPENAI])
def test_the_first_request_works_as_written(language: str, holding: str, served: Served, tmp_path: Path) -> None:
    """It leaves the edited photo behind."""
    done = run_sample(language, holding, served, tmp_path, key=served.key)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "night.png") as picture:
        assert picture.format == "PNG"
        picture.load()


@pytest.mark.parametrize(("language", "holding"), FIRST)
def test_the_first_request_fails_aloud(language: str, holding: str, served: Served, tmp_path: Path) -> None:
    """Without a key, which is the first mistake that one makes, what is left behind is no success."""
    done = run_sample(language, holding, served, tmp_path, key="")
    assert done.returncode != 0
    assert "401" in done.stderr
