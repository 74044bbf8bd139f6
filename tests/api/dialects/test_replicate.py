"""Replicate's dialect on the wire: predictions, and what its clients trip over."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx2
import pytest

from rekontext.api import surfaces
from rekontext.api.dialects import replicate
from rekontext.api.edits import Submitted
from rekontext.contract import EditRefused
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job
from rekontext.sources import SystemClock
from tests.api.caller import Caller
from tests.api.conftest import MakeStudio
from tests.api.dialects.replicate_calls import (
    CREATE,
    GOOD,
    HELD,
    INPUT,
    MODEL,
    PREDICTIONS,
    away,
    done,
    events,
    running,
)
from tests.api.studio import SOON_S, Studio

pytestmark = pytest.mark.anyio


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
