"""OpenAI's dialect on the wire: forms and JSON, both kinds of answer, the models."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from rekontext.api.dialects import openai
from tests.api.dialects.openai_calls import EDITS, JSON, PHOTO, URI, form, picture
from tests.api.studio import Studio
from tests.api.test_safety import Said, checked

pytestmark = pytest.mark.anyio


async def test_a_form_is_answered_with_the_picture_and_what_is_known_of_it(client: httpx2.AsyncClient) -> None:
    """What isn't known of it (tokens, a quality) isn't said."""
    answer = await form(client)
    document = answer.json()
    assert set(document) == {"created", "data", "size", "output_format", "background"}
    assert (document["size"], document["output_format"], document["background"]) == ("48x32", "png", "opaque")
    assert document["created"] == int(document["created"]) > 0
    [image] = document["data"]
    assert set(image) == {"b64_json"}
    assert (picture(image["b64_json"]).format, picture(image["b64_json"]).size) == ("PNG", (48, 32))
    headers = answer.headers
    assert (headers["x-cost"], headers["x-seed-value"], headers["ratelimit-limit"]) == ("0.04", "7", "10000")
    result = (await client.get(f"/v2/requests/{headers['x-request-id']}")).json()
    assert (result["status"], result["seed"]) == ("COMPLETED", 7), "it is a job as any other"


@pytest.mark.parametrize(
    "body",
    [
        JSON,
        JSON | {"image": [URI]},
        JSON | {"image": base64.b64encode(PHOTO).decode()},
        JSON | {"image": None, "images": [{"image_url": URI}]},
        JSON | {"image": {"image_url": {"url": URI}}},
        JSON | {"model": None, "n": 1, "size": None, "stream": False, "mask": None, "background": "auto"},
    ],
)
async def test_json_asks_for_the_same_as_a_form(client: httpx2.AsyncClient, body: Mapping[str, Any]) -> None:
    """As gateways send it; the picture in any way that one is sent in JSON."""
    answer = await client.post(EDITS, json=body)
    assert answer.json()["data"] == (await form(client)).json()["data"]


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]"])
@pytest.mark.parametrize("content", [PHOTO, URI])
async def test_one_picture_comes_under_the_name_of_a_list_too(
    client: httpx2.AsyncClient, name: str, content: str | bytes
) -> None:
    """As a file, as one without a name, or as text."""
    answers = [await form(client, (name, (None, content)))]
    if isinstance(content, bytes):
        answers.append(await form(client, (name, ("C:\\a.bin", content, "application/octet-stream"))))
    assert [answer.status_code for answer in answers] == [200] * len(answers)


async def test_a_link_opens_without_a_key(client: httpx2.AsyncClient) -> None:
    """For as long as links do."""
    [image] = (await form(client, response_format="url")).json()["data"]
    assert set(image) == {"url"}
    opened = await client.get(image["url"], headers={"x-api-key": ""})
    assert opened.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"num_inference_steps": "9"}, "steps", 9),
        ({"num_inference_steps": None, "steps": "9"}, "steps", 9),
        ({"num_inference_steps": None}, "steps", 35),
        ({"guidance": "2.5"}, "guidance", 2.5),
        ({"guidance_scale": "2.5"}, "guidance", 2.5),
        ({}, "guidance", 7.0),
        ({"acceleration": "high"}, "acceleration", "high"),
        ({}, "aspect_ratio", "match_input_image"),
        ({"size": "auto"}, "aspect_ratio", "match_input_image"),
        ({"size": "1536x1024"}, "aspect_ratio", "3:2"),
        ({"size": "1536x1024", "aspect_ratio": "1:1"}, "aspect_ratio", "1:1"),
        ({"aspect_ratio": "16:9", "size": ""}, "aspect_ratio", "16:9"),
        ({"size": "1536x1024", "aspect_ratio": ""}, "aspect_ratio", "3:2"),
        ({"partial_images": "3"}, "preview_every", None),
        ({"partial_images": "3", "stream": "true", "num_inference_steps": "28"}, "preview_every", 7),
        ({"quality": "high", "user": "me", "nested[a]": "1", "input_fidelity": "low"}, "seed", 7),
    ],
)
async def test_fields_reach_the_edit(studio: Studio, fields: dict[str, Any], name: str, value: object) -> None:
    """The vendor's and ours; without them it is as our own API has it."""
    async with studio.open() as client:
        answer = await form(client, **fields)
    assert answer.status_code == 200, answer.text
    [request] = studio.fleet.requests
    assert getattr(request, name) == value


async def test_formats_and_their_compression(client: httpx2.AsyncClient) -> None:
    """The vendor's word for jpg, in and out; more of it is a larger file."""
    large = (await form(client, output_format="jpeg", output_compression="95")).json()
    small = (await form(client, output_format="jpeg", output_compression="10")).json()
    webp = (await form(client, output_format="webp")).json()
    assert [each["output_format"] for each in (large, small, webp)] == ["jpeg", "jpeg", "webp"]
    assert [picture(each["data"][0]["b64_json"]).format for each in (large, webp)] == ["JPEG", "WEBP"]
    assert len(small["data"][0]["b64_json"]) < len(large["data"][0]["b64_json"])


async def test_a_check_that_callers_may_turn_off_is(studio: Studio) -> None:
    """By our own field, in a form."""
    check = Said(is_optional=True)
    async with checked(studio, check).open() as client:
        assert (await form(client, disable_safety_checker="true")).status_code == 200
    assert check.seen == []


async def test_a_large_picture_does_not_hold_up_others(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes text in a thread, in both kinds of answer."""
    at_work: list[threading.Thread] = []

    class Watched:
        def b64encode(self, data: bytes) -> bytes:
            at_work.append(threading.current_thread())
            return base64.b64encode(data)

    monkeypatch.setattr(openai, "base64", Watched())
    await form(client)
    await form(client, stream="true")
    assert len(at_work) == 2
    assert threading.current_thread() not in at_work


async def test_any_good_key_may_list_the_models(studio: Studio, client: httpx2.AsyncClient) -> None:
    """In one list with Replicate's."""
    model = {"id": "flux-kontext-dev", "object": "model", "created": 0, "owned_by": "rekontext"}
    for scope in ("read", "edit"):
        headers = {"x-api-key": studio.new_key(scopes=frozenset({scope})).secret}
        listed = await client.get("/v1/models", headers=headers)
        assert (listed.json()["object"], listed.json()["data"]) == ("list", [model])
        assert (await client.get("/v1/models/flux-kontext-dev", headers=headers)).json() == model
