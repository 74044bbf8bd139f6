"""Each Python program of docs/clients.md, run as it stands but for the port."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

import httpx
import pytest
from PIL import Image

from tests.needed import missing
from tests.pictures.samples import encoded, gradient
from tests.surfaces.reader import blocks, readers_server, run
from tests.surfaces.served import Served

PAGE: Final = Path(__file__).parents[2] / "docs/clients.md"
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


BLOCKS: Final = {package_of(block): block for block in blocks(PAGE, "python")}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with readers_server(tmp_path_factory.mktemp("clients")) as served:
        yield served


def test_every_section_has_its_program() -> None:
    """None is left out below."""
    assert list(BLOCKS) == list(LEFT)
    assert len(BLOCKS) == PAGE.read_text(encoding="utf-8").count("```python\n")


@pytest.mark.parametrize("package", LEFT)
def test_the_program_edits_the_photo(package: str, served: Served, tmp_path: Path) -> None:
    """With nothing but a key, and a photo beside it."""
    if package == "blackforest" and not APART.is_dir():
        missing("blackforest", "make install")
    (tmp_path / "photo.jpg").write_bytes(encoded(gradient(*SIZE), "JPEG"))
    code = f"""
KEY = {served.key!r}
{BLOCKS[package]}
import base64
left = {LEFT[package]}
print(left if isinstance(left, str) else base64.b64encode(left).decode())
"""
    done = run(code, tmp_path, served, PYTHONPATH=str(APART))
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    data = httpx.get(said).content if said.startswith("http") else base64.b64decode(said, validate=True)
    with Image.open(BytesIO(data)) as picture:
        picture.load()
        assert picture.size == SIZE
