"""Replicate's dialect on the wire: what its clients trip over, and every refusal as they read one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any, Final, NoReturn

import httpx2
import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret
from structlog.testing import capture_logs

from rekontext.api import surfaces
from rekontext.api.dialects import replicate
from rekontext.api.edits import Submitted
from rekontext.contract import EditRefused
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job
from rekontext.pictures import StoreUnavailable
from rekontext.sources import SystemClock
from tests.api.caller import Caller
from tests.api.conftest import MakeStudio, Receiver
from tests.api.studio import SOON_S, PillowFleet, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

PHOTO: Final = photo_bytes()
INPUT: Final[dict[str, Any]] = {
    "prompt": "make it night",
    "input_image": base64.b64encode(PHOTO).decode(),
    "num_inference_steps": 4,
}
GOOD: Final[dict[str, Any]] = {"input": INPUT}
MODEL: Final = "black-forest-labs/flux-kontext-dev"
CREATE: Final = f"/v1/models/{MODEL}/predictions"
PREDICTIONS: Final = "/v1/predictions"
HELD: Final = {"prefer": "wait"}


async def done(client: httpx2.AsyncClient, **changes: Any) -> dict[str, Any]:
    """A prediction that has ended."""
    answer = await client.post(CREATE, json={"input": INPUT | changes}, headers=HELD)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def running(client: httpx2.AsyncClient, studio: Studio, **headers: str) -> dict[str, Any]:
    """A prediction whose edit stands before its first step."""
    studio.fleet.may_step.clear()
    created = await client.post(CREATE, json=GOOD, headers=headers)
    assert created.status_code == 201, created.text
    await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
    found: dict[str, Any] = created.json()
    return found


def events(stream: str) -> list[dict[str, str]]:
    """The frames of a stream, each as its fields."""
    frames = [frame for frame in stream.split("\n\n") if frame]
    return [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in frames]


async def away(_key: str) -> NoReturn:
    raise StoreUnavailable("the store could not do that")


async def test_a_held_create_answers_the_finished_prediction(client: httpx2.AsyncClient) -> None:
    """Whole, with every field that some client reads."""
    answer = await client.post(CREATE, json=GOOD, headers=HELD)
    found = answer.json()
    place = f"http://studio{PREDICTIONS}/{found['id']}"
    assert (answer.status_code, found["status"], found["model"]) == (201, "succeeded", MODEL)
    assert answer.headers["x-request-id"] == found["id"]
    assert {"created_at", "started_at", "completed_at"} < {name for name, value in found.items() if value}
    assert found["input"] | {"prompt": "make it night", "seed": 777, "output_format": "webp"} == found["input"]
    assert (found["error"], found["logs"], found["source"], found["data_removed"]) == (None, "", "api", False)
    assert set(found["metrics"]) == {"predict_time", "total_time"}
    assert (found["urls"]["get"], found["urls"]["cancel"]) == (place, f"{place}/cancel")
    assert found["urls"]["stream"].startswith(f"{place}/stream?")
    assert (await client.get(place)).json() == found


@pytest.mark.parametrize(
    ("given", "ratio"), [({"size": "1536x1024"}, "3:2"), ({"size": "1536x1024", "aspect_ratio": "1:1"}, "1:1")]
)
async def test_a_size_chooses_the_shape(client: httpx2.AsyncClient, given: dict[str, Any], ratio: str) -> None:
    """The AI SDK's `size`; an aspect ratio goes before it."""
    assert (await done(client, **given))["input"]["aspect_ratio"] == ratio


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


async def test_the_picture_stands_in_the_answer_on_plain_http(client: httpx2.AsyncClient) -> None:
    """Of a link without TLS the clients make a text, not a file; in a list of many it is a link all the same."""
    found = await done(client)
    head, _, data = found["output"].partition(",")
    assert head == "data:image/webp;base64"
    [row] = (await client.get(PREDICTIONS)).json()["results"]
    assert row["output"].startswith("http://studio/files/outputs/")
    assert (await client.get(row["output"])).content == base64.b64decode(data)


async def test_the_picture_is_a_link_under_tls(make_studio: MakeStudio) -> None:
    """It opens without a key."""
    studio = make_studio(external_url="https://edits.example")
    async with studio.open() as client, studio.client("") as stranger:
        origin, _, path = (await done(client))["output"].partition("/files/")
        assert origin == "https://edits.example"
        assert (await stranger.get(f"/files/{path}")).headers["content-type"] == "image/webp"


async def test_defaults_are_the_vendor_s(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Steps, guidance, format and quality; `go_fast` is no reason to leave out passes."""
    given = {"prompt": "x", "image": INPUT["input_image"], "go_fast": True, "num_outputs": 1, "megapixels": "1"}
    answer = await client.post(CREATE, json={"input": given}, headers=HELD)
    [request] = studio.fleet.requests
    assert (request.steps, request.guidance, request.acceleration) == (30, 2.5, "none")
    asked = answer.json()["input"]
    assert (asked["output_format"], asked["output_quality"], asked["aspect_ratio"]) == ("webp", 80, "match_input_image")


async def test_without_preference_the_answer_comes_at_once(studio: Studio, client: httpx2.AsyncClient) -> None:
    """And polls say how far the edit is."""
    created = await running(client, studio)
    assert (created["status"], created["output"], created["metrics"]) == ("starting", None, {})
    found = (await client.get(created["urls"]["get"])).json()
    assert (found["status"], found["logs"]) == ("processing", "0%|          | 0/4")


@pytest.mark.parametrize("prefer", ["wait", "wait=1", "respond-async, wait=1", "wait=soon"])
async def test_a_held_create_that_takes_too_long_says_starting(
    studio: Studio, client: httpx2.AsyncClient, prefer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other word is taken for the end, and the client never asks again: not even once the edit runs."""
    monkeypatch.setattr(replicate, "_HELD_S_MAX", 0.01)
    created = await running(client, studio, **{"idempotency-key": "one"})
    answer = await client.post(CREATE, json=GOOD, headers={"idempotency-key": "one", "prefer": prefer})
    assert (answer.json()["id"], answer.json()["status"]) == (created["id"], "starting")
    assert (await client.get(created["urls"]["get"])).json()["status"] == "processing"


@pytest.mark.parametrize(
    ("prefer", "held_s"),
    [("", 0), ("respond-async", 0), ("wait", 55), ("wait=7", 7), ("a, WAIT=60", 55), ("wait=" + "9" * 5000, 55)],
)
def test_how_long_an_answer_is_held(prefer: str, held_s: int) -> None:
    """No longer than the most patient client waits."""
    assert replicate._held_s(prefer) == held_s


async def test_what_comes_before_the_edit_counts(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client waits half a second longer than it says: a photo that is fetched for three is of that time."""
    honest, submit, late_s, held_s = SystemClock.monotonic_s, surfaces.submit, [0.0], []

    async def slowly(*asked: Any, **how: Any) -> Submitted:
        late_s[0] = 3.0
        return await submit(*asked, **how)

    async def wait(_job: JobId, *, account: AccountId, timeout_s: float, known: Job) -> Job:
        held_s.append(timeout_s)
        return known

    monkeypatch.setattr(SystemClock, "monotonic_s", lambda clock: honest(clock) + late_s[0])
    monkeypatch.setattr(surfaces, "submit", slowly)
    monkeypatch.setattr(studio.service.parts.desk, "wait", wait)
    await client.post(CREATE, json=GOOD, headers={"prefer": "wait=50"})
    [left_s] = held_s
    assert 50 - 3 - SOON_S < left_s <= 50 - 3


async def test_a_held_create_ends_when_the_server_goes_down(studio: Studio, client: httpx2.AsyncClient) -> None:
    """The edit goes back into the queue, and its caller goes on asking."""
    created = await running(client, studio, **{"idempotency-key": "one"})
    studio.service.parts.desk.let_go()
    answer = await client.post(CREATE, json=GOOD, headers={"idempotency-key": "one"} | HELD)
    assert (answer.json()["id"], answer.json()["status"]) == (created["id"], "starting")


async def test_hanging_up_cancels_nothing(studio: Studio) -> None:
    """These edits are asked for later; only a cancel is one."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        caller = Caller(GOOD, studio.headers | HELD)
        scope = {**caller.scope, "path": CREATE, "raw_path": CREATE.encode()}
        call = asyncio.create_task(studio.app(scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        assert caller.got[0]["status"] == 499
        studio.fleet.may_step.set()
        [row] = (await client.get(PREDICTIONS)).json()["results"]
        assert (await client.get(row["urls"]["stream"])).text.endswith("data: {}\n\n")
        assert (await client.get(row["urls"]["get"])).json()["status"] == "succeeded"


async def test_a_cancelled_prediction_is_canceled_at_once(studio: Studio, client: httpx2.AsyncClient) -> None:
    """From the answer on; one that has ended stays as it is."""
    created = await running(client, studio)
    answer = await client.post(created["urls"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
    [last] = events((await client.get(created["urls"]["stream"])).text)[-1:]
    assert (last["event"], last["data"]) == ("done", '{"reason":"canceled"}')
    found = (await client.get(created["urls"]["get"])).json()
    assert (found["status"], found["output"], found["error"]) == ("canceled", None, "The request was cancelled.")
    studio.fleet.may_step.set()
    over = await done(client)
    assert (await client.post(over["urls"]["cancel"])).json() == over


async def test_a_failed_prediction_says_why(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Under the names that its caller used."""
    studio.fleet.fault = EditRefused("input_image is too dark to be edited")
    found = await done(client)
    assert (found["status"], found["error"]) == ("failed", "input_image is too dark to be edited.")
    assert (found["output"], found["data_removed"]) == (None, False)
    told = events((await client.get(found["urls"]["stream"])).text)[-2:]
    assert [each["event"] for each in told] == ["error", "done"]
    assert [json.loads(each["data"]) for each in told] == [{"detail": found["error"]}, {"reason": "error"}]


async def test_a_stream_tells_each_step_and_the_picture(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Each with an id, without which clients drop it; whoever comes back after the last is told nothing more."""
    found = await done(client)
    answer = await client.get(found["urls"]["stream"])
    told = events(answer.text)
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert [each["event"] for each in told] == [*["logs"] * 5, "output", "done"]
    assert told[2]["data"] == "50%|#####     | 2/4"
    assert (told[-2]["data"], told[-1]["data"]) == (found["output"], "{}")
    assert all(each["id"] for each in told)
    again = await client.get(found["urls"]["stream"], headers={"last-event-id": told[-1]["id"]})
    assert (again.status_code, again.text) == (204, "")
    cut_off = await client.get(found["urls"]["stream"], headers={"last-event-id": told[-2]["id"]})
    assert events(cut_off.text)[-1]["event"] == "done"


async def test_a_stream_s_url_needs_no_key(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Scripts show none there; without its signature, or with another's, a key is what opens it, for its owner."""
    found, other = await done(client), await done(client)
    place, _, signed = found["urls"]["stream"].partition("?")
    async with studio.client("") as stranger:
        assert (await stranger.get(found["urls"]["stream"])).status_code == 200
        for forged in (f"{other['urls']['stream'].partition('?')[0]}?{signed}", f"{place}?signature=x"):
            refused = await stranger.get(forged)
            assert (refused.status_code, refused.json()["code"]) == (403, "link_refused")
        assert (await stranger.get(place)).status_code == 401
        assert (await stranger.get(f"/files{place.removeprefix('http://studio')}?{signed}")).status_code == 404
    assert (await client.get(place)).status_code == 200
    async with studio.client(studio.new_account("neighbour").secret) as neighbour:
        assert (await neighbour.get(place)).status_code == 404


async def test_a_picture_whose_time_is_up(make_studio: MakeStudio) -> None:
    """There is none, and it says that there was one."""
    async with make_studio(keep_outputs_s=0.001).open() as client:
        created = await done(client)
        found = (await client.get(created["urls"]["get"])).json()
        assert (found["status"], found["output"], found["data_removed"]) == ("succeeded", None, True)


async def test_a_picture_that_is_gone_from_the_store(studio: Studio, client: httpx2.AsyncClient) -> None:
    """The same, though its time isn't up."""
    created = await done(client)
    [key] = [each.key async for each in studio.service.parts.objects.list("outputs")]
    await studio.service.parts.objects.delete(key)
    found = (await client.get(created["urls"]["get"])).json()
    assert (found["output"], found["data_removed"]) == (None, True)


async def test_a_picture_that_can_t_be_read_just_now(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ordered is told to ask later, not that it failed: that would be ordered, and paid, once more."""
    key = {"idempotency-key": "one"}
    with monkeypatch.context() as broken:
        honest = studio.service.parts.objects.get

        async def inputs_only(name: str) -> bytes:
            return await (away(name) if name.startswith("outputs/") else honest(name))

        broken.setattr(studio.service.parts.objects, "get", inputs_only)
        created = await client.post(CREATE, json=GOOD, headers=HELD | key)
        assert (created.status_code, created.json()["status"]) == (201, "starting")
        place = created.json()["urls"]["get"]
        polled, again = await client.get(place), await client.post(CREATE, json=GOOD, headers=HELD | key)
        for answer in (polled, again):
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert answer.headers["x-should-retry"] == "false"
        told = events((await client.get(created.json()["urls"]["stream"])).text)
        assert [each["event"] for each in told[-2:]] == ["error", "done"]
    assert (await client.get(place)).json()["output"].startswith("data:image/webp")


async def test_a_list_is_told_page_by_page(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newest first, whatever dialect they came in, and nobody else's. What comes meanwhile moves nothing."""
    monkeypatch.setattr(replicate, "_PAGE", 2)
    ours = (await client.post("/v2/flux-kontext-dev", json=INPUT)).json()["request_id"]
    ids = [ours, *[(await done(client))["id"] for _ in range(4)]]
    first = (await client.get(PREDICTIONS)).json()
    await done(client)
    second = (await client.get(first["next"])).json()
    third = (await client.get(second["next"])).json()
    pages = [[each["id"] for each in page["results"]] for page in (first, second, third)]
    assert pages == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    assert (third["next"], third["previous"]) == (None, None)
    async with studio.client(studio.new_account("stranger").secret) as stranger:
        assert (await stranger.get(PREDICTIONS)).json() == {"results": [], "next": None, "previous": None}
        assert (await stranger.get(first["next"])).status_code == 404
        assert (await stranger.get(f"{PREDICTIONS}/{ids[1]}")).status_code == 404


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"guidance": 99}, "guidance is 99 (allowed: a number from 0 to 10)"),
        ({"prompt": None}, "prompt is missing"),
        ({"input_image": 7}, "input_image is 7"),
        ({"num_outputs": 2}, "num_outputs can't be heeded here (allowed: 1, or nothing)"),
        ({"megapixels": "0.25"}, 'megapixels can\'t be heeded here (allowed: "1", or nothing)'),
        ({"mask": "https://a.example/m.png"}, "mask can't be heeded here (allowed: nothing)"),
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


async def test_a_prediction_by_version_or_by_name(client: httpx2.AsyncClient) -> None:
    """The served model is the one version; a wrong one is refused with the right one."""
    version = (await client.get(f"/v1/models/{MODEL}")).json()["latest_version"]["id"]
    for reference in (
        {"version": version},
        {"version": f"{MODEL}:{version}"},
        {"version": MODEL},
        {"model": MODEL},
        {"model": MODEL, "version": None},
    ):
        answer = await client.post(PREDICTIONS, json=GOOD | reference, headers=HELD)
        assert (answer.status_code, answer.json()["version"]) == (201, version), reference
    for wrong in ({"version": "a" * 64}, {"version": f"{MODEL}:latest"}, {"version": 7}, {}):
        answer = await client.post(PREDICTIONS, json=GOOD | wrong)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
        assert "version" in answer.json()["detail"]
    assert version in (await client.post(PREDICTIONS, json=GOOD | {"version": "a"})).json()["detail"]


async def test_a_version_is_its_model_s(make_studio: MakeStudio) -> None:
    """The same on every server that has this model, and another one's where another model is."""
    versions = []
    for is_mini in (True, True, False):
        async with make_studio(PillowFleet(is_mini=is_mini)).open() as client:
            versions.append((await done(client))["version"])
    assert versions[0] == versions[1] != versions[2]


async def test_while_the_model_loads_no_version_is_told(make_studio: MakeStudio) -> None:
    """Edits are taken all the same, unless they name one."""
    fleet = PillowFleet()
    fleet.may_start.clear()
    async with make_studio(fleet).open() as client:
        created = await client.post(CREATE, json=GOOD)
        assert (created.status_code, created.json()["version"]) == (201, "hidden")
        assert (await client.get(f"/v1/models/{MODEL}")).json()["latest_version"] is None
        assert (await client.get(f"/v1/models/{MODEL}/versions")).json()["results"] == []
        for answer in (
            await client.post(PREDICTIONS, json=GOOD | {"version": "a"}),
            await client.get(f"/v1/models/{MODEL}/versions/a"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        fleet.may_start.set()
        await client.get(created.json()["urls"]["stream"])
        found = (await client.get(created.json()["urls"]["get"])).json()
        [version] = (await client.get(f"/v1/models/{MODEL}/versions")).json()["results"]
    assert found["version"] == version["id"]


async def test_a_version_says_what_an_input_may_have(client: httpx2.AsyncClient) -> None:
    """With this vendor's defaults; its output is one URI."""
    [version] = (await client.get(f"/v1/models/{MODEL}/versions")).json()["results"]
    assert (await client.get(f"/v1/models/{MODEL}/versions/{version['id']}")).json() == version
    schemas = version["openapi_schema"]["components"]["schemas"]
    defaults = {name: each.get("default") for name, each in schemas["Input"]["properties"].items()}
    assert defaults | {"num_inference_steps": 30, "guidance": 2.5, "output_format": "webp"} == defaults
    assert (schemas["Output"]["type"], schemas["Output"]["format"]) == ("string", "uri")
    assert not {"webhook_url", "previews", "priority"} & set(defaults)


async def test_who_can_t_pay_is_told_402(studio: Studio) -> None:
    """On which no client tries again."""
    async with studio.open(), studio.client(studio.new_account("poor").secret) as poor:
        answer = await poor.post(CREATE, json=GOOD, headers=HELD)
    assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_credits")
    assert answer.json()["status"] == 402


async def test_creates_and_uploads_are_counted_and_polls_are_not(make_studio: MakeStudio) -> None:
    """Clients poll twice a second."""
    async with make_studio(requests_per_minute=2).open() as client:
        created = await client.post(CREATE, json=GOOD, headers=HELD)
        assert created.headers["ratelimit-limit"] == "2"
        assert (await client.post("/v1/files", files={"content": ("a.jpg", PHOTO)})).status_code == 201
        for refused in (
            await client.post(CREATE, json=GOOD),
            await client.post("/v1/files", files={"content": ("a.jpg", PHOTO)}),
        ):
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert refused.headers["retry-after"].isdecimal()
        for path in (created.json()["urls"]["get"], PREDICTIONS, "/v1/files", "/v1/account"):
            assert (await client.get(path)).status_code == 200


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


async def test_a_file_is_kept_for_edits(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Its type is seen from its bytes, whatever its sender calls it, and it can be used, looked at and deleted."""
    sent = {
        "content": ("upload", PHOTO, "application/octet-stream"),
        "metadata": ("blob", b'{"a":1}', "application/json"),
    }
    answer = await client.post("/v1/files", files=sent)
    file = answer.json()
    assert (answer.status_code, file["content_type"], file["size"]) == (201, "image/jpeg", len(PHOTO))
    assert file["checksums"] == {
        "sha256": hashlib.sha256(PHOTO).hexdigest(),
        "md5": hashlib.md5(PHOTO, usedforsecurity=False).hexdigest(),
    }
    assert (file["name"], file["metadata"]) == ("upload", {})
    assert file["expires_at"] > file["created_at"]
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    [row] = (await client.get("/v1/files")).json()["results"]
    assert row == file | {"checksums": {}}
    async with studio.client("") as stranger:
        assert (await stranger.get(file["urls"]["get"])).content == PHOTO
    assert (await done(client, input_image=file["urls"]["get"]))["status"] == "succeeded"
    async with studio.client(studio.new_account("stranger").secret) as stranger:
        for method in ("GET", "DELETE"):
            assert (await stranger.request(method, f"/v1/files/{file['id']}")).status_code == 404
    deleted = await client.delete(f"/v1/files/{file['id']}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await client.get(file["urls"]["get"])).status_code == 404


async def test_a_file_that_is_gone_from_the_store(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Is gone, though it stands in the list."""
    file = (await client.post("/v1/files", files={"content": ("a.jpg", PHOTO)})).json()
    await studio.service.parts.objects.delete(f"assets/{file['id']}")
    answer = await client.get(f"/v1/files/{file['id']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "file_gone")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([("other", ("a.jpg", PHOTO))], "content is there 0 times"),
        ([("content", ("a.jpg", PHOTO)), ("content", ("b.jpg", PHOTO))], "content is there 2 times"),
        ([("content", (None, b"a text"))], "content is no file"),
        ([("content", ("a.jpg", b"no picture"))], "content can't be used"),
    ],
)
async def test_what_is_no_file_of_ours(client: httpx2.AsyncClient, fields: list[Any], sentence: str) -> None:
    """Pictures only, one at a time."""
    answer = await client.post("/v1/files", files=fields)
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


async def test_the_account_tells_whose_key_it_is(client: httpx2.AsyncClient) -> None:
    """By its name."""
    document = (await client.get("/v1/account")).json()
    assert (document["type"], document["name"]) == ("organization", "owner")


async def test_a_webhook_is_told_the_prediction(make_studio: MakeStudio, receiver: Receiver) -> None:
    """The vendor's own validator takes its signature; its picture is a link, on plain http too."""
    async with make_studio(webhook_allow="127.0.0.1/32").open() as client:
        secret = WebhookSigningSecret(**(await client.get("/v1/webhooks/default/secret")).json())
        for events_filter in ({}, {"webhook_events_filter": ["start", "completed"]}):
            answer = await client.post(CREATE, json=GOOD | {"webhook": receiver.url} | events_filter, headers=HELD)
            headers, body = await receiver.next()
            Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=60)
            told = json.loads(body)
            assert told["output"].startswith("http://studio/files/outputs/")
            assert told | {"output": answer.json()["output"]} == answer.json()


async def test_a_webhook_that_isn_t_to_hear_of_ends_hears_nothing(make_studio: MakeStudio, receiver: Receiver) -> None:
    """What happens before isn't sent, so the next message is another edit's."""
    async with make_studio(webhook_allow="127.0.0.1/32").open() as client:
        hook = {"webhook": receiver.url}
        await client.post(CREATE, json=GOOD | hook | {"webhook_events_filter": ["start", "output"]}, headers=HELD)
        heard = await client.post(CREATE, json=GOOD | hook, headers=HELD)
        _, body = await receiver.next()
        assert json.loads(body)["id"] == heard.json()["id"]
        assert receiver.got.empty()


async def test_models_has_the_one_model(client: httpx2.AsyncClient) -> None:
    """As it is told by itself, for the list whose path is another vendor's too."""
    listed = (await client.get("/v1/models")).json()
    assert listed["results"] == [(await client.get(f"/v1/models/{MODEL}")).json()]
    assert [each["id"] for each in listed["data"]] == ["flux-kontext-dev"]
