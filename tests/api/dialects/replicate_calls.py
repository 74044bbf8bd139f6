"""Calls in Replicate's dialect that are good, and what is heard of them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Final, NoReturn

import httpx2

from rekontext.pictures import StoreUnavailable
from tests.api.studio import SOON_S, Studio
from tests.pictures.samples import photo_bytes

PHOTO: Final = photo_bytes()


INPUT: Final[dict[str, Any]] = {
    "prompt": "make it night",
    "input_image": base64.b64encode(PHOTO).decode(),
    "num_inference_steps": 4,
}


GOOD: Final[dict[str, Any]] = {"input": INPUT}


MODEL: Final = "black-forest-labs/flux-kontext-dev"


CREATE: Final = f"/v1/models/{MODEL}/predictions"


PREDICTIONS: Final = "/v1/predictions"


HELD: Final = {"prefer": "wait"}


async def done(client: httpx2.AsyncClient, **changes: Any) -> dict[str, Any]:
    """A prediction that has ended."""
    answer = await client.post(CREATE, json={"input": INPUT | changes}, headers=HELD)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def running(client: httpx2.AsyncClient, studio: Studio, **headers: str) -> dict[str, Any]:
    """A prediction whose edit stands before its first step."""
    studio.fleet.may_step.clear()
    created = await client.post(CREATE, json=GOOD, headers=headers)
    assert created.status_code == 201, created.text
    await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
    found: dict[str, Any] = created.json()
    return found


def events(stream: str) -> list[dict[str, str]]:
    """The frames of a stream, each as its fields."""
    frames = [frame for frame in stream.split("\n\n") if frame]
    return [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in frames]


async def away(_key: str) -> NoReturn:
    raise StoreUnavailable("the store could not do that")
