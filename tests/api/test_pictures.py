"""Several pictures of one edit: what they cost, where they are, and which answers can have them."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import httpx2
import pytest
from PIL import Image

from rekontext.api.orders import _digest
from rekontext.api.parameters import parse
from tests.api.dialects import fal_calls, openai_calls
from tests.api.orders import GOOD, V1, V2, followed
from tests.api.studio import Studio

pytestmark = pytest.mark.anyio

JSON = {"accept": "application/json"}
ONE = GOOD | {"output_format": "png"}
SEVERAL = ONE | {"num_images": 3, "seed": 7}


def pixels(data: bytes) -> bytes:
    return Image.open(BytesIO(data)).convert("RGB").tobytes()


def inline(uri: str) -> bytes:
    return pixels(base64.b64decode(uri.partition(",")[2]))


@pytest.fixture
async def alone(client: httpx2.AsyncClient) -> list[bytes]:
    """The pictures of three edits, one of each seed."""
    answers = [await client.post(V1, json=ONE | {"seed": seed}) for seed in (7, 8, 9)]
    found = [pixels(answer.content) for answer in answers]
    assert len(set(found)) == 3
    return found


async def balance(client: httpx2.AsyncClient) -> float:
    told = (await client.get("/v1/get-user-credits")).json()
    return float(told["credits"] + told["free-credits"])


async def test_each_is_that_of_its_seed_and_costs_what_one_does(
    studio: Studio, client: httpx2.AsyncClient, alone: list[bytes]
) -> None:
    """In the answer of who waits, in the result, in the history, and behind links of their own."""
    before = await balance(client)
    job = (await client.post(V2, json=SEVERAL)).json()
    await followed(client, job["events_url"])
    assert before - await balance(client) == pytest.approx(3 * 0.04)
    result = (await client.get(job["response_url"])).json()
    assert (result["seed"], result["metrics"]["cost"], result["output"]) == (7, 0.12, result["images"][0]["url"])
    names = [image["file_name"] for image in result["images"]]
    assert names == [f"{job['request_id']}.png", f"{job['request_id']}-2.png", f"{job['request_id']}-3.png"]
    assert [pixels((await client.get(image["url"])).content) for image in result["images"]] == alone
    waited = (await client.post(V1, json=SEVERAL, headers=JSON)).json()
    assert [inline(image["url"]) for image in waited["images"]] == alone
    assert waited["output"] == waited["images"][0]["url"]
    whole = (await client.get(f"/console/api/requests/{job['request_id']}")).json()
    assert (whole["num_images"], whole["parameters"]["num_images"], len(whole["images"])) == (3, 3, 3)
    assert studio.fleet.requests[-1].pictures == 3


async def test_an_answer_that_is_a_picture_is_one(studio: Studio, client: httpx2.AsyncClient) -> None:
    answer = await client.post(V1, json=SEVERAL)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameters")
    [problem] = answer.json()["errors"]
    reason = "is 3, and an answer that is a picture is one (Accept: application/json has them all)"
    assert problem == {"parameter": "num_images", "value": 3, "allowed": "1, or nothing", "reason": reason}
    assert f"num_images {reason}" in answer.json()["error"]
    assert (await client.post(V1, json=GOOD | {"num_images": 1})).status_code == 200
    assert len(studio.fleet.requests) == 1


@pytest.mark.parametrize("count", [0, 5, "2", 1.5, True])
async def test_a_wrong_number_is_refused(client: httpx2.AsyncClient, count: object) -> None:
    answer = await client.post(V2, json=GOOD | {"num_images": count})
    assert [each["parameter"] for each in answer.json()["errors"]] == ["num_images"]
    assert "allowed: an integer from 1 to 4" in answer.json()["error"]


def test_a_request_for_one_has_the_digest_that_it_had_before() -> None:
    """Idempotency keys outlive an upgrade. The digest is what the code before made of it."""
    given: dict[str, Any] = {"prompt": "make it night", "input_image": "https://a.example/photo.jpg"}
    found = []
    for more in ({}, {"num_images": 1}, {"num_images": 2}):
        parameters, problems = parse(given | more)
        assert parameters is not None, problems
        found.append(_digest(parameters))
    assert found[0] == found[1] == "7aab6b0d754fa24f46708700a19aadf4b141b27e82a93993a31c9297bd6d2eed"
    assert found[2] != found[0]


async def test_an_estimate_knows_them(client: httpx2.AsyncClient) -> None:
    one, three = [(await client.get(f"/console/api/estimate?num_images={count}")).json() for count in (1, 3)]
    assert three["price"] == pytest.approx(3 * one["price"])


async def test_openai_has_n(client: httpx2.AsyncClient, alone: list[bytes]) -> None:
    """As base64 and as links; a stream has one."""
    document = (await openai_calls.form(client, n="3", num_inference_steps="6")).json()
    assert [pixels(base64.b64decode(each["b64_json"])) for each in document["data"]] == alone
    linked = (await openai_calls.form(client, n="2", response_format="url")).json()
    assert len({each["url"] for each in linked["data"]}) == 2
    refused = await openai_calls.form(client, n="2", stream="true")
    assert openai_calls.error(refused, 400, "invalid_parameters")["param"] == "n"


@pytest.mark.parametrize("is_inline", [False, True])
async def test_fal_has_num_images(client: httpx2.AsyncClient, alone: list[bytes], is_inline: bool) -> None:
    body = fal_calls.GOOD | {"num_images": 3, "seed": 7, "num_inference_steps": 6, "sync_mode": is_inline}
    found = (await client.post(fal_calls.RUN, json=body)).json()
    urls = [image["url"] for image in found["images"]]
    assert [inline(url) if is_inline else pixels((await client.get(url)).content) for url in urls] == alone
    assert (found["seed"], found["has_nsfw_concepts"]) == (7, [False] * 3)
