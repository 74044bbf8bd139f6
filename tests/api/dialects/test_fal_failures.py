"""fal's dialect where something goes wrong: in its form, and so that its clients don't make it worse."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from rekontext.database.tables import jobs
from rekontext.pictures import StoreUnavailable
from tests.api.conftest import MakeStudio
from tests.api.dialects.fal_calls import (
    APP,
    GOOD,
    INITIATE,
    PHOTO,
    RUN,
    SUBMIT,
    UPLOAD,
    URI,
    ended,
    submitted,
)
from tests.api.studio import STRANGER, Studio, gone
from tests.pictures.samples import encoded, gradient

pytestmark = pytest.mark.anyio


async def test_wrong_parameters_are_listed_under_their_names(client: httpx2.AsyncClient) -> None:
    """All of them at once: in `detail` as the vendor's clients take them apart, and as one sentence."""
    wrong = {
        "image_url": "not a picture!",
        "guidance_scale": 99,
        "num_images": 5,
        "sync_mode": "yes",
        "enable_safety_checker": 1,
        "resolution_mode": "7:5",
        "output_format": "gif",
    }
    answer = await client.post(RUN, json=wrong)
    body = answer.json()
    assert answer.status_code == 422
    assert {tuple(each["loc"]): each["type"] for each in body["detail"]} == {
        ("body", "prompt"): "missing",
        **{("body", name): "value_error" for name in wrong},
    }
    said = {each["loc"][1]: each["msg"] for each in body["detail"]}
    assert said["num_images"] == "num_images is 5 (allowed: an integer from 1 to 4)"
    assert said["guidance_scale"] == "guidance_scale is 99 (allowed: a number from 0 to 10)"
    assert all(sentence in body["message"] for sentence in said.values())
    assert (body["error_type"], body["code"]) == ("invalid_parameters", "invalid_parameters")
    assert answer.headers["x-fal-error-type"] == "invalid_parameters"
    assert answer.headers["x-fal-request-id"] == body["request_id"]


@pytest.mark.parametrize(
    "given",
    [
        {"strength": 0.5},
        {"reference_image_url": URI + "a"},
        {"image_urls": [URI]},
        {"negative_prompt": "x"},
        {"image_size": "tall"},
        {"image_size": {"width": 7}},
    ],
)
async def test_what_cannot_be_heeded_is_refused(client: httpx2.AsyncClient, given: dict[str, Any]) -> None:
    """By its name."""
    answer = await client.post(SUBMIT, json=GOOD | given)
    assert [each["loc"] for each in answer.json()["detail"]] == [["body", name] for name in given]


async def test_a_photo_that_turns_out_to_be_cut_off(client: httpx2.AsyncClient) -> None:
    """The job is COMPLETED as every one that ended, and its result says what was wrong, under the vendor's name."""
    whole = encoded(gradient(64, 64))
    cut = f"data:image/png;base64,{base64.b64encode(whole[: len(whole) // 2]).decode()}"
    job = await submitted(client, image_url=cut)
    status = await ended(client, job)
    assert status["status"] == "COMPLETED"
    assert status["error"].startswith("image_url can't be used")
    result = await client.get(job["response_url"])
    assert result.status_code == 422
    [problem] = result.json()["detail"]
    assert problem["loc"] == ["body", "image_url"]
    assert "cut off" in problem["msg"]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/fal/run/fal-ai/flux/dev", "fal-ai/flux/dev"),
        ("/fal/run/fal-ai/flux/dev/stream", "fal-ai/flux/dev"),
        ("/fal/queue/fal-ai/flux-kontext", "fal-ai/flux-kontext"),
        ("/fal/queue/workflows/me/mine", "workflows/me/mine"),
    ],
)
async def test_another_app_is_unknown(client: httpx2.AsyncClient, path: str, named: str) -> None:
    """And said so by its name."""
    answer = await client.post(path, json=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert f'"{named}"' in answer.json()["detail"]
    assert APP in answer.json()["message"]


async def test_another_app_has_no_requests(client: httpx2.AsyncClient) -> None:
    """Not even those that are there."""
    job = await submitted(client)
    for method, path in (("GET", ""), ("GET", "/status"), ("PUT", "/cancel")):
        answer = await client.request(method, f"/fal/queue/fal-ai/flux/requests/{job['request_id']}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")


async def test_failures_around_an_edit_have_the_vendor_s_form(studio: Studio, client: httpx2.AsyncClient) -> None:
    """A key that is none, a body that is none, a method, a path, an account that can't pay."""
    poor = studio.new_account("poor").secret
    told = {
        "invalid_api_key": await client.post(RUN, json=GOOD, headers={"x-api-key": STRANGER}),
        "missing_api_key": await client.post(RUN, json=GOOD, headers={"x-api-key": ""}),
        "malformed_body": await client.post(RUN, content=b"{", headers={"content-type": "application/json"}),
        "unsupported_content_type": await client.post(RUN, files={"image_url": PHOTO}),
        "method_not_allowed": await client.get(RUN),
        "not_found": await client.post("/fal/rest/tokens/", json={}),
        "insufficient_credits": await client.post(RUN, json=GOOD, headers={"x-api-key": poor}),
    }
    statuses = {code: answer.status_code for code, answer in told.items()}
    assert list(statuses.values()) == [401, 401, 400, 415, 405, 404, 402]
    for code, answer in told.items():
        body = answer.json()
        assert (body["code"], body["error_type"]) == (code, code)
        assert body["detail"] == body["message"] != ""
        assert answer.headers["x-fal-request-id"] == answer.headers["x-request-id"] == body["request_id"]
        assert answer.headers["x-fal-error-type"] == code


async def test_an_idempotency_key_that_comes_with_another_edit(client: httpx2.AsyncClient) -> None:
    """Not a 409, after which the Python client asks ten times."""
    key = {"idempotency-key": "mine"}
    first = await client.post(RUN, json=GOOD, headers=key)
    same = await client.post(RUN, json=GOOD, headers=key)
    other = await client.post(RUN, json=GOOD | {"prompt": "another"}, headers=key)
    assert first.headers["x-fal-request-id"] == same.headers["x-fal-request-id"]
    assert (other.status_code, other.json()["code"]) == (400, "idempotency_key_reused")


async def test_an_edit_that_goes_on_is_not_ordered_again(make_studio: MakeStudio) -> None:
    """The JavaScript client repeats after any 504 that isn't its user's own doing, and after a 503."""
    studio = make_studio(deadline_s=0.05)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        late = await client.post(RUN, json=GOOD)
        studio.fleet.may_step.set()
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert late.headers["x-fal-request-timeout-type"] == "user"
    assert late.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["", "/status"])
async def test_a_poll_while_the_database_is_away_is_to_be_repeated(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """By a 429, after which both clients ask again: after a 503 the Python client would lose an edit that is paid."""
    job = await submitted(client)
    await ended(client, job)
    with monkeypatch.context() as broken:
        broken.setattr(studio.service.parts.database, "read", gone)
        answer = await client.get(f"{job['response_url']}{path}")
    assert (answer.status_code, answer.json()["code"]) == (429, "database_unavailable")
    assert (await client.get(f"{job['response_url']}{path}")).status_code == 200


async def test_submits_and_uploads_are_counted_and_polls_are_not(make_studio: MakeStudio) -> None:
    """The Python client asks ten times a second."""
    async with make_studio(requests_per_minute=3).open() as client:
        job = await submitted(client)
        await client.post(UPLOAD, content=PHOTO)
        await client.post(INITIATE, json={})
        for _ in range(20):
            assert (await client.get(job["status_url"])).status_code == 200
        for path, body in ((SUBMIT, GOOD), (INITIATE, {}), (UPLOAD, {})):
            full = await client.post(path, json=body)
            assert (full.status_code, full.json()["code"]) == (429, "rate_limited")


async def test_a_result_whose_picture_is_gone(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Is a 404, not a list without pictures, into which programs would reach."""
    job = await submitted(client)
    await ended(client, job)
    row = jobs.update().where(jobs.c.id == job["request_id"])
    studio.act(lambda tx, _: tx.execute(row.values(files_until=datetime.now(UTC) - timedelta(seconds=1))))
    answer = await client.get(job["response_url"])
    assert (answer.status_code, answer.json()["code"]) == (404, "file_gone")


async def test_a_webhook_that_may_not_be_called(client: httpx2.AsyncClient) -> None:
    """Is refused under the name of the query's field."""
    answer = await client.post(SUBMIT, params={"fal_webhook": "http://127.0.0.1/"}, json=GOOD)
    assert [each["loc"] for each in answer.json()["detail"]] == [["query", "fal_webhook"]]


async def test_a_picture_that_cannot_be_read_just_now(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit is done and paid: not a 503, after which the JavaScript client orders another."""

    async def away(_key: str) -> bytes:
        raise StoreUnavailable("no route")

    job = await submitted(client, sync_mode=True)
    await ended(client, job)
    monkeypatch.setattr(studio.service.parts.objects, "get", away)
    answer = await client.get(job["response_url"])
    assert (answer.status_code, answer.json()["code"]) == (500, "store_unavailable")
