"""Orders that are good, where they are sent, and what is heard of their jobs up to the end."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import httpx2

from tests.pictures.samples import photo_bytes

V1: Final = "/v1/flux-kontext-dev"
V2: Final = "/v2/flux-kontext-dev"
PLAIN: Final[dict[str, Any]] = {"prompt": "invert it", "input_image": base64.b64encode(photo_bytes()).decode()}
"""With as many steps as the service chooses."""
GOOD: Final[dict[str, Any]] = PLAIN | {"num_inference_steps": 6}
NIGHT: Final[dict[str, Any]] = PLAIN | {"prompt": "make it night", "num_inference_steps": 4}

Events = list[tuple[str, str, dict[str, Any]]]


def parsed(text: str) -> Events:
    """The frames of an event stream: name, id, data."""
    frames = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        frames.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return frames


async def followed(client: httpx2.AsyncClient, url: str, **headers: str) -> Events:
    """Every event of a job, up to its end."""
    answer = await client.get(url, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return parsed(answer.text)
