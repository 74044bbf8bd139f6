"""Replicate's dialect on the wire: every refusal as its clients read one."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from tests.api.dialects.replicate_calls import CREATE, GOOD, HELD, INPUT, MODEL, PREDICTIONS
from tests.api.studio import Studio

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "agent",
    ["replicate-python/1.0.7", "replicate-javascript/1.4.0", "Replicate/Python 2.0.0b4"],
)
async def test_its_clients_read_what_is_wrong_at_other_paths(client: httpx2.AsyncClient, agent: str) -> None:
    """At the one that is OpenAI's too, and below a wrong base URL, which the sentence shows."""
    client.headers["user-agent"] = agent
    refused = await client.get("/v1/models", headers={"x-api-key": "rk_no"})
    assert (refused.status_code, refused.json()["title"]) == (401, "Invalid api key")
    nowhere = await client.post(f"/v1{CREATE}", json=GOOD)
    assert (nowhere.status_code, f"nothing at /v1{CREATE};" in nowhere.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"guidance": 99}, "guidance is 99 (allowed: a number from 0 to 10)"),
        ({"prompt": None}, "prompt is missing"),
        ({"input_image": 7}, "input_image is 7"),
        ({"num_outputs": 2}, "num_outputs can't be heeded here (allowed: 1, or nothing)"),
        ({"megapixels": "0.25"}, 'megapixels can\'t be heeded here (allowed: "1", or nothing)'),
        ({"input_image_2": "https://a.example/m.png"}, "input_image_2 can't be heeded here (allowed: nothing)"),
        ({"size": "2000x1000"}, "size has no shape of ours"),
        ({"negative_prompt": "blur"}, "negative_prompt can't be heeded here"),
    ],
)
async def test_a_wrong_input_is_named(client: httpx2.AsyncClient, wrong: dict[str, Any], sentence: str) -> None:
    """In `detail`, which all clients show, and in no list, on which one of them breaks."""
    answer = await client.post(CREATE, json={"input": INPUT | wrong}, headers=HELD)
    document = answer.json()
    assert (answer.status_code, document["status"], document["code"]) == (422, 422, "invalid_parameters")
    assert sentence in document["detail"]
    assert document["title"] == "Invalid parameters"
    assert document["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "input is no object"),
        ({"input": [1]}, "input is no object"),
        (GOOD | {"webhook_events_filter": "completed"}, "webhook_events_filter is no list"),
        (GOOD | {"webhook": "ftp://a.example"}, "webhook is"),
        (GOOD | {"webhook": "http://10.0.0.1/"}, "webhook can't be told"),
    ],
)
async def test_a_wrong_body_is_said(client: httpx2.AsyncClient, body: dict[str, Any], sentence: str) -> None:
    """What is beside the input, too."""
    answer = await client.post(CREATE, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
    assert sentence in answer.json()["detail"]


async def test_a_key_in_the_input_is_refused_and_never_written(studio: Studio, client: httpx2.AsyncClient) -> None:
    """One client sends itself as the input, its key included: neither the log nor the answer repeats it."""
    with capture_logs() as log:
        answer = await client.post(CREATE, json={"input": {"auth": studio.key, "baseUrl": "x"}}, headers=HELD)
    assert answer.status_code == 422
    assert "auth has a key in it" in answer.json()["detail"]
    assert log
    assert studio.key not in answer.text + repr(log)
    assert (await client.get(PREDICTIONS)).json()["results"] == []


async def test_another_model_is_not_here(client: httpx2.AsyncClient) -> None:
    """It is named, whichever way it was asked for."""
    other = "stability-ai/sdxl"
    for method, path, body in (
        ("POST", f"/v1/models/{other}/predictions", GOOD),
        ("POST", PREDICTIONS, GOOD | {"model": other}),
        ("POST", PREDICTIONS, GOOD | {"version": f"{other}:1"}),
        ("GET", f"/v1/models/{other}", None),
        ("GET", f"/v1/models/{other}/versions", None),
        ("GET", f"/v1/models/{other}/versions/1", None),
        ("GET", f"/v1/models/{MODEL}/versions/{other[:4]}", None),
    ):
        answer = await client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model"), path
        assert other[:4] in answer.json()["detail"]
        assert MODEL in answer.json()["detail"]


async def test_who_can_t_pay_is_told_402(studio: Studio) -> None:
    """On which no client tries again."""
    async with studio.open(), studio.client(studio.new_account("poor").secret) as poor:
        answer = await poor.post(CREATE, json=GOOD, headers=HELD)
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_credits")
    assert answer.json()["status"] == 402


async def test_other_failures_have_the_same_form(client: httpx2.AsyncClient) -> None:
    """Also of what no route answers."""
    form = {"prompt": (None, "x")}
    for answer, status, code in (
        (await client.post(CREATE, files=form), 415, "unsupported_content_type"),
        (await client.post("/v1/files", json={}), 415, "unsupported_content_type"),
        (await client.post(CREATE, content=b"{", headers={"content-type": "application/json"}), 400, "malformed_body"),
        (await client.get(f"{PREDICTIONS}/nobody-s"), 404, "request_not_found"),
        (await client.get("/v1/files/nobody-s"), 404, "file_unknown"),
        (await client.delete("/v1/account/x"), 404, "not_found"),
        (await client.get(f"{PREDICTIONS}/x", headers={"x-api-key": "rk_no"}), 401, "invalid_api_key"),
    ):
        document = answer.json()
        assert (answer.status_code, document["status"]) == (status, status), answer.text
        assert set(document) == {"title", "detail", "status", "code", "request_id"}
        assert document["code"] == code
