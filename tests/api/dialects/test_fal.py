"""fal's dialect on the wire: what its clients read, what they trip over, and every refusal in its form."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest
from aiohttp import web
from PIL import Image
from sqlalchemy import select
from standardwebhooks import Webhook
from starlette.types import Message, Scope

from rekontext.contract import EngineFault
from rekontext.database import JobId
from rekontext.database.tables import jobs
from rekontext.pictures import StoreUnavailable
from tests.api.conftest import MakeStudio
from tests.api.studio import SEED_DRAWN, SOON_S, STRANGER, Studio, gone
from tests.pictures.samples import encoded, gradient, photo_bytes

pytestmark = pytest.mark.anyio

APP: Final = "fal-ai/flux-kontext/dev"
RUN: Final = f"/fal/run/{APP}"
SUBMIT: Final = f"/fal/queue/{APP}"
REQUESTS: Final = "/fal/queue/fal-ai/flux-kontext/requests"
INITIATE: Final = "/fal/rest/storage/upload/initiate"
UPLOAD: Final = "/fal/cdn/files/upload"
PHOTO: Final = photo_bytes()
URI: Final = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"
GOOD: Final[dict[str, Any]] = {"prompt": "make it night", "image_url": URI, "num_inference_steps": 4}


class HangsUp:
    """One connection, spoken to in ASGI, so that a test decides when it breaks."""

    def __init__(self, studio: Studio, path: str, body: dict[str, Any]) -> None:
        self._body = orjson.dumps(body)
        self._has_sent = False
        self.now = asyncio.Event()
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"authorization", f"Key {studio.key}".encode())],
            "scheme": "http",
            "server": ("studio", 80),
            "client": ("caller", 1),
        }

    async def receive(self) -> Message:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.now.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Nobody reads what comes."""


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
    assert set(result) == {"images", "seed", "prompt", "has_nsfw_concepts", "timings"}
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
    assert (kept["disable_safety_checker"], kept["priority"], kept["dialect"]) == (False, 0, "fal")


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
    assert "inline" not in row


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


@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream"])
async def test_hanging_up_on_a_call_that_waits_cancels(studio: Studio, path: str) -> None:
    """Nobody wants the picture any more."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        caller = HangsUp(studio, path, GOOD)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.now.set()
        await asyncio.wait_for(call, SOON_S)
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        [row] = (await client.get("/console/api/requests")).json()["data"]
        assert row["status"] in ("PROCESSING", "CANCELLED")
        [job] = [JobId(row["request_id"])]
        assert (await studio.service.parts.desk.job(job, account=studio.account)).is_cancelled


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


async def test_wrong_parameters_are_listed_under_their_names(client: httpx2.AsyncClient) -> None:
    """All of them at once: in `detail` as the vendor's clients take them apart, and as one sentence."""
    wrong = {
        "image_url": "not a picture!",
        "guidance_scale": 99,
        "num_images": 4,
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
    assert said["num_images"] == "num_images can't be heeded here (allowed: 1, or nothing)"
    assert said["guidance_scale"] == "guidance_scale is 99 (allowed: a number from 0 to 10)"
    assert all(sentence in body["message"] for sentence in said.values())
    assert (body["error_type"], body["code"]) == ("invalid_parameters", "invalid_parameters")
    assert answer.headers["x-fal-error-type"] == "invalid_parameters"
    assert answer.headers["x-fal-request-id"] == body["request_id"]


@pytest.mark.parametrize(
    "given", [{"mask_url": URI}, {"image_urls": [URI]}, {"negative_prompt": "x"}, {"image_size": "square"}]
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


async def test_a_picture_that_cannot_be_read_just_now(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit is done and paid: not a 503, after which the JavaScript client orders another."""

    async def away(_key: str) -> bytes:
        raise StoreUnavailable("no route")

    body = GOOD | {"sync_mode": True}
    monkeypatch.setattr(studio.service.parts.objects, "get", away)
    job = await submitted(client, seed=6)
    status = await ended(client, job)
    monkeypatch.undo()
    assert status["error"] is not None  # its photo couldn't be read either
    done = await submitted(client, **body)
    await ended(client, done)
    monkeypatch.setattr(studio.service.parts.objects, "get", away)
    answer = await client.get(done["response_url"])
    assert (answer.status_code, answer.json()["code"]) == (500, "store_unavailable")


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


class Receiver:
    """A server that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.put_nowait((headers, await request.read()))
        return web.Response(status=204)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


async def test_a_webhook_is_told_in_the_vendor_s_words(make_studio: MakeStudio, receiver: Receiver) -> None:
    """Of the result, or of what asking for it says; signed as all of ours are."""
    studio = make_studio(webhook_allow="127.0.0.1/32")
    async with studio.open() as client:
        secret = (await client.get("/console/api/webhook-secret")).json()["secret"]
        told = []
        for fault in (None, EngineFault("out of memory")):
            studio.fleet.fault = fault
            answer = await client.post(SUBMIT, params={"fal_webhook": receiver.url}, json=GOOD)
            headers, body = await asyncio.wait_for(receiver.got.get(), SOON_S)
            message = Webhook(secret).verify(body.decode(), headers)
            told.append((answer.json()["request_id"], message))
        (job, good), (failed, bad) = told
        assert good["payload"].keys() == (await client.get(f"{REQUESTS}/{job}")).json().keys()
        asked = (await client.get(f"{REQUESTS}/{failed}")).json()
    assert set(good) == set(bad) == {"request_id", "gateway_request_id", "status", "payload", "error"}
    assert (good["request_id"], good["gateway_request_id"], good["status"], good["error"]) == (job, job, "OK", None)
    assert good["payload"]["images"][0]["url"].startswith("http://studio/files/")
    assert (bad["status"], bad["error"], bad["payload"]) == ("ERROR", asked["message"], asked)


async def test_a_webhook_that_may_not_be_called(client: httpx2.AsyncClient) -> None:
    """Is refused under the name of the query's field."""
    answer = await client.post(SUBMIT, params={"fal_webhook": "http://127.0.0.1/"}, json=GOOD)
    assert [each["loc"] for each in answer.json()["detail"]] == [["query", "fal_webhook"]]


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
    initiated = await proxied(client, "POST", "https://rest.fal.ai/storage/upload/initiate?storage_type=x", json={})
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
    for url in ("https://fal.run/../../console/api/me", "https://fal.run/../proxy", "https://rest.fal.ai/tokens/"):
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


async def test_a_file_sent_as_it_is_becomes_an_upload(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Under its name; the token is what the client shows then, and the link is good for an edit."""
    token = (await client.post("/fal/rest/storage/auth/token", json={})).json()
    assert datetime.fromisoformat(token["expires_at"]) > datetime.now(UTC)
    assert token["base_url"] == "http://studio/fal/cdn"
    shown = {"x-api-key": "", "authorization": f"{token['token_type']} {token['token']}"}
    answer = await client.post(UPLOAD, content=PHOTO, headers=shown | {"x-fal-file-name": "a/cat.jpg"})
    link = answer.json()["access_url"]
    [listed] = (await client.get("/console/api/files")).json()["files"]
    assert listed["file_name"] == "cat.jpg"
    assert (await client.get(link)).content == PHOTO
    assert (await client.post(RUN, json=GOOD | {"image_url": link})).status_code == 200


async def test_a_file_that_is_no_picture_is_refused(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Sent either way, and nothing of it is kept."""
    initiated = (await client.post(INITIATE, json={"file_name": "x.txt"})).json()
    for answer in (
        await client.post(UPLOAD, content=b"some text"),
        await client.put(initiated["upload_url"], content=b"some text"),
    ):
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "file"]
    assert (await client.get(initiated["file_url"])).status_code == 404
    assert (await client.get("/console/api/files")).json()["files"] == []


async def test_a_picture_is_put_without_a_key(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Where its account was told to, under the name that was told then; sent again it changes nothing."""
    initiated = (await client.post(INITIATE, json={"content_type": "image/jpeg", "file_name": "my cat.jpg"})).json()
    async with studio.client("") as stranger:
        for sent in (PHOTO, encoded(gradient(20, 10))):
            put = await stranger.put(initiated["upload_url"], content=sent)
            assert (put.status_code, put.content) == (200, b"")
        assert (await stranger.get(initiated["file_url"])).content == PHOTO
    [listed] = (await client.get("/console/api/files")).json()["files"]
    assert listed["file_name"] == "my cat.jpg"
    result = await client.post(RUN, json=GOOD | {"image_url": initiated["file_url"]})
    assert result.status_code == 200


@pytest.mark.parametrize("change", ["id", "key", "signature", "expires", "is a link to a file"])
async def test_a_url_for_a_put_that_was_changed_takes_nothing(
    studio: Studio, client: httpx2.AsyncClient, change: str
) -> None:
    """Nor does a link to a file: it is signed for something else. And the URL for a PUT opens no file."""
    initiated = (await client.post(INITIATE, json={})).json()
    url = httpx2.URL(initiated["upload_url"])
    other = studio.new_account("other").key.id
    if change == "id":
        url = url.copy_with(path=url.path + "0")
    elif change == "key":
        url = url.copy_with(path=url.path.replace(studio.key_id, other))
    elif change == "is a link to a file":
        url = url.copy_with(query=urlsplit(initiated["file_url"]).query.encode())
    else:
        url = url.copy_merge_params({change: "99999999999" if change == "expires" else "x"})
    answer = await client.put(str(url), content=PHOTO)
    assert (answer.status_code, answer.json()["error_type"]) == (403, "link_refused")
    assert (await client.get(initiated["upload_url"].replace("/fal/", "/files/fal/"))).status_code == 404
    assert (await client.get("/console/api/files")).json()["files"] == []


async def test_a_url_for_a_put_ends_with_its_key_and_within_the_hour(
    studio: Studio, client: httpx2.AsyncClient
) -> None:
    """Whoever revokes a key that leaked means all that it opened."""
    leaked = studio.new_key()
    async with studio.client(leaked.secret) as thief:
        url = (await thief.post(INITIATE, json={})).json()["upload_url"]
    assert int(httpx2.URL(url).params["expires"]) <= datetime.now(UTC).timestamp() + 3600
    studio.act(lambda tx, acts: acts.revoke_key(tx, leaked.key.id))
    answer = await client.put(url, content=PHOTO)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")


async def test_uploads_have_the_bounds_that_all_have(make_studio: MakeStudio) -> None:
    """Those of a picture, a body and an account."""
    large = photo_bytes(200, 150)
    studio = make_studio(uploads_bytes_max=len(large), picture_bytes_max=10_000, body_bytes_max=20_000)
    async with studio.open() as client:
        urls = [(await client.post(INITIATE, json={})).json()["upload_url"] for _ in range(2)]
        for size, code in ((10_001, "picture_too_large"), (20_001, "body_too_large")):
            answer = await client.put(urls[0], content=large + bytes(size - len(large)))
            assert (answer.status_code, answer.json()["code"]) == (413, code)
            assert isinstance(answer.json()["detail"], str)
        assert (await client.put(urls[0], content=large)).status_code == 200
        for answer in (await client.put(urls[1], content=large), await client.post(UPLOAD, content=large)):
            assert (answer.status_code, answer.json()["code"]) == (400, "uploads_full")
