"""How far an edit is, how many go before it and when it will be done: in answers, headers and streams of events."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from io import BytesIO

import httpx2
import pytest
from PIL import Image

from rekontext.api import sse
from rekontext.contract import EditRequest, EditResult, Estimate, OnProgress, Preview, Progress
from rekontext.database import JobId
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V2, followed
from tests.api.studio import SOON_S, PillowFleet, Studio

pytestmark = pytest.mark.anyio


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
