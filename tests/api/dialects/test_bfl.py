"""Black Forest Labs' dialect on the wire."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, Final

import httpx2
import pytest
from sqlalchemy import select

from rekontext.contract import EngineFault
from rekontext.database.tables import webhook_deliveries
from rekontext.safety import PictureWithheld
from tests.api.orders import followed
from tests.api.studio import SOON_S, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

PATH: Final = "/v1/flux-kontext-dev"
ASKED: Final = {"prompt": "invert it", "input_image": base64.b64encode(photo_bytes()).decode(), "steps": 4}


@pytest.fixture
def client(studio: Studio, client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """The studio's client, with its key in that vendor's header."""
    client.headers["x-key"] = client.headers.pop("x-api-key")
    return client


async def ended(client: httpx2.AsyncClient, **asked: Any) -> dict[str, Any]:
    """The result of an edit that has ended."""
    task = (await client.post(PATH, json={**ASKED, **asked})).json()
    await followed(client, f"/v2/requests/{task['id']}/events")
    answer = await client.get(task["polling_url"])
    assert answer.status_code == 200
    return dict(answer.json())


async def test_a_task_is_pending_until_it_is_ready(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Its link is absolute, its progress a fraction of the steps; at its end there is a link to the picture."""
    studio.fleet.may_step.clear()
    task = (await client.post(PATH, json=ASKED)).json()
    assert task["polling_url"] == f"http://studio/v1/get_result?id={task['id']}"
    await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
    pending = (await client.get(task["polling_url"])).json()
    assert (pending["status"], pending["progress"], pending["result"]) == ("Pending", 0.0, None)
    studio.fleet.may_step.set()
    await followed(client, f"/v2/requests/{task['id']}/events")
    ready = (await client.get(task["polling_url"])).json()
    assert (ready["status"], ready["id"], ready["error"]) == ("Ready", task["id"], None)
    assert (ready["result"]["prompt"], ready["result"]["model"]) == ("invert it", "mini")
    assert 0 <= ready["result"]["end_time"] - ready["result"]["start_time"] < SOON_S
    assert (await client.get(ready["result"]["sample"], headers={"x-key": ""})).headers["content-type"] == "image/png"


async def test_what_is_left_out_is_as_the_vendor_has_it(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Steps and guidance; and jpeg is our jpg."""
    result = await ended(client, steps=None, output_format="jpeg", safety_tolerance=2, prompt_upsampling=False)
    [request] = studio.fleet.requests
    assert (request.steps, request.guidance, request.seed) == (30, 2.5, result["result"]["seed"])
    assert ".jpg" in result["result"]["sample"]


async def test_a_size_chooses_the_shape(studio: Studio, client: httpx2.AsyncClient) -> None:
    """The AI SDK sends it beside the ratio, which goes before it."""
    size = {"width": 1536, "height": 1024}
    await ended(client, **size)
    await ended(client, **size, aspect_ratio="1:1")
    assert [request.aspect_ratio for request in studio.fleet.requests] == ["3:2", "1:1"]
    wrong = await client.post(PATH, json={**ASKED, "width": 2, "height": 1})
    assert "width has no shape of ours" in wrong.json()["detail"]
    assert (await client.post(PATH, json={**ASKED, "height": 512})).status_code == 422


async def test_the_header_tells_it_from_our_own_surface(client: httpx2.AsyncClient) -> None:
    """On the path that both have, and on the one that is only here."""
    key = client.headers.pop("x-key")
    own = await client.post(PATH, json={"prompt": "", "input_image": "x"}, headers={"x-api-key": key})
    theirs = await client.post(PATH, json={"prompt": "", "input_image": "x"}, headers={"x-key": key})
    assert ("error" in own.json(), "detail" in own.json(), own.status_code) == (True, False, 400)
    assert ("error" in theirs.json(), "detail" in theirs.json(), theirs.status_code) == (False, True, 422)
    other = await client.post("/v1/flux-kontext-pro", json=ASKED, headers={"x-api-key": key})
    assert (other.status_code, other.json()["code"]) == (404, "unknown_model")


async def test_another_model_is_refused_with_the_names_that_there_are(client: httpx2.AsyncClient) -> None:
    """The vendor's package knows only one of them."""
    answer = await client.post("/v1/flux-pro-1.1", json=ASKED)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert "flux-kontext-dev, flux-kontext-pro" in answer.json()["message"]


async def test_refusals_are_in_its_form(studio: Studio, client: httpx2.AsyncClient) -> None:
    """`detail` and `message`, under its names; what can't be heeded by name; who can't pay gets a 402."""
    more = {"input_image_2": "x", "prompt_upsampling": True, "webhook_secret": "s"}
    wrong = await client.post(PATH, json={**ASKED, "steps": 99, **more})
    assert wrong.status_code == 422
    assert wrong.json()["detail"] == wrong.json()["message"]
    said = ("input_image_2 can't", "(allowed: false, or nothing)", "webhook_secret can't")
    for says in ("steps is 99 (allowed: an integer from 4 to 50)", *said):
        assert says in wrong.json()["detail"]
    assert (await client.post(PATH, json=ASKED, headers={"x-key": ""})).status_code == 401
    poor = studio.new_account("poor")
    answer = await client.post(PATH, json=ASKED, headers={"x-key": poor.secret})
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_credits")
    unknown = await client.get("/v1/get_result?id=nothing")
    assert (unknown.status_code, unknown.json()["status"]) == (404, "Task not found")
    form = await client.post(PATH, data={"prompt": "x"}, files={"input_image": photo_bytes()})
    assert (form.status_code, form.json()["code"]) == (415, "unsupported_content_type")


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (EngineFault("it broke"), "Error", "a fault of ours"),
        (PictureWithheld("the picture is withheld"), "Content Moderated", "withheld"),
    ],
)
async def test_an_end_without_a_picture_is_told_by_its_word(
    studio: Studio, client: httpx2.AsyncClient, fault: Exception, status: str, says: str
) -> None:
    """And why, for people."""
    studio.fleet.fault = fault
    result = await ended(client)
    assert (result["status"], result["result"]) == (status, None)
    assert says in result["error"]


async def test_a_webhook_is_told_the_result(studio: Studio, client: httpx2.AsyncClient) -> None:
    """As it would be asked for; the account's own webhooks hear of it as of any edit."""
    task = await client.post(PATH, json={**ASKED, "webhook_url": "https://example.com/hook"})
    await followed(client, f"/v2/requests/{task.json()['id']}/events")
    told = studio.act(lambda tx, _: tx.execute(select(webhook_deliveries.c.body)).scalars().all())
    [message] = [json.loads(body) for body in told]
    assert (message["id"], message["status"]) == (task.json()["id"], "Ready")
    assert message["result"]["sample"].startswith("http://studio/files/")
