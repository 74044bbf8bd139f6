"""The programs on docs/api's pages with which one begins, run as they stand but for the port."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from rekontext.settings import Settings
from tests.api.studio import Studio
from tests.pictures.samples import encoded, gradient
from tests.surfaces.served import Served, serve

PAGES: Final = Path(__file__).parents[2] / "docs/api"
ORIGIN: Final = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With the limits that a reader's server has, not those of the other tests."""
    usual = Settings.model_fields
    settings = {name: usual[name].default for name in ("body_bytes_max", "picture_bytes_max", "picture_pixels_max")}
    with serve(Studio(folder=tmp_path_factory.mktemp("pages"), settings=settings)) as served:
        yield served


def program(page: str, language: str) -> str:
    """The first in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.M | re.S)
    assert found, f"{page} has no program in {language}"
    return found[1]


@pytest.mark.parametrize(
    ("page", "language"), [("README.md", "sh"), ("README.md", "python"), ("segmind.md", "python"), ("edits.md", "sh")]
)
def test_the_program_leaves_the_edited_photo(page: str, language: str, served: Served, tmp_path: Path) -> None:
    """With a photo and a mask beside it, and a key in the environment."""
    if language == "sh" and shutil.which("curl") is None:
        pytest.skip("curl is missing")
    (tmp_path / "photo.jpg").write_bytes(encoded(gradient(300, 260), "JPEG"))
    Image.linear_gradient("L").resize((300, 260)).save(tmp_path / "mask.png")
    code = program(page, language)
    assert ORIGIN in code
    done = subprocess.run(
        [*(["sh", "-e", "-c"] if language == "sh" else [sys.executable, "-c"]), code.replace(ORIGIN, served.url)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "REKONTEXT_KEY": served.key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [left] = {"night.png", "edited.png"} & {each.name for each in tmp_path.iterdir()}
    with Image.open(tmp_path / left) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (300, 260))
