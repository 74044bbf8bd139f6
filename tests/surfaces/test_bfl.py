"""Black Forest Labs' own package, pointed at this server by its base_url. Makefile puts it apart: see there."""

from __future__ import annotations

import importlib
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from PIL import Image

from tests.needed import missing
from tests.pictures.samples import encoded, gradient
from tests.surfaces.served import Served

APART: Final = Path(sys.prefix) / "blackforest"
MODEL: Final = "flux-kontext-pro"


@pytest.fixture(scope="module")
def package() -> Any:
    """The package and its configuration."""
    if not APART.is_dir():
        missing("blackforest", "make install")
    sys.path.append(str(APART))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it says its fields in pydantic's old way
            configuration = importlib.import_module("blackforest.types.general.client_config")
            return importlib.import_module("blackforest"), configuration.ClientConfig
    finally:
        sys.path.remove(str(APART))


@pytest.fixture
def client(package: Any, served: Served) -> Any:
    return package[0].BFLClient(served.key, base_url=served.url)


def config(package: Any, **how: Any) -> Any:
    return package[1](polling_interval=0.1, **how)


def large(folder: Path) -> str:
    """A photo that the package lets through: it takes none with a side below 256."""
    path = folder / "large.png"
    path.write_bytes(encoded(gradient(300, 260)))
    return str(path)


def test_generate_waits_and_brings_a_link_to_the_picture(client: Any, package: Any, tmp_path: Path) -> None:
    """Which opens without a key."""
    asked = {"prompt": "invert it", "input_image": large(tmp_path), "seed": 7, "output_format": "jpeg"}
    answer = client.generate(MODEL, asked, config(package, sync=True))
    assert (answer.result["seed"], answer.result["prompt"]) == (7, "invert it")
    picture = httpx.get(answer.result["sample"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(BytesIO(picture.content)).size == (300, 260)


def test_a_task_is_asked_for_by_its_polling_url(client: Any, package: Any, tmp_path: Path) -> None:
    """The asynchronous call, and the two that follow it."""
    task = client.generate(MODEL, {"prompt": "invert it", "input_image": large(tmp_path)}, config(package, sync=False))
    assert task.polling_url.startswith(client.base_url)
    result = client.get_polling_result(task.id, config(package))
    assert httpx.get(result["sample"]).status_code == 200
    assert client.get_task_status(task.id).status == "Ready"


def test_what_is_wrong_is_said_by_the_client(client: Any, package: Any) -> None:
    """By the parameter's name."""
    with pytest.raises(package[0].client.BFLError, match="input_image is missing"):
        client.generate(MODEL, {"prompt": "a cat"}, config(package, sync=True))
