"""Jobs over HTTP: submitted once, asked for, followed step by step, cancelled, paid."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from typing import Any, Final

import httpx2
import pytest
from PIL import Image
from sqlalchemy import select

from rekontext.accounts import integrity
from rekontext.api import sse
from rekontext.api.documents import MINI_NOTICE
from rekontext.contract import EditRefused, EditRequest, EditResult, Estimate, OnProgress, Preview, Progress
from rekontext.database import JobId
from rekontext.database.tables import jobs, transfers
from tests.api.conftest import MakeStudio
from tests.api.studio import SOON_S, PillowFleet, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

V1: Final = "/v1/flux-kontext-dev"
V2: Final = "/v2/flux-kontext-dev"
PHOTO: Final = photo_bytes()
GOOD: Final[dict[str, Any]] = {
    "prompt": "invert it",
    "input_image": base64.b64encode(PHOTO).decode(),
    "num_inference_steps": 6,
}

Events = list[tuple[str, str, dict[str, Any]]]


def parsed(text: str) -> Events:
    """The frames of an event stream: name, id, data."""
    frames = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        frames.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return frames


async def followed(client: httpx2.AsyncClient, url: str, **headers: str) -> Events:
    """Every event of a job, up to its end."""
    answer = await client.get(url, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return parsed(answer.text)


async def test_only_the_process_that_runs_an_edit_says_how_far_it_is(make_studio: MakeStudio) -> None:
    """Another one, asked of a running edit, would tell how long its own engine takes for one that begins now."""
    here, there = make_studio(), make_studio(worker="there")
    here.fleet.may_step.clear()
    async with here.open() as client:
        url = (await client.post(V2, json=GOOD)).json()["status_url"]
        await asyncio.wait_for(here.fleet.began.wait(), SOON_S)
        async with there.open() as elsewhere:  # not before: either of two may take it
            await asyncio.wait_for(there.fleet.started.wait(), SOON_S)
            own, others = (await client.get(url)).json(), (await elsewhere.get(url)).json()
        here.fleet.may_step.set()
    assert own["status"] == others["status"] == "PROCESSING"
    assert (own["queue_position"], own["eta_seconds"], own["progress"]) == (0, 3.0, {"step": 0, "steps": 6})
    assert (others["queue_position"], others["eta_seconds"], others["progress"]) == (None, None, None)


async def test_an_edit_that_has_ended_makes_no_progress(studio: Studio, client: httpx2.AsyncClient) -> None:
    """What the engine still tells of one that was cancelled is not shown as where it stands."""
    studio.fleet.may_step.clear()
    submitted = (await client.post(V2, json=GOOD)).json()
    await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
    await client.post(submitted["cancel_url"])
    await followed(client, submitted["events_url"])
    studio.fleet.tell(Progress(step=1, steps=6, remaining_s=1.0))
    status = (await client.get(submitted["status_url"])).json()
    assert (status["status"], status["progress"]) == ("CANCELLED", None)


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


async def test_a_job_that_isn_t_done_says_when_it_will_be(make_studio: MakeStudio) -> None:
    """Place and time in the submit's answer, its headers, in status and instead of a result."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        first = (await client.post(V2, json=GOOD)).json()
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        second = await client.post(V2, json=GOOD)
        third = await client.post(V2, json=GOOD | {"num_inference_steps": 10})
        assert third.json()["queue_position"] > second.json()["queue_position"] > 0
        assert third.json()["eta_seconds"] > second.json()["eta_seconds"] == 6.0
        assert third.headers["x-eta-seconds"] == str(third.json()["eta_seconds"])
        running = await client.get(first["status_url"])
        assert running.json()["progress"] == {"step": 0, "steps": 6}
        assert (running.json()["queue_position"], running.json()["eta_seconds"]) == (0, 3.0)
        assert running.headers["x-eta-seconds"] == "3.0"
        pending = await client.get(third.json()["response_url"])
        assert (pending.status_code, pending.json()["status"]) == (202, "QUEUED")
        assert "output" not in pending.json()
        assert pending.headers["x-eta-seconds"] == str(pending.json()["eta_seconds"])
        studio.fleet.may_step.set()
        await followed(client, third.json()["events_url"])


async def test_a_deadline_counts_those_that_wait_before_it(make_studio: MakeStudio) -> None:
    """Those in the database too, of which the fleet knows nothing yet."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        await client.post(V2, json=GOOD)
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        last = await client.post(V2, json=GOOD)
        refused = await client.post(V2, json=GOOD | {"deadline_s": last.json()["eta_seconds"] + 1})
        assert (refused.status_code, refused.json()["code"]) == (400, "deadline_unmeetable")
        studio.fleet.may_step.set()
        await followed(client, last.json()["events_url"])


async def test_a_deadline_that_can_t_be_met_is_refused_at_once(studio: Studio) -> None:
    """Six steps of half a second take three seconds; nothing is held for what is refused."""
    async with studio.open() as client:
        refused = await client.post(V2, json=GOOD | {"deadline_s": 2.9})
        assert (refused.status_code, refused.json()["code"]) == (400, "deadline_unmeetable")
        assert "3.0 s" in refused.json()["error"]
        accepted = await client.post(V2, json=GOOD | {"deadline_s": 3.1})
        assert accepted.status_code == 200
        await followed(client, accepted.json()["events_url"])
        total = (await client.get("/console/api/usage")).json()["total"]
    assert total["edits"] == 1


async def test_every_step_is_told_and_done_comes_last(client: httpx2.AsyncClient) -> None:
    """Queue, start, each step with its time, result."""
    submitted = (await client.post(V2, json=GOOD)).json()
    events = await followed(client, submitted["events_url"])
    names = [name for name, _, _ in events]
    assert names[0] == "queued"
    assert [name for name in names if name != "queued"] == ["processing", *["progress"] * 7, "done"]
    assert {data["request_id"] for _, _, data in events} == {submitted["request_id"]}
    steps = [data for name, _, data in events if name == "progress"]
    assert [data["step"] for data in steps] == list(range(7))
    assert [data["eta_seconds"] for data in steps[1:]] == [2.5, 2.0, 1.5, 1.0, 0.5, 0.0]
    assert steps[0]["eta_seconds"] <= 3.0
    last = events[-1][2]
    assert last["output"].startswith("http://studio/files/")
    assert last["status"] == "COMPLETED"


class Crowded(PillowFleet):
    """Holds edits back before their first step, as a device does that has others, and says how many go first."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 1
        self.held = asyncio.Event()
        self.asked = asyncio.Event()
        self.may_prepare = asyncio.Event()

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        self.held.set()
        await self.may_prepare.wait()
        return await super().edit(request, on_progress=on_progress)

    def estimate(self, request: EditRequest) -> Estimate:
        self.asked.set()
        return Estimate(position=self.ahead, wait_s=3.0 * self.ahead, finish_s=3.0 * self.ahead + 3.0)


def looking_often(studio: Studio) -> Studio:
    """Streams look for news twenty times a second."""
    studio.service.parts.desk._poll_s = 0.05
    return studio


@pytest.mark.parametrize("told_last", ["processing", "progress"])
async def test_an_edit_that_waits_for_its_device_is_told_its_place(make_studio: MakeStudio, told_last: str) -> None:
    """Up to its next step nothing else happens to it, for as long as the others' edits take."""
    fleet = Crowded()
    waits = fleet.may_prepare if told_last == "processing" else fleet.may_step
    for signal in (fleet.may_prepare, fleet.may_step):
        signal.set()
    waits.clear()
    async with looking_often(make_studio(fleet=fleet)).open() as client:
        url = (await client.post(V2, json=GOOD)).json()["events_url"]
        events = asyncio.create_task(followed(client, url))
        for ahead, looks in (
            (1, 3),
            (2, 1),
            (0, 1),
        ):  # the first look is at an edit that has just begun; the third finds no change
            fleet.ahead = ahead
            for _ in range(looks):
                fleet.asked.clear()
                await asyncio.wait_for(fleet.asked.wait(), SOON_S)
        waits.set()
        told = [data for name, _, data in await events if name == told_last]
    places = [(data["queue_position"], data["eta_seconds"]) for data in told if data.get("step") != 1]
    if told_last == "processing":
        assert places == [(1, 6.0), (2, 9.0), (0, 3.0)]
        assert {(data["status"], data["attempt"]) for data in told} == {("PROCESSING", 1)}
    else:
        assert places[:3] == [(1, 6.0), (2, 9.0), (0, 3.0)]
        assert [data["step"] for data in told] == [0, 0, 0, 1, 2, 3, 4, 5, 6]


async def test_an_edit_that_is_being_written_down_waits_for_nobody(
    make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has left its device: nothing comes before it any more, and its time doesn't jump back to that of a new one."""
    fleet = Crowded()
    fleet.may_prepare.set()
    studio = make_studio(fleet=fleet)
    objects = studio.service.parts.objects
    storing, may_store, put = asyncio.Event(), asyncio.Event(), objects.put

    async def slow(key: str, data: bytes, *, content_type: str) -> None:
        if key.startswith("outputs/"):
            storing.set()
            await may_store.wait()
        await put(key, data, content_type=content_type)

    monkeypatch.setattr(objects, "put", slow)
    async with studio.open() as client:
        submitted = (await client.post(V2, json=GOOD)).json()
        await asyncio.wait_for(storing.wait(), SOON_S)
        status = (await client.get(submitted["status_url"])).json()
        may_store.set()
    assert (status["status"], status["queue_position"], status["eta_seconds"]) == ("PROCESSING", 0, 0.0)


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


async def test_a_stream_that_is_taken_up_again_hears_its_place(make_studio: MakeStudio) -> None:
    """Though nothing has happened since: it may have changed meanwhile."""
    fleet = Crowded()
    fleet.may_prepare.set()
    fleet.may_step.clear()
    studio = looking_often(make_studio(fleet=fleet))
    async with studio.open() as client:
        submitted = (await client.post(V2, json=GOOD)).json()
        await asyncio.wait_for(fleet.began.wait(), SOON_S)
        newest = studio.service.parts.desk.newest(JobId(submitted["request_id"]))
        assert newest is not None
        assert newest.kind == "progress"
        events = asyncio.create_task(followed(client, submitted["events_url"], **{"last-event-id": newest.id}))
        for _ in range(2):
            fleet.asked.clear()
            await asyncio.wait_for(fleet.asked.wait(), SOON_S)
        fleet.may_step.set()
        name, event_id, data = (await events)[0]
    assert (name, event_id) == ("progress", newest.id)
    assert (data["step"], data["queue_position"], data["eta_seconds"]) == (0, 1, 6.0)


async def test_time_in_the_devices_queue_is_waiting(make_studio: MakeStudio) -> None:
    """An edit that stood behind others for ten seconds hasn't waited for none."""
    fleet = Crowded()
    async with make_studio(fleet=fleet).open() as client:
        submitted = (await client.post(V2, json=GOOD)).json()
        await asyncio.wait_for(fleet.held.wait(), SOON_S)
        began = time.perf_counter()
        await asyncio.sleep(0.05)
        at_least_s = time.perf_counter() - began
        fleet.may_prepare.set()
        await followed(client, submitted["events_url"])
        ended = (await client.get(submitted["response_url"])).json()
    assert ended["timings"]["wait"] >= at_least_s
    assert ended["metrics"]["queue_time"] >= at_least_s
    assert ended["metrics"]["queue_time"] + ended["metrics"]["inference_time"] <= ended["metrics"]["total_time"] + 1e-3


async def test_a_stream_is_taken_up_again_after_the_last_event(client: httpx2.AsyncClient) -> None:
    """From every event on, exactly those that follow it."""
    url = (await client.post(V2, json=GOOD)).json()["events_url"]
    heard = await followed(client, url)
    for position, (_, event_id, _) in enumerate(heard[:-1]):
        rest = await followed(client, url, **{"last-event-id": event_id})
        assert [each[1] for each in rest] == [each[1] for each in heard[position + 1 :]]
    over = await client.get(url, headers={"last-event-id": heard[-1][1]})
    assert (over.status_code, over.content) == (204, b""), "or a client that has heard all would ask for ever"


async def test_previews_come_when_the_submit_asked_for_them(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As small pictures inside the stream, while the edit runs; the listener may thin them out or leave them out."""
    frame, told_last = sse.frame, asyncio.Semaphore(0)

    def watched(name: str, data: Mapping[str, object], event_id: str) -> bytes:
        if name == "progress" and data["step"] == 5:
            told_last.release()
        return frame(name, data, event_id)

    monkeypatch.setattr(sse, "frame", watched)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        submitted = (await client.post(V2, json=GOOD | {"previews": 2})).json()
        url = submitted["events_url"]
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        for step in (2, 6):
            studio.fleet.tell(Preview(step=step, steps=6, picture=Image.new("RGB", (6, 4))))
        studio.fleet.tell(Progress(step=5, steps=6, remaining_s=1.0))
        counts = {"": 1, "?previews=4": 0, "?previews=3": 1, "?previews=0": 0}
        listening = [asyncio.create_task(followed(client, f"{url}{query}")) for query in counts]
        for _ in counts:
            await asyncio.wait_for(told_last.acquire(), SOON_S)
        await client.post(submitted["cancel_url"])
        heard = await asyncio.wait_for(asyncio.gather(*listening), SOON_S)
        shown = [[data for name, _, data in each if name == "preview"] for each in heard]
        assert [len(previews) for previews in shown] == list(counts.values())
        assert shown[0][0]["step"] == 6, "of previews only the newest is remembered"
        uri = shown[0][0]["image"].removeprefix("data:image/jpeg;base64,")
        size = (shown[0][0]["width"], shown[0][0]["height"])
        assert Image.open(BytesIO(base64.b64decode(uri))).size == size == (6, 4)
        assert "preview" not in [name for name, _, _ in await followed(client, url)], "of an edit that ended none is"
        wrong = await client.get(f"{url}?previews=x")
        assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (400, "previews")


async def test_an_open_stream_ends_when_the_server_goes_down(studio: Studio) -> None:
    """It would keep the server waiting for its whole grace."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        url = (await client.post(V2, json=GOOD)).json()["events_url"]
        listening = asyncio.create_task(client.get(url))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        studio.service.hang_up()
        answer = await asyncio.wait_for(listening, SOON_S)
        assert "done" not in answer.text


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


async def test_one_key_and_one_body_are_one_job(studio: Studio) -> None:
    """Also across v1 and v2, also as a form; it is charged once and runs once. Another body is a 409."""
    key = {"idempotency-key": "order-17"}
    form = {name: (None, str(value)) for name, value in GOOD.items()}
    async with studio.open() as client:
        first = await client.post(V2, json=GOOD, headers=key)
        again = await client.post(V2, json=dict(reversed(GOOD.items())), headers=key)
        waited = await client.post(V1, json=GOOD, headers=key)
        as_form = await client.post(V2, files=form, headers=key)
        spelled = await client.post(V2, json=GOOD | {"seed": None, "ignored": 1}, headers=key)
        defaults = {"guidance": 7, "num_inference_steps": 35.0, "output_format": "png", "seed": -1, "previews": 0}
        spelled_out = await client.post(V2, json=defaults | GOOD, headers=key)
        wrong = await client.post(V2, json=GOOD | {"guidance": 11}, headers=key)
        other = await client.post(V2, json=GOOD | {"seed": 1}, headers=key)
        balance = (await client.get("/v1/get-user-credits")).json()["free-credits"]
    job = first.json()["request_id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert [each.json()["request_id"] for each in (again, as_form, spelled, spelled_out)] == [job] * 4
    assert (wrong.status_code, wrong.json()["code"]) == (409, "idempotency_key_reused")
    assert (waited.status_code, waited.headers["x-request-id"]) == (200, job)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    assert len(studio.fleet.requests) == 1
    assert balance == pytest.approx(9.96)


async def test_a_repeated_request_for_a_picture_whose_time_is_up(make_studio: MakeStudio) -> None:
    """Also before a sweep has been by; whoever waits for the edit itself gets it, however short its time is."""
    key = {"idempotency-key": "late"}
    async with make_studio(keep_outputs_s=0.001).open() as client:
        first = await client.post(V1, json=GOOD, headers=key)
        again = await client.post(V1, json=GOOD, headers=key)
    assert (first.status_code, first.headers["content-type"]) == (200, "image/png")
    assert (again.status_code, again.json()["code"]) == (404, "file_gone")


async def test_a_repeated_request_for_a_picture_that_is_gone(studio: Studio) -> None:
    """The job is known and not charged again; its picture can't be had any more."""
    key = {"idempotency-key": "late"}
    async with studio.open() as client:
        first = await client.post(V1, json=GOOD, headers=key)
        job = await studio.service.parts.desk.job(JobId(first.headers["x-request-id"]), account=None)
        assert job.outputs is not None
        await studio.service.parts.objects.delete(job.outputs[0].key)
        again = await client.post(V1, json=GOOD, headers=key)
        balance = (await client.get("/v1/get-user-credits")).json()["free-credits"]
    assert (again.status_code, again.json()["code"]) == (404, "file_gone")
    assert balance == pytest.approx(9.96)


async def test_thirty_two_submits_at_once_with_one_key_make_one_job(studio: Studio) -> None:
    """Whoever comes first makes it; all get it."""
    async with studio.open() as client:
        answers = await asyncio.gather(
            *(client.post(V2, json=GOOD, headers={"idempotency-key": "k"}) for _ in range(32))
        )
        await followed(client, answers[0].json()["events_url"])
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    assert len(studio.fleet.requests) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers].count(None) == 1


async def test_a_hundred_submits_at_once_on_a_balance_for_ten_make_exactly_ten(make_studio: MakeStudio) -> None:
    """The others are told the balance and the price, and cost nothing."""
    studio = make_studio(in_flight_max=1000)
    key = studio.new_account("ten", credits_micros=400_000).secret
    async with studio.open(), studio.client(key) as client:
        answers = await asyncio.gather(*(client.post(V1, json=GOOD) for _ in range(100)))
        credits = (await client.get("/v1/get-user-credits")).json()["free-credits"]
        database = studio.service.parts.database
        made = await database.read(lambda tx: tx.execute(select(jobs.c.state)).scalars().all())
        kinds = await database.read(lambda tx: tx.execute(select(transfers.c.kind)).scalars().all())
        assert await database.read(integrity.faults) == []
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [406] * 90
    refused = next(answer for answer in answers if answer.status_code == 406).json()
    assert refused["code"] == "insufficient_credits"
    assert "$0.04" in refused["error"]
    assert made == ["COMPLETED"] * 10
    assert (kinds.count("hold"), kinds.count("capture"), credits) == (10, 10, 0)


async def test_keys_that_are_not_good_for_it(studio: Studio) -> None:
    """Scope, model, priority: 403, each by name."""
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"scopes": frozenset({"read"})}, GOOD, "scope_missing"),
        ({"models": frozenset({"another"})}, GOOD, "model_not_allowed"),
        ({}, GOOD | {"priority": 1}, "scope_missing"),
    ]
    async with studio.open():
        for policy, body, code in cases:
            async with studio.client(studio.new_key(**policy).secret) as client:
                answer = await client.post(V2, json=body)
                assert (answer.status_code, answer.json()["code"]) == (403, code)
        async with studio.client(studio.new_key().secret) as client:
            assert (await client.post(V2, json=GOOD | {"priority": -2})).status_code == 200
    assert studio.fleet.requests == [] or studio.fleet.requests[0].priority == -2


async def test_the_rate_of_submits_is_limited_and_polls_are_not(studio: Studio) -> None:
    """The third of two is a 429 that says when to come back; status is asked a hundred times."""
    async with studio.open(), studio.client(studio.new_key(requests_per_minute=2).secret) as client:
        first = await client.post(V2, json=GOOD)
        assert (first.headers["ratelimit-limit"], first.headers["ratelimit-remaining"]) == ("2", "1")
        await client.post(V2, json=GOOD)
        refused = await client.post(V2, json=GOOD)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-rate-limit-reset-at-utc"].endswith("Z")
        assert refused.headers["ratelimit-remaining"] == "0"
        url = first.json()["status_url"]
        assert {(await client.get(url)).status_code for _ in range(100)} == {200}


async def test_json_by_the_key_and_by_the_header(studio: Studio) -> None:
    """The header decides where it says something; the key where it doesn't."""
    accepts: list[tuple[str, str, bool]] = [
        ("json", "*/*", True),
        ("json", "image/png", False),
        ("image", "*/*", False),
        ("image", "application/json", True),
    ]
    async with studio.open():
        for sync_response, accept, is_json in accepts:
            async with studio.client(studio.new_key(sync_response=sync_response).secret) as client:
                answer = await client.post(V1, json=GOOD, headers={"accept": accept})
            assert (answer.headers["content-type"] == "application/json") is is_json, (sync_response, accept)


async def test_what_ours_on_top_reaches_the_engine(studio: Studio) -> None:
    """Acceleration, priority, previews and the account."""
    async with studio.open() as client:
        body = GOOD | {"acceleration": "high", "priority": 2, "previews": 3}
        done = await followed(client, (await client.post(V2, json=body)).json()["events_url"])
    [request] = studio.fleet.requests
    assert (request.acceleration, request.priority, request.preview_every) == ("high", 2, 3)
    assert request.account == studio.account
    assert done[-1][2]["metrics"]["acceleration"] == "high"


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


async def test_prices_by_size_and_steps(make_studio: MakeStudio) -> None:
    """Added up from the settings, and named in the headers."""
    studio = make_studio(
        price_per_edit_usd="0.01", price_per_step_usd="0.001", price_per_megapixel_usd="1", first_credits_usd="1"
    )
    async with studio.open() as client:
        await client.post(V1, json=GOOD)
        answer = await client.post(V1, json=GOOD | {"num_inference_steps": 10})
    assert answer.headers["x-cost"] == "0.085536", "1 cent, 10 steps of 0.1 cent, 0.065536 megapixels of a dollar"
