"""Calls in fal's dialect that are good, and what is heard of them."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import httpx2
from sqlalchemy import select

from rekontext.database.tables import jobs
from tests.api.studio import Studio
from tests.pictures.samples import photo_bytes

APP: Final = "fal-ai/flux-kontext/dev"
RUN: Final = f"/fal/run/{APP}"
SUBMIT: Final = f"/fal/queue/{APP}"
REQUESTS: Final = "/fal/queue/fal-ai/flux-kontext/requests"
INITIATE: Final = "/fal/rest/storage/upload/initiate"
UPLOAD: Final = "/fal/cdn/files/upload"
PHOTO: Final = photo_bytes()
URI: Final = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"
GOOD: Final[dict[str, Any]] = {"prompt": "make it night", "image_url": URI, "num_inference_steps": 4}


def frames(text: str) -> list[dict[str, Any]]:
    """The data of a stream whose frames have nothing else."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


async def submitted(client: httpx2.AsyncClient, **body: object) -> dict[str, Any]:
    answer = await client.post(SUBMIT, json=GOOD | body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def ended(client: httpx2.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    """The last status of a job, once it has ended."""
    return frames((await client.get(f"{job['status_url']}/stream")).text)[-1]


def parameters(studio: Studio, job: str) -> dict[str, Any]:
    """Those that a job was written down with."""
    found: dict[str, Any] = studio.act(
        lambda tx, _: tx.execute(select(jobs.c.parameters).where(jobs.c.id == job)).scalar_one()
    )
    return found
