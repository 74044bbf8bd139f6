"""What the README tells a newcomer to type, run as it stands but for the port."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from rekontext.settings import Settings
from tests.api.studio import Studio
from tests.surfaces.served import Served, serve

ROOT = Path(__file__).parents[2]
ORIGIN = "http://127.0.0.1:8000"


def sample(language: str, holding: str) -> str:
    """The README's one code block in this language that has these words in it."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (found,) = [block for block in blocks if holding in block]
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With the limits that a newcomer's server has, not those of the other tests."""
    usual = Settings.model_fields
    settings = {name: usual[name].default for name in ("body_bytes_max", "picture_bytes_max", "picture_pixels_max")}
    with serve(Studio(folder=tmp_path_factory.mktemp("readme"), settings=settings)) as served:
        yield served


def run_sample(
    language: str, holding: str, served: Served, folder: Path, *, key: str
) -> subprocess.CompletedProcess[str]:
    """From the folder of a clone, with this key in the environment."""
    if language == "sh" and shutil.which("curl") is None:
        pytest.skip("curl is missing")
    code = sample(language, holding)
    assert ORIGIN in code
    (folder / "src").symlink_to(ROOT / "src")
    interpreter = ["sh", "-e", "-c"] if language == "sh" else [sys.executable, "-c"]
    return subprocess.run(
        [*interpreter, code.replace(ORIGIN, served.url)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "REKONTEXT_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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
