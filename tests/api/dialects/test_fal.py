"""fal's dialect on the wire: calls that wait, its queue, streams, and one URL for all of them."""

from __future__ import annotations

import asyncio
import base64
import json
from io import BytesIO
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from PIL import Image
from sqlalchemy import select

from rekontext.contract import EngineFault
from rekontext.database import AccountId, JobId
from rekontext.database.tables import webhook_deliveries
from rekontext.jobs import Job
from tests.api.caller import Caller, only_request
from tests.api.conftest import MakeStudio
from tests.api.dialects.fal_calls import (
    APP,
    GOOD,
    PHOTO,
    REQUESTS,
    RUN,
    SUBMIT,
    URI,
    ended,
    frames,
    parameters,
    submitted,
)
from tests.api.studio import SEED_DRAWN, SOON_S, Studio, gone

pytestmark = pytest.mark.anyio


async def test_a_call_that_waits_is_answered_with_the_result(studio: Studio, client: httpx2.AsyncClient) -> None:
    """In the vendor's fields, with a link that opens without a key, under the job's name, with what it took beside."""
    answer = await client.post(RUN, json=GOOD | {"seed": 7})
    result = answer.json()
    [image] = result["images"]
    picture = httpx2.URL(image.pop("url"))
    assert image == {
        "content_type": "image/png",
        "width": 48,
        "height": 32,
        "file_name": image["file_name"],
        "file_size": image["file_size"],
    }
    assert set(result) == {"images", "seed", "prompt", "has_nsfw_concepts", "timings", "model", "notice"}
    assert (result["seed"], result["prompt"], result["has_nsfw_concepts"]) == (7, "make it night", [False])
    assert result["timings"]["inference"] > 0
    assert answer.headers["x-cost"] == "0.04"
    async with studio.client("") as stranger:
        assert len((await stranger.get(str(picture))).content) == image["file_size"]
    same = await client.get(f"{REQUESTS}/{answer.headers['x-fal-request-id']}")
    assert same.json()["seed"] == 7


async def test_what_is_left_out_is_as_at_the_vendor(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Steps, guidance, type, shape and check."""
    answer = await client.post(RUN, json={"prompt": "make it night", "image_url": URI})
    assert answer.json()["seed"] == SEED_DRAWN
    kept = parameters(studio, answer.headers["x-fal-request-id"])
    assert (kept["num_inference_steps"], kept["guidance"], kept["acceleration"]) == (30, 2.5, "none")
    assert (kept["output_format"], kept["aspect_ratio"]) == ("png", "match_input_image")
    assert (kept["disable_safety_checker"], kept["priority"], kept["dialect"]) == (
        False,
        0,
        {"name": "fal", "is_inline": False},
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"guidance_scale": 3.5}, {"guidance": 3.5}),
        ({"output_format": "jpeg"}, {"output_format": "jpg"}),
        ({"output_format": "webp"}, {"output_format": "webp"}),
        ({"enable_safety_checker": False}, {"disable_safety_checker": True}),
        ({"enable_safety_checker": True}, {"disable_safety_checker": False}),
        ({"acceleration": "high"}, {"acceleration": "high"}),
        ({"resolution_mode": "match_input"}, {"aspect_ratio": "match_input_image"}),
        ({"resolution_mode": "auto"}, {"aspect_ratio": "match_input_image"}),
        ({"resolution_mode": "16:9"}, {"aspect_ratio": "16:9"}),
        ({"aspect_ratio": "3:4"}, {"aspect_ratio": "3:4"}),
        ({"aspect_ratio": "3:4", "resolution_mode": "1:1"}, {"aspect_ratio": "1:1"}),
        ({"image_size": "landscape_4_3"}, {"aspect_ratio": "4:3"}),
        ({"image_size": {"width": 512, "height": 768}}, {"aspect_ratio": "2:3"}),
        ({"image_size": "square", "aspect_ratio": "3:4"}, {"aspect_ratio": "3:4"}),
        ({"num_images": 1, "enhance_prompt": False, "loras": [], "user": "x"}, {"prompt": "make it night"}),
    ],
)
async def test_the_vendor_s_parameters_are_heeded(
    studio: Studio, client: httpx2.AsyncClient, given: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Each under its own name, with its own values."""
    job = await submitted(client, **given)
    assert parameters(studio, job["request_id"]).items() >= kept.items()


@pytest.mark.parametrize(("said", "priority"), [("low", -1), ("normal", 0)])
async def test_the_header_of_the_queue_says_how_urgent_an_edit_is(
    studio: Studio, client: httpx2.AsyncClient, said: str, priority: int
) -> None:
    """The JavaScript client always sends it."""
    answer = await client.post(SUBMIT, json=GOOD, headers={"x-fal-queue-priority": said})
    assert parameters(studio, answer.json()["request_id"])["priority"] == priority


async def test_a_submit_s_answer_has_absolute_urls_that_answer(studio: Studio, client: httpx2.AsyncClient) -> None:
    """All four that the Python client asks for, without the endpoint's last part, and a place in the queue."""
    studio.fleet.may_step.clear()
    job = await submitted(client)
    url = f"http://studio{REQUESTS}/{job['request_id']}"
    assert [job[f"{name}_url"] for name in ("response", "status", "cancel")] == [url, f"{url}/status", f"{url}/cancel"]
    assert job["status"] in ("IN_QUEUE", "IN_PROGRESS")
    await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
    studio.fleet.may_step.set()
    assert (await ended(client, job))["metrics"]["inference_time"] > 0
    assert (await client.get(url)).json()["prompt"] == "make it night"


async def test_a_status_has_what_its_word_promises(make_studio: MakeStudio) -> None:
    """A place while it waits, and logs: a missing one is an error in the Python client's own code."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        runs = await submitted(client)
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        waits = await submitted(client)
        running = await client.get(runs["status_url"], params={"logs": "1"})
        waiting = (await client.get(waits["status_url"])).json()
        studio.fleet.may_step.set()
        done = await ended(client, waits)
    assert (running.json()["status"], running.json()["logs"]) == ("IN_PROGRESS", [])
    assert running.headers["x-fal-request-id"] == runs["request_id"]
    assert (waiting["status"], waiting["queue_position"] >= 1) == ("IN_QUEUE", True)
    assert (done["status"], done["logs"]) == ("COMPLETED", [])
    assert set(done) == set(running.json()) == set(waiting) - {"queue_position"}


async def test_a_result_that_is_asked_for_too_early_is_no_result(studio: Studio, client: httpx2.AsyncClient) -> None:
    """What the vendor says then; neither client asks again by itself."""
    studio.fleet.may_step.clear()
    job = await submitted(client)
    early = await client.get(job["response_url"])
    assert (early.status_code, early.json()["detail"]) == (400, "Request is still in progress.")
    assert early.headers["x-fal-request-id"] == job["request_id"]
    studio.fleet.may_step.set()
    await ended(client, job)
    assert (await client.get(job["response_url"])).status_code == 200


async def test_a_job_of_any_dialect_is_found_in_this_one(studio: Studio, client: httpx2.AsyncClient) -> None:
    """And the other way round; not by another account."""
    ours = await client.post("/v2/flux-kontext-dev", json={"prompt": "x", "input_image": URI, "seed": 3})
    await client.get(ours.json()["events_url"])
    theirs = await client.get(f"{REQUESTS}/{ours.json()['request_id']}")
    assert theirs.json()["seed"] == 3
    job = await submitted(client, seed=4)
    await ended(client, job)
    assert (await client.get(f"/v2/requests/{job['request_id']}")).json()["seed"] == 4
    async with studio.client(studio.new_account("stranger").secret) as stranger:
        for path in ("", "/status", "/status/stream"):
            answer = await stranger.get(f"{job['response_url']}{path}")
            assert (answer.status_code, answer.json()["error_type"]) == (404, "request_not_found")


async def test_a_picture_in_the_result_itself(studio: Studio, client: httpx2.AsyncClient) -> None:
    """By every way to the result, however long ago it was asked for so; its history doesn't speak of it."""
    waited = await client.post(RUN, json=GOOD | {"sync_mode": True, "output_format": "jpeg"})
    streamed = await client.post(f"{RUN}/stream", json=GOOD | {"sync_mode": True, "output_format": "jpeg"})
    job = await submitted(client, sync_mode=True, output_format="jpeg")
    await ended(client, job)
    queued = await client.get(job["response_url"])
    for result in (waited.json(), frames(streamed.text)[-1], queued.json()):
        head, _, data = result["images"][0]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(BytesIO(base64.b64decode(data))).size == (48, 32)
    row = (await client.get(f"/console/api/requests/{job['request_id']}")).text
    assert '"dialect"' not in row


async def test_a_stream_tells_of_each_step_and_ends_with_the_result(client: httpx2.AsyncClient) -> None:
    """In frames that have only data, as both clients read them."""
    answer = await client.post(f"{RUN}/stream", json=GOOD | {"seed": 5})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *steps, result = frames(answer.text)
    assert [(each["status"], each["step"], each["steps"]) for each in steps][-1] == ("IN_PROGRESS", 4, 4)
    assert {each["request_id"] for each in steps} == {answer.headers["x-fal-request-id"]}
    assert (result["seed"], len(result["images"])) == (5, 1)


async def test_a_stream_of_an_edit_that_fails_says_why(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Its last frame is what asking for the result says."""
    studio.fleet.fault = EngineFault("out of memory")
    answer = await client.post(f"{RUN}/stream", json=GOOD)
    last = frames(answer.text)[-1]
    asked = await client.get(f"{REQUESTS}/{answer.headers['x-fal-request-id']}")
    assert (asked.status_code, asked.json()) == (500, last)
    assert last["error_type"] == "engine_fault"


async def test_a_stream_says_that_its_edit_goes_on_when_the_server_stops(studio: Studio) -> None:
    """The client would take the last step for the result."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        stream = asyncio.create_task(client.post(f"{RUN}/stream", json=GOOD))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        studio.service.parts.closing.set()
        last = frames((await asyncio.wait_for(stream, SOON_S)).text)[-1]
        studio.fleet.may_step.set()
    assert last["error_type"] == "deadline_exceeded"
    assert last["message"].startswith("The edit was not done before the server went down; it goes on")


async def test_a_stream_whose_database_is_away_at_its_end_says_so(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that the edit is done: whoever hears nothing of it orders another."""
    desk = studio.service.parts.desk
    monkeypatch.setattr(desk, "job", gone)
    last = frames((await client.post(f"{RUN}/stream", json=GOOD)).text)[-1]
    monkeypatch.undo()
    assert last["error_type"] == "store_unavailable"
    assert (await client.get(f"{REQUESTS}/{last['request_id']}")).status_code == 200


async def test_the_status_stream_has_each_change_once(make_studio: MakeStudio) -> None:
    """From the queue to the end, of one that has ended only that."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        await submitted(client)
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        job = await submitted(client)
        stream = asyncio.create_task(client.get(f"{job['status_url']}/stream", params={"logs": "0"}))
        for _ in range(1000):  # until somebody listens
            if studio.service.parts.desk._hub._channel(JobId(job["request_id"])).listeners:
                break
            await asyncio.sleep(0)
        studio.fleet.may_step.set()
        told = frames((await asyncio.wait_for(stream, SOON_S)).text)
        again = frames((await client.get(f"{job['status_url']}/stream")).text)
    words = [each["status"] for each in told]
    assert words[-1] == "COMPLETED"
    assert words == sorted(words, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
    assert all(before != after for before, after in pairwise(told))
    assert again == told[-1:]


async def test_cancelling(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Once; then it is said to have ended, and its result that it was cancelled, in a way that nobody asks again."""
    studio.fleet.may_step.clear()
    job = await submitted(client)
    await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
    cancelled = await client.put(job["cancel_url"])
    assert (cancelled.status_code, cancelled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    status = await ended(client, job)
    assert (status["status"], status["error_type"]) == ("COMPLETED", "cancelled")
    again = await client.put(job["cancel_url"])
    assert (again.status_code, again.json()["status"]) == (400, "ALREADY_COMPLETED")
    result = await client.get(job["response_url"])
    assert (result.status_code, result.headers["x-fal-error-type"]) == (499, "cancelled")
    assert result.headers["x-fal-request-id"] == job["request_id"]


@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream"])
async def test_hanging_up_on_a_call_that_waits_cancels(studio: Studio, path: str) -> None:
    """Nobody wants the picture any more."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        caller = Caller(GOOD, studio.headers, path)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        job = (await only_request(client))["request_id"]
        assert (await studio.service.parts.desk.job(job, account=studio.account)).is_cancelled


@pytest.mark.parametrize("fault", [None, EngineFault("out of memory")])
async def test_a_webhook_is_told_in_the_vendor_s_words(
    studio: Studio, client: httpx2.AsyncClient, fault: Exception | None
) -> None:
    """Of the result, or of what asking for it says."""
    studio.fleet.fault = fault
    answer = await client.post(SUBMIT, params={"fal_webhook": "https://example.com/hook"}, json=GOOD)
    job = answer.json()
    await ended(client, job)
    [body] = studio.act(lambda tx, _: tx.execute(select(webhook_deliveries.c.body)).scalars().all())
    message, asked = json.loads(body), (await client.get(job["response_url"])).json()
    assert set(message) == {"request_id", "gateway_request_id", "status", "payload", "error"}
    assert message["request_id"] == message["gateway_request_id"] == job["request_id"]
    if fault is None:
        assert (message["status"], message["error"], set(message["payload"])) == ("OK", None, set(asked))
        assert message["payload"]["images"][0]["url"].startswith("http://studio/files/")
    else:
        assert (message["status"], message["error"], message["payload"]) == ("ERROR", asked["message"], asked)


async def test_cancelling_an_edit_that_ends_at_that_moment(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promises nothing: it is paid."""
    desk, honest = studio.service.parts.desk, studio.service.parts.desk.cancel

    async def late(job: JobId, *, account: AccountId | None) -> Job:
        studio.fleet.may_step.set()
        await desk.wait(job, account=account, timeout_s=SOON_S)
        return await honest(job, account=account)

    studio.fleet.may_step.clear()
    job = await submitted(client)
    monkeypatch.setattr(desk, "cancel", late)
    answer = await client.put(job["cancel_url"])
    assert (answer.status_code, answer.json()["status"]) == (400, "ALREADY_COMPLETED")


async def proxied(client: httpx2.AsyncClient, method: str, url: str, **how: Any) -> httpx2.Response:
    headers = {"x-fal-target-url": url, **how.pop("headers", {})}
    return await client.request(method, "/fal/proxy", headers=headers, **how)


async def test_one_url_takes_every_call(studio: Studio, client: httpx2.AsyncClient) -> None:
    """As the JavaScript client sends them through a proxy: by the URL that each would have at the vendor's."""
    queue = "https://queue.fal.run/fal-ai/flux-kontext"
    job = (await proxied(client, "POST", f"{queue}/dev?fal_webhook=http://127.0.0.1/", json=GOOD)).json()
    assert job["detail"][0]["loc"] == ["query", "fal_webhook"]
    job = (await proxied(client, "POST", f"{queue}/dev", json=GOOD)).json()
    request = f"{queue}/requests/{job['request_id']}"
    assert job["response_url"] == f"http://studio{REQUESTS}/{job['request_id']}"
    told = frames((await proxied(client, "GET", f"{request}/status/stream?logs=0")).text)
    assert told[-1]["status"] == "COMPLETED"
    assert (await proxied(client, "GET", f"{request}/status?logs=0")).json() == told[-1]
    result = await proxied(client, "GET", request)
    assert result.headers["x-fal-request-id"] == job["request_id"]
    assert (await proxied(client, "PUT", f"{request}/cancel")).json()["status"] == "ALREADY_COMPLETED"
    waited = await proxied(client, "POST", f"https://fal.run/{APP}", json=GOOD)
    assert len(waited.json()["images"]) == 1
    streamed = await proxied(client, "POST", f"https://fal.run/{APP}/stream", json=GOOD)
    assert len(frames(streamed.text)[-1]["images"]) == 1
    for host in ("rest.fal.ai", "rest.alpha.fal.ai"):  # an older release has the second
        initiated = await proxied(client, "POST", f"https://{host}/storage/upload/initiate?storage_type=x", json={})
        assert set(initiated.json()) == {"upload_url", "file_url"}
    kept = await proxied(client, "POST", "https://v3.fal.media/files/upload", content=PHOTO)
    assert set(kept.json()) == {"access_url"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://example.com/",
        "http://fal.run/fal-ai/flux-kontext/dev",
        "https://fal.run:444/fal-ai/flux-kontext/dev",
        "https://me@fal.run/fal-ai/flux-kontext/dev",
        "https://fal.run.example.com/fal-ai/flux-kontext/dev",
        "https://[/",
    ],
)
async def test_a_proxied_url_of_anybody_else_is_refused(client: httpx2.AsyncClient, url: str) -> None:
    """Nothing is ever fetched for it."""
    answer = await proxied(client, "POST", url, json=GOOD)
    assert answer.status_code == 422
    assert [each["loc"] for each in answer.json()["detail"]] == [["header", "x-fal-target-url"]]


async def test_the_proxy_leads_to_this_dialect_only(client: httpx2.AsyncClient) -> None:
    """Not out of its folder, and not to itself."""
    for url in (
        "https://fal.run/../../console/api/me",
        "https://fal.run/../proxy",
        "https://rest.fal.ai/tokens/",
        "https://queue.fal.run/fal-ai/flux-kontext/requests/x/status/",
    ):
        answer = await proxied(client, "GET", url)
        assert (answer.status_code in (404, 405), answer.json()["error_type"] != "") == (True, True)


async def test_what_is_proxied_needs_what_it_needs_directly(studio: Studio, client: httpx2.AsyncClient) -> None:
    """A key first, then its scope."""
    target = f"https://fal.run/{APP}"
    assert (await proxied(client, "POST", target, headers={"x-api-key": ""})).status_code == 401
    reader = studio.new_key(scopes=frozenset({"read"})).secret
    answer = await proxied(client, "POST", target, headers={"x-api-key": reader}, json=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


async def test_pages_may_call_and_read_the_request_s_name(client: httpx2.AsyncClient) -> None:
    """With the vendor's headers, as its client in a browser sends them."""
    asks = {
        "origin": "https://example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-fal-target-url",
    }
    allowed = await client.options("/fal/proxy", headers=asks)
    assert allowed.status_code == 200
    assert "x-fal-target-url" in allowed.headers["access-control-allow-headers"]
    answer = await client.post(RUN, json=GOOD, headers={"origin": "https://example.com"})
    assert "x-fal-request-id" in answer.headers["access-control-expose-headers"]
