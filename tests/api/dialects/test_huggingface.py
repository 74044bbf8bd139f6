"""Hugging Face's dialect on the wire."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any, Final

import httpx2
import pytest
from PIL import Image

from tests.api.studio import Studio, gone
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

PATH: Final = "/hf/flux-kontext-dev"
INPUTS: Final = base64.b64encode(photo_bytes()).decode()


def asked(**parameters: Any) -> dict[str, Any]:
    return {"inputs": INPUTS, "parameters": {"prompt": "invert it", "num_inference_steps": 4, **parameters}}


@pytest.fixture
def client(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """The studio's client, with its key as that vendor's clients show it."""
    client.headers["authorization"] = f"Bearer {client.headers.pop('x-api-key')}"
    return client


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("image/png", "image/png"),
        ("image/webp,*/*", "image/webp"),
        ("text/html, image/jpeg;q=0.8", "image/jpeg"),
    ],
)
async def test_the_answer_is_the_picture(client: httpx2.AsyncClient, accept: str, kind: str) -> None:
    """Of the type that is asked for first, with the facts that our own surface tells."""
    answer = await client.post(PATH, json=asked(seed=7), headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert Image.open(BytesIO(answer.content)).size == (48, 32)
    assert (answer.headers["x-seed-value"], answer.headers["x-cost"]) == ("7", "0.04")


async def test_a_size_chooses_the_shape(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Where it comes close to the proportions of one; others are refused, with those that there are."""
    for width, height, shape in ((1536, 1024, "3:2"), (1104, 944, "5:4"), (1000, 999, "1:1"), (672, 1568, "9:21")):
        answer = await client.post(PATH, json=asked(target_size={"width": width, "height": height}))
        assert answer.status_code == 200
        assert studio.fleet.requests[-1].aspect_ratio == shape
    for size in ({"width": 2000, "height": 1000}, {"width": 3, "height": 0}, {"width": "3"}, "3:2"):
        refused = await client.post(PATH, json=asked(target_size=size))
        assert refused.status_code == 422
        assert "target_size has no shape of ours" in refused.json()["error"]
        assert "16:9" in refused.json()["error"]


async def test_refusals_are_in_its_form(client: httpx2.AsyncClient) -> None:
    """`error`, under its names; what can't be heeded is refused, what asks for nothing isn't."""
    answer = await client.post(PATH, json=asked(guidance_scale=99, negative_prompt="people", mask="x"))
    assert answer.status_code == 422
    assert "guidance_scale is 99 (allowed: a number from 0 to 10)" in answer.json()["error"]
    for name in ("negative_prompt", "mask"):
        assert f"{name} can't be heeded here (allowed: nothing)" in answer.json()["error"]
    assert (await client.post(PATH, json=asked(negative_prompt="", user="me"))).status_code == 200
    without_photo = {"parameters": {"prompt": "x"}}
    for body, says in (({"inputs": INPUTS}, "prompt is missing"), (without_photo, "inputs is missing")):
        answer = await client.post(PATH, json=body)
        assert (answer.status_code, says in answer.json()["error"]) == (422, True)
    answer = await client.post(PATH, json={"inputs": INPUTS, "parameters": [1]})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", None])
async def test_a_bare_photo_is_read(client: httpx2.AsyncClient, kind: str | None) -> None:
    """Of any type or none: what is missing then is the prompt."""
    headers = {} if kind is None else {"content-type": kind}
    answer = await client.post(PATH, content=photo_bytes(), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("Wrong parameter: prompt is missing"), answer.text


async def test_what_passes_is_no_503(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On which one of its clients asks again without end or pause."""
    monkeypatch.setattr(studio.service.parts.desk, "submit", gone)
    answer = await client.post(PATH, json=asked())
    assert (answer.status_code, answer.json()["code"]) == (500, "database_unavailable")
