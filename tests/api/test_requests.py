"""Jobs over HTTP: submitted, asked for, cancelled, and found again with their pictures."""

from __future__ import annotations

import asyncio
from datetime import datetime
from io import BytesIO
from typing import Any

import httpx2
import pytest
from PIL import Image

from rekontext.api.documents import MINI_NOTICE
from rekontext.contract import EditRefused
from rekontext.database import JobId
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V1, V2
from tests.api.orders import followed as followed
from tests.api.orders import parsed as parsed
from tests.api.studio import SOON_S, PillowFleet, Studio

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_mini", [True, False])
async def test_a_prompt_that_was_not_read_whole_is_told(make_studio: MakeStudio, is_mini: bool) -> None:
    """With the picture, its facts and its record: it was paid for as one that was."""
    fleet = PillowFleet(is_mini=is_mini)
    async with make_studio(fleet).open() as client:
        whole = await client.post(V1, json=GOOD)
        fleet.prompt_tokens = 512
        cut = await client.post(V1, json=GOOD)
        result = (await client.get(f"/v2/requests/{cut.headers['x-request-id']}")).json()
    told = "The model reads 512 tokens of a prompt; what this one has beyond them was left out."
    assert result["notice"] == cut.headers["x-rekontext-notice"] == (f"{MINI_NOTICE} {told}" if is_mini else told)
    assert told not in whole.headers.get("x-rekontext-notice", "")


async def test_a_result_names_the_model_that_made_it(make_studio: MakeStudio) -> None:
    """Started with other weights, or while these are still loading, the service says of old results what was true."""
    known = {"idempotency-key": "k"}
    async with make_studio().open() as client:
        first = await client.post(V1, json=GOOD, headers=known)
    job = first.headers["x-request-id"]
    fleet = PillowFleet(is_mini=False)
    fleet.may_start.clear()
    async with make_studio(fleet).open() as client:
        while_loading = (await client.get(f"/v2/requests/{job}")).json()
        fleet.may_start.set()
        again = await client.post(V1, json=GOOD, headers=known)
        result = (await client.get(f"/v2/requests/{job}")).json()
    assert (result["model"], result["notice"]) == ("mini", MINI_NOTICE)
    assert (while_loading["model"], while_loading["notice"]) == ("mini", MINI_NOTICE)
    assert "model" not in result["metrics"]
    for name in ("x-request-id", "x-rekontext-model", "x-rekontext-notice"):
        assert again.headers[name] == first.headers[name]


async def test_submit_poll_result(client: httpx2.AsyncClient) -> None:
    """The answers to a submit, to polls and for the result fit together, under absolute URLs."""
    submitted = (await client.post(V2, json=GOOD)).json()
    job = submitted["request_id"]
    assert submitted["status"] == "QUEUED"
    assert submitted["status_url"] == f"http://studio/v2/requests/{job}/status"
    assert submitted["response_url"] == f"http://studio/v2/requests/{job}"
    assert submitted["poll_url"] == f"http://studio/v1/requests/{job}"
    await followed(client, submitted["events_url"])
    status = await client.get(submitted["status_url"])
    assert (status.status_code, status.json()["status"]) == (200, "COMPLETED")
    assert status.json()["metrics"]["cost"] == 0.04
    result = (await client.get(submitted["response_url"])).json()
    assert result["output"].startswith("http://studio/files/outputs/")
    picture = await client.get(result["output"], headers={"x-api-key": ""})
    assert Image.open(BytesIO(picture.content)).size == (48, 32)
    [image] = result["images"]
    assert (image["width"], image["height"], image["file_size"]) == (48, 32, len(picture.content))
    assert (result["seed"], result["prompt"], result["error"]) == (777, "invert it", None)
    assert result["metrics"]["remaining_credits"] == pytest.approx(9.96)
    assert result["metrics"]["total_time"] >= result["metrics"]["queue_time"] >= 0
    assert (await client.get(submitted["poll_url"])).json()["status"] == "COMPLETED"


async def test_an_edit_that_ends_while_it_is_asked_for_is_answered_with_its_result(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with 202 and COMPLETED: whoever stops there has paid for a picture that it doesn't see."""
    desk = studio.service.parts.desk
    standing, studio.fleet.fault = desk.standing, None
    studio.fleet.may_step.clear()

    async def late(job: JobId, *, account: Any) -> Any:
        studio.fleet.may_step.set()
        await desk.wait(job, account=account, timeout_s=SOON_S)
        return await standing(job, account=account)

    async with studio.open() as client:
        for fault, status in ((None, 200), (EditRefused("no"), 422)):
            studio.fleet.fault = fault
            submitted = (await client.post(V2, json=GOOD)).json()
            with monkeypatch.context() as patch:
                patch.setattr(desk, "standing", late)
                answer = await client.get(submitted["response_url"])
            assert answer.status_code == status
            assert ("output" in answer.json(), "code" in answer.json()) == (status == 200, status == 422)
            studio.fleet.may_step.clear()


async def test_a_cancel_makes_the_job_free(studio: Studio) -> None:
    """A running one stops within a step; asking twice changes nothing; it ends as 422."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        submitted = (await client.post(V2, json=GOOD)).json()
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        cancelled = (await client.post(submitted["cancel_url"])).json()
        assert (cancelled["cancelled"], cancelled["cancel_requested"]) == (True, True)
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        events = await followed(client, submitted["events_url"])
        assert (events[-1][0], events[-1][2]["status"]) == ("done", "CANCELLED")
        result = await client.get(submitted["response_url"])
        assert (result.status_code, result.json()["status"], result.json()["code"]) == (422, "CANCELLED", "cancelled")
        assert "cost" not in result.json()["metrics"]
        assert (await client.post(submitted["cancel_url"])).json()["cancelled"] is True
        assert (await client.get("/v1/get-user-credits")).json() == {"credits": 0.0, "free-credits": 10.0}


async def test_a_finished_job_can_t_be_cancelled(client: httpx2.AsyncClient) -> None:
    """It stays as it is, and the answer says so."""
    submitted = (await client.post(V2, json=GOOD)).json()
    await followed(client, submitted["events_url"])
    answer = await client.post(submitted["cancel_url"])
    assert (answer.status_code, answer.json()["cancelled"], answer.json()["status"]) == (200, False, "COMPLETED")


async def test_a_failed_job_is_a_422_and_free(studio: Studio) -> None:
    """With the reason, and without a cost."""
    studio.fleet.fault = EditRefused("this model takes at most 24 words")
    async with studio.open() as client:
        submitted = (await client.post(V2, json=GOOD)).json()
        await followed(client, submitted["events_url"])
        for url in (submitted["status_url"], submitted["response_url"]):
            answer = await client.get(url)
            assert (answer.status_code, answer.json()["status"]) == (422, "FAILED")
            assert answer.json()["error"] == "This model takes at most 24 words."
            assert "cost" not in answer.json()["metrics"]
        assert (await client.get("/v1/get-user-credits")).json()["free-credits"] == 10


async def test_a_waiting_caller_hears_of_a_cancel_by_another(studio: Studio) -> None:
    """409, since the edit was not refused and nobody failed."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        waiting = asyncio.create_task(client.post(V1, json=GOOD))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        [row] = (await client.get("/console/api/requests")).json()["data"]
        await client.post(f"/v2/requests/{row['request_id']}/cancel")
        answer = await asyncio.wait_for(waiting, SOON_S)
    assert (answer.status_code, answer.json()["code"]) == (409, "cancelled")


async def test_another_account_s_job_is_not_found(studio: Studio) -> None:
    """To look at, to follow and to cancel."""
    stranger = studio.new_account("stranger").secret
    async with studio.open() as client, studio.client(stranger) as other:
        submitted = (await client.post(V2, json=GOOD)).json()
        calls = [other.get(submitted[name]) for name in ("status_url", "response_url", "poll_url", "events_url")]
        for call in (*calls, other.post(submitted["cancel_url"])):
            answer = await call
            assert (answer.status_code, answer.json()["code"]) == (404, "request_not_found")
            assert answer.json()["error"] == f"Request {submitted['request_id']} not found."
        await followed(client, submitted["events_url"])


async def test_a_job_outlives_the_server(make_studio: MakeStudio) -> None:
    """Accepted by one process, finished by the next: the second finds it in the database."""
    first = make_studio()
    first.fleet.may_step.clear()
    async with first.open() as client:
        submitted = (await client.post(V2, json=GOOD)).json()
        await asyncio.wait_for(first.fleet.began.wait(), SOON_S)
    second = make_studio()
    async with second.open() as client:
        events = await followed(client, submitted["events_url"])
        assert events[-1][2]["status"] == "COMPLETED"
        assert (await client.get("/v1/get-user-credits")).json()["free-credits"] == pytest.approx(9.96)
    assert first.fleet.steps_done == 0


@pytest.mark.parametrize(
    ("kept", "is_gone"),
    [
        ({"keep_outputs_s": 3600}, False),
        ({"keep_outputs_s": 3600, "keep_records_s": 1800}, False),
        ({"keep_outputs_s": 0.001}, True),
        ({"keep_records_s": 0.001}, True),
    ],
)
async def test_links_end_with_their_files(make_studio: MakeStudio, kept: dict[str, float], is_gone: bool) -> None:
    """A link never outlives the time that its picture is kept, which goes with the record at the latest."""
    studio = make_studio(**kept)
    async with studio.open() as client:
        submitted = (await client.post(V2, json=GOOD)).json()
        done = (await followed(client, submitted["events_url"]))[-1][2]
        rows = (await client.get("/console/api/requests")).json()["data"]
        if is_gone:  # though no sweep has been by
            assert (done["output"], done["images"], rows[0]["output"]) == (None, [], None)
        else:
            for link in (done["output"], rows[0]["output"]):
                assert (await client.get(link)).status_code == 200
                ended = datetime.fromisoformat(rows[0]["finished_at"]).timestamp()
                assert int(httpx2.URL(link).params["expires"]) == pytest.approx(ended + min(kept.values()), abs=1)
