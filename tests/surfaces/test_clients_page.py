"""Each Python program of docs/clients.md, run as it stands but for the port."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

import httpx
import pytest
from PIL import Image

from rekontext.settings import Settings
from tests.api.studio import Studio
from tests.pictures.samples import encoded, gradient
from tests.surfaces.served import Served, serve

PAGE: Final = (Path(__file__).parents[2] / "docs/clients.md").read_text(encoding="utf-8")
ORIGIN: Final = "http://127.0.0.1:8000"
APART: Final = Path(sys.prefix) / "blackforest"
SIZE: Final = (300, 260)
"""One of the clients takes no photo with a side below 256."""

# What a block leaves behind that is a picture, or says where one is.
LEFT: Final = {
    "openai": "open('night.png', 'rb').read()",
    "replicate": "picture",
    "fal_client": "result['images'][0]['url']",
    "blackforest": "picture.result['sample']",
    "huggingface_hub": "picture.tobytes() and (picture.save('kept.png') or open('kept.png', 'rb').read())",
}


def package_of(block: str) -> str:
    """What a block imports of others first."""
    found = re.search(r"^(?:from|import) (openai|replicate|fal_client|blackforest|huggingface_hub)\b", block, re.M)
    assert found, f"no client that is known here:\n{block}"
    return found[1]


BLOCKS: Final = {package_of(block): block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With the limits that a reader's server has, not those of the other tests."""
    usual = Settings.model_fields
    settings = {name: usual[name].default for name in ("body_bytes_max", "picture_bytes_max", "picture_pixels_max")}
    with serve(Studio(folder=tmp_path_factory.mktemp("clients"), settings=settings)) as served:
        yield served


def run(code: str, folder: Path) -> str:
    """What a program says, run in this folder, in which there is a photo."""
    (folder / "photo.jpg").write_bytes(encoded(gradient(*SIZE), "JPEG"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(APART)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_every_section_has_its_program() -> None:
    """None is left out below."""
    assert list(BLOCKS) == list(LEFT)
    assert len(BLOCKS) == PAGE.count("```python\n")


@pytest.mark.parametrize("package", LEFT)
def test_the_program_edits_the_photo(package: str, served: Served, tmp_path: Path) -> None:
    """With nothing but a key, and a photo beside it."""
    if package == "blackforest" and not APART.is_dir() and "CI" not in os.environ:
        pytest.skip(f"the package isn't there: {APART}")
    block = BLOCKS[package]
    assert ORIGIN in block
    code = f"""
KEY = {served.key!r}
{block.replace(ORIGIN, served.url)}
import base64
left = {LEFT[package]}
print(left if isinstance(left, str) else base64.b64encode(left).decode())
"""
    said = run(code, tmp_path)
    data = httpx.get(said).content if said.startswith("http") else base64.b64decode(said, validate=True)
    with Image.open(BytesIO(data)) as picture:
        picture.load()
        assert picture.size == SIZE
