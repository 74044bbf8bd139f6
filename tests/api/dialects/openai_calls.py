"""Calls in OpenAI's dialect that are good, and what is heard of them."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any, Final

import httpx2
from PIL import Image

from tests.pictures.samples import photo_bytes

EDITS: Final = "/v1/images/edits"


PHOTO: Final = photo_bytes()


FILE: Final = ("image", ("upload", PHOTO, "application/octet-stream"))


FORM: Final = {"prompt": "invert it", "num_inference_steps": "4", "seed": "7"}


URI: Final = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"


JSON: Final[dict[str, Any]] = {"prompt": "invert it", "num_inference_steps": 4, "seed": 7, "image": URI}


async def form(client: httpx2.AsyncClient, *files: Any, **fields: Any) -> httpx2.Response:
    """A good form, but for these fields; None leaves one out."""
    data = {name: value for name, value in (FORM | fields).items() if value is not None}
    return await client.post(EDITS, data=data, files=list(files) or [FILE])


def picture(data: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data)))


def told(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream: name and data."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    blocks = [lines for lines in blocks if not lines[0].startswith(":")]
    assert all(len(lines) == 2 for lines in blocks), text
    events = [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]
    assert all(data["type"] == name for name, data in events)
    return events


def error(answer: httpx2.Response, status: int, code: str, *, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The vendor's form of this failure."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    assert answer.headers["x-request-id"]
    document = answer.json()
    assert set(document) == {"error"}
    found: dict[str, Any] = document["error"]
    assert list(found) == ["message", "type", "param", "code"]
    assert (found["type"], found["code"]) == (kind, code)
    return found
