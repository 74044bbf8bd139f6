"""What happens around an edit: queues, deadlines, callers who hang up, engines that fail."""

from __future__ import annotations

import asyncio
import base64
import random
import threading
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import httpx2
import orjson
import pytest
from PIL import Image
from starlette.types import Message, Scope
from structlog.testing import capture_logs

from rekontext import assembly
from rekontext.api import disk, health, surfaces
from rekontext.api.console import admin
from rekontext.api.parts import Parts
from rekontext.contract import EditRefused, EngineFault
from rekontext.database import AccountId, DatabaseUnavailable, JobId
from rekontext.jobs import Job, JobLife
from rekontext.pictures import StoreUnavailable
from tests.api.conftest import MakeStudio
from tests.api.studio import SOON_S, PillowFleet, Studio, gone
from tests.pictures.samples import encoded, photo_bytes

pytestmark = pytest.mark.anyio

URL: Final = "/v1/flux-kontext-dev"
GOOD: Final = {"prompt": "invert it", "input_image": base64.b64encode(photo_bytes()).decode()}
DOUBT: Final = DatabaseUnavailable("gone", is_in_doubt=True)


class Caller:
    """One connection, spoken to in ASGI, so that a test decides when it breaks."""

    def __init__(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        self._body = orjson.dumps(body)
        self._headers = headers
        self._has_sent = False
        self.hang_up = asyncio.Event()
        self.got: list[Message] = []

    @property
    def scope(self) -> Scope:
        headers = [
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in self._headers.items()),
        ]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": URL,
            "raw_path": URL.encode(),
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("studio", 80),
            "client": ("caller", 1),
        }

    async def receive(self) -> Message:
        if not self._has_sent:
            self._has_sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.got.append(message)


async def only_request(client: httpx2.AsyncClient) -> dict[str, Any]:
    """The one job that the account has."""
    [row] = (await client.get("/console/api/requests")).json()["data"]
    found: dict[str, Any] = row
    return found


async def test_hanging_up_cancels_the_edit_within_one_step(studio: Studio) -> None:
    """Nobody waits for the picture any more, so no further step is computed and nothing is charged."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        caller = Caller(GOOD, studio.headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        await asyncio.wait_for(call, SOON_S)
        assert studio.fleet.steps_done == 0
        studio.fleet.may_step.set()
        assert (await client.post(URL, json=GOOD)).headers["x-remaining-credits"] == "9.96"


async def test_hanging_up_while_the_database_is_away_cancels_once_it_is_back(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was promised, and nobody is there to ask again."""
    monkeypatch.setattr(surfaces, "_CANCEL_AGAIN_S", 0.01)
    studio.fleet.may_step.clear()
    honest, tries = studio.service.parts.desk.cancel, 0

    async def third_time_lucky(job: JobId, *, account: AccountId | None) -> Job:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DatabaseUnavailable("gone")
        return await honest(job, account=account)

    async with studio.open() as client:
        monkeypatch.setattr(studio.service.parts.desk, "cancel", third_time_lucky)
        caller = Caller(GOOD, studio.headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        assert (await only_request(client))["status"] in ("PROCESSING", "CANCELLED")
        studio.fleet.may_step.set()
        assert (await client.post(URL, json=GOOD)).headers["x-remaining-credits"] == "9.96"
    assert tries == 3


async def test_a_key_that_is_revoked_while_the_body_comes_orders_nothing(studio: Studio) -> None:
    """A body may take hours; whoever revokes a key that leaked means all that comes from then on."""
    leaked = studio.new_key()
    async with studio.open() as client:
        caller = Caller(GOOD, {"x-api-key": leaked.secret})
        honest = caller.receive

        async def revoked_meanwhile() -> Message:
            await asyncio.to_thread(studio.act, lambda tx, acts: acts.revoke_key(tx, leaked.key.id))
            return await honest()

        await asyncio.wait_for(studio.app(caller.scope, revoked_meanwhile, caller.send), SOON_S)
        assert caller.got[0]["status"] == 401
        assert b"revoked" in caller.got[1]["body"]
        assert (await client.get("/console/api/requests")).json()["data"] == []


async def test_hanging_up_with_an_idempotency_key_leaves_the_edit_alone(studio: Studio) -> None:
    """Whoever sent a key may come back for the result, and gets that of the first request."""
    studio.fleet.may_step.clear()
    headers = studio.headers | {"idempotency-key": "mine"}
    async with studio.open() as client:
        caller = Caller(GOOD, headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        studio.fleet.may_step.set()
        answer = await client.post(URL, json=GOOD, headers=headers)
        assert (answer.status_code, answer.headers["idempotency-replayed"]) == (200, "true")
        assert answer.headers["x-request-id"] == (await only_request(client))["request_id"]
    assert len(studio.fleet.requests) == 1


async def test_hanging_up_in_the_middle_of_the_body(studio: Studio) -> None:
    """An upload that breaks off starts nothing."""
    caller = Caller(GOOD, studio.headers)
    pieces: list[Message] = [
        {"type": "http.request", "body": b'{"prompt"', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return pieces.pop(0)

    async with studio.open():
        await studio.app(caller.scope, receive, caller.send)
    assert caller.got[0]["status"] == 499
    assert studio.fleet.requests == []


@pytest.mark.parametrize(
    ("bound", "code"),
    [({"in_flight_max": 1}, "too_many_in_flight"), ({"running_max": 1, "queue_max": 1}, "queue_full")],
)
async def test_too_many_edits_answer_429_with_retry_after(
    make_studio: MakeStudio, bound: dict[str, int], code: str
) -> None:
    """Edits beyond a bound are turned away at once and hold nothing; they are served once there is room."""
    step_s = 0.3
    studio = make_studio(PillowFleet(step_s=step_s), **bound)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        inside = [asyncio.create_task(client.post(URL, json=GOOD | {"num_inference_steps": 40}))]
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        if code == "queue_full":
            assert (await client.post("/v2/flux-kontext-dev", json=GOOD)).status_code == 200
        turned_away = await client.post(URL, json=GOOD)
        held = (await client.get("/console/api/me")).json()["balance"]["held"]
        studio.fleet.may_step.set()
        assert [(await call).status_code for call in inside] == [200]
        assert (await client.post(URL, json=GOOD)).status_code == 200
    assert (turned_away.status_code, turned_away.json()["code"]) == (429, code)
    assert int(turned_away.headers["retry-after"]) == 40 * step_s, "when the one that runs is expected to end"
    assert held == pytest.approx(0.08 if code == "queue_full" else 0.04)


async def test_no_more_edits_run_than_allowed(make_studio: MakeStudio) -> None:
    """The others wait as bytes: the fleet has seen one photo only."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        calls = [asyncio.create_task(client.post(URL, json=GOOD)) for _ in range(3)]
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        assert len(studio.fleet.requests) == 1
        studio.fleet.may_step.set()
        assert [answer.status_code for answer in await asyncio.gather(*calls)] == [200, 200, 200]


async def test_the_deadline_answers_504_and_says_where_the_result_will_be(make_studio: MakeStudio) -> None:
    """A caller never waits for ever, and the edit is not lost."""
    studio = make_studio(deadline_s=0.05)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        answer = await client.post(URL, json=GOOD)
        body = answer.json()
        assert (answer.status_code, body["code"]) == (504, "deadline_exceeded")
        assert "0.05 s" in body["error"]
        assert answer.headers["x-should-retry"] == "false", "a client that posts again by itself would pay twice"
        assert (await client.get(body["status_url"])).json()["status"] in ("QUEUED", "PROCESSING")
        studio.fleet.may_step.set()
        done = await ended(client, body["response_url"])
    assert (done["status"], done["request_id"]) == ("COMPLETED", body["request_id"])


async def ended(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    """The result, once the event stream of its job is over."""
    events = await client.get(f"{url}/events")
    assert events.text.rstrip().rpartition("\n\n")[2].splitlines()[1] == "event: done"
    document: dict[str, Any] = (await client.get(url)).json()
    return document


async def test_edits_wait_for_the_model_to_load(studio: Studio) -> None:
    """A request that comes before the model is ready is served, not refused."""
    studio.fleet.may_start.clear()
    async with studio.open() as client:
        call = asyncio.create_task(client.post(URL, json=GOOD))
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        not_ready = await client.get("/readyz")
        assert (not_ready.status_code, not_ready.json()["code"]) == (503, "not_ready")
        assert not_ready.json()["not_ready"] == ["model"]
        assert studio.fleet.requests == []
        studio.fleet.may_start.set()
        assert (await call).status_code == 200
        assert (await client.get("/readyz")).json()["model"] == "mini"


async def test_an_edit_that_waits_too_long_for_the_model_fails_and_is_free(make_studio: MakeStudio) -> None:
    """The time in the queue has its limit also where a model takes hours, or no device has ever been up."""
    studio = make_studio(queue_s_max=0.01, lease_s=1)
    studio.fleet.may_start.clear()
    async with studio.open() as client:
        answer = await client.post(URL, json=GOOD)
        assert (answer.status_code, answer.json()["code"]) == (504, "queue_timeout")
        me = (await client.get("/console/api/me")).json()
        assert me["balance"]["available"] == 10
        assert not studio.fleet.is_ready


async def in_turn(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("as_form", [False, True], ids=["JSON", "a form"])
async def test_who_waits_holds_no_picture(
    monkeypatch: pytest.MonkeyPatch, make_studio: MakeStudio, *, as_form: bool
) -> None:
    """The store has it: hundreds may wait, each for minutes, with bodies of many megabytes."""
    monkeypatch.setattr(assembly, "_RECENT_BYTES_MAX", 0)  # bounded, however many wait
    studio = make_studio()
    photo = encoded(Image.frombytes("RGB", (150, 150), random.Random(0).randbytes(3 * 150 * 150)))
    studio.fleet.may_start.clear()
    async with studio.open() as client:
        if as_form:
            whole = client.build_request("POST", URL, data={"prompt": "invert it"}, files={"input_image": photo})
        else:
            whole = client.build_request("POST", URL, json=GOOD | {"input_image": base64.b64encode(photo).decode()})
        body = await whole.aread()
        pieces = [body[start : start + 2**14] for start in range(0, len(body), 2**14)]
        tracemalloc.start()  # the caller's own copies were made before
        try:
            headers = {"content-type": whole.headers["content-type"]}
            call = asyncio.create_task(client.post(URL, content=in_turn(pieces), headers=headers))
            async with asyncio.timeout(SOON_S):
                while not (await client.get("/console/api/admin/queue")).json()["queued"]:
                    pass
            until = time.monotonic() + SOON_S  # what the last step held may take a while to go
            # weakref's table of finalizers may have to grow just now, by what earlier tests have left in it.
            elsewhere = tracemalloc.Filter(False, weakref.__file__)
            while large := [
                each
                for each in tracemalloc.take_snapshot().filter_traces([elsewhere]).traces
                if each.size > len(photo) / 2
            ]:
                assert time.monotonic() < until, [str(each.traceback) for each in large]
                await asyncio.sleep(0.05)
        finally:
            tracemalloc.stop()
        studio.fleet.may_start.set()
        assert (await call).status_code == 200


async def test_a_service_whose_engine_broke_says_so_and_wants_to_end(studio: Studio) -> None:
    """A supervisor starts it anew; meanwhile nobody is sent here."""
    async with studio.open() as client:
        assert (await client.get("/readyz")).status_code == 200
        studio.fleet.may_break.set()
        for _ in range(1000):
            if studio.broken:
                break
            await asyncio.sleep(0.01)
        assert (await client.get("/readyz")).status_code == 503
        fault = studio.broken.pop()
    assert (type(fault), str(fault)) == (EngineFault, "the engine broke: no device")


async def test_nothing_is_ready_without_the_database(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer sends its traffic elsewhere; a human reads what is missing."""
    async with studio.open() as client:
        assert (await client.get("/readyz")).status_code == 200
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.database, "read", gone)
            answer = await client.get("/readyz")
            studio.fleet.is_ready = False
            neither = await client.get("/readyz")
            studio.fleet.is_ready = True
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert answer.json()["error"] == "The database can't be reached."
        assert (answer.json()["not_ready"], answer.headers["retry-after"]) == (["database"], "1")
        assert neither.json()["not_ready"] == ["model", "database"]
        assert (await client.get("/readyz")).status_code == 200


async def test_nothing_is_ready_on_a_full_disk(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database still reads; but no edit can be accepted. When there is room again, that is seen."""
    tried: list[Path] = []

    def full(*, dir: Path) -> BinaryIO:
        tried.append(dir)
        return Path("/dev/full").open("wb")

    now_s = 0.0
    monkeypatch.setattr(disk, "monotonic", lambda: now_s)
    async with studio.open() as client:
        assert (await client.get("/readyz")).status_code == 200
        with monkeypatch.context() as broken:
            broken.setattr("rekontext.api.disk.tempfile.TemporaryFile", full)
            assert (await client.get("/readyz")).status_code == 200, "the outcome counts for a while"
            now_s += disk.KEPT_S
            answers = [await client.get("/readyz") for _ in range(3)]
            assert (answers[0].status_code, answers[0].json()["not_ready"]) == (503, ["disk"])
            assert answers[0].json()["error"] == "The disk is full or can't be written."
            assert tried == [studio.options.data_dir], "one trial is enough for some seconds"
        now_s += disk.KEPT_S
        assert (await client.get("/readyz")).status_code == 200
    assert not list(studio.options.data_dir.glob("tmp*"))


async def test_a_folder_that_is_gone_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is tried; a disk that hangs is tried by one at a time, and said to be full meanwhile."""
    assert await disk.DiskCheck([]).has_room()
    assert await disk.DiskCheck([tmp_path]).has_room()
    assert not await disk.DiskCheck([tmp_path, tmp_path / "gone"]).has_room()
    trials = 0
    may_go_on = threading.Event()

    def hang(_folders: Sequence[Path]) -> bool:
        nonlocal trials
        trials += 1
        return may_go_on.wait(10)

    monkeypatch.setattr(disk, "_all_take", hang)
    monkeypatch.setattr(disk, "LOOK_S_MAX", 0.01)
    hanging = disk.DiskCheck([tmp_path])
    assert [await hanging.has_room() for _ in range(2)] == [False, False]
    monkeypatch.setattr(disk, "LOOK_S_MAX", 10.0)
    may_go_on.set()
    assert await hanging.has_room()
    assert trials == 1


async def test_readiness_is_told_soon_when_the_database_says_nothing(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs is as good as away."""
    asked = asyncio.Event()

    async def hang(_work: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(health, "LOOK_S_MAX", 0.01)
    async with studio.open() as client:
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.database, "read", hang)
            answer = await asyncio.wait_for(client.get("/readyz"), SOON_S)
    assert asked.is_set()
    assert (answer.status_code, answer.json()["not_ready"]) == (503, ["database"])


async def test_a_store_that_is_away_answers_503_and_holds_nothing(studio: Studio) -> None:
    """Full, unmounted, unreachable: the caller may come again, and the log has the reason."""
    objects = studio.options.data_dir / "store"
    async with studio.open() as client:
        objects.rename(studio.folder / "elsewhere")
        objects.write_text("no folder any more")
        with capture_logs() as lines:
            answers = [await client.post(url, json=GOOD) for url in (URL, "/v2/flux-kontext-dev")]
        balance = (await client.get("/console/api/me")).json()["balance"]
        objects.unlink()
        (studio.folder / "elsewhere").rename(objects)
        assert (await client.post(URL, json=GOOD)).status_code == 200
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"].startswith("The picture store is full or can't be reached just now;")
        assert str(objects) not in answer.text
    assert (balance["available"], balance["held"]) == (10, 0)
    said = [line["fault"] for line in lines if line["event"] == "store_unavailable"]
    assert [str(objects) in each for each in said] == [True, True]
    assert len(studio.fleet.requests) == 1


@pytest.mark.parametrize(("in_doubt", "says"), [(True, "it may have happened"), (False, "nothing was changed")])
async def test_advice_names_what_is_read(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, in_doubt: bool, says: str
) -> None:
    """Only submits read Idempotency-Key: whoever adds credits can but look."""

    def broken(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("gone", is_in_doubt=in_doubt)

    monkeypatch.setattr(JobLife, "accept", broken)
    monkeypatch.setattr("rekontext.accounts.Acts.add_credits", broken)
    credits = f"/console/api/admin/accounts/{studio.account}/credits"
    async with studio.open() as client:
        for path, body, has_key in ((URL, GOOD, True), (credits, {"amount": 1}, False)):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert says in answer.json()["error"]
            assert ("Idempotency-Key" in answer.json()["error"]) is (in_doubt and has_key)
            told_off = answer.headers.get("x-should-retry") == "false"
            assert told_off is in_doubt, "a client that posts again by itself might pay twice"


@pytest.mark.parametrize(("fault", "left"), [(DatabaseUnavailable("gone"), 0), (RuntimeError("a bug"), 0), (DOUBT, 1)])
async def test_an_order_that_cannot_be_written_down_leaves_nothing_behind(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, fault: Exception, left: int
) -> None:
    """Unless it may be accepted all the same: then its edit needs the picture, and the sweeper looks later."""

    def broken(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(JobLife, "accept", broken)
    async with studio.open() as client:
        assert (await client.post(URL, json=GOOD)).status_code in (500, 503)
        assert len([found async for found in studio.service.parts.objects.list("inputs")]) == left


async def test_a_refusal_stays_one_when_the_store_goes_away(
    make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture of an order that was turned away can't be removed: the caller is told of the order all the same."""
    studio = make_studio(in_flight_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        running = asyncio.create_task(client.post(URL, json=GOOD))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.objects, "delete", away)
            answer = await client.post(URL, json=GOOD)
        studio.fleet.may_step.set()
        assert (await running).status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_in_flight")


async def test_a_picture_that_can_t_be_read_is_not_ordered_again(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made and paid: the answer says where it will be, and asks no client to post once more."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        call = asyncio.create_task(client.post(URL, json=GOOD))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.objects, "get", away)
            studio.fleet.may_step.set()
            answer = await call
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert "retry-after" not in answer.headers
        result = (await client.get(answer.json()["response_url"])).json()
        assert result["status"] == "COMPLETED"
        assert (await client.get(result["output"])).status_code == 200


async def away(_key: str) -> None:
    raise StoreUnavailable("the store could not do that")


async def test_a_paid_picture_is_handed_over_without_the_database(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for it needs none either; only its header with the credits that remain is as old as the submit."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        monkeypatch.setattr(studio.service.parts.desk, "job", gone)
        call = asyncio.create_task(client.post(URL, json=GOOD))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.database, "read", gone)
            studio.fleet.may_step.set()
            answer = await call
    assert (answer.status_code, answer.headers["x-remaining-credits"]) == (200, "9.96")


@pytest.mark.parametrize("fault", [EngineFault("secret tensor"), KeyError("secret key"), OSError("secret socket")])
async def test_an_engine_fault_is_ours_tells_nothing_and_is_free(studio: Studio, fault: Exception) -> None:
    """500 with a request id; the reason stays in the log."""
    studio.fleet.fault = fault
    async with studio.open() as client:
        answer = await client.post(URL, json=GOOD)
        balance = (await client.get("/console/api/me")).json()["balance"]
    assert (answer.status_code, answer.json()["code"]) == (500, "engine_fault")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert (balance["available"], balance["held"]) == (10, 0)


async def test_a_model_that_goes_while_a_call_asks_for_it_is_one_line_in_the_log(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that is foreseen, as all that have a code of their own, and the connection stays."""

    def going(_parts: Parts) -> NoReturn:
        raise EngineFault("secret tensor")

    monkeypatch.setattr(admin, "described_model", going)
    async with studio.open() as client:
        with capture_logs() as lines:
            answer = await client.get("/console/api/admin/queue")
    assert (answer.status_code, answer.json()["code"]) == (500, "engine_fault")
    assert "secret" not in answer.text
    assert "connection" not in answer.headers
    assert [line["fault"] for line in lines if line["event"] == "engine_fault"] == ["secret tensor"]


async def test_an_engine_s_refusal_is_the_caller_s_fault(studio: Studio) -> None:
    """What the engine will not do is answered 400 in its words."""
    studio.fleet.fault = EditRefused("this model takes at most 24 words")
    async with studio.open() as client:
        answer = await client.post(URL, json=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (400, "edit_refused")
    assert answer.json()["error"] == "This model takes at most 24 words."


@pytest.mark.parametrize("refusal", ["engine", "photo"])
async def test_a_refused_edit_is_told_the_same_way_to_who_waits_and_who_comes_back(
    studio: Studio, refusal: str
) -> None:
    """One code for each kind, and a sentence, on both surfaces."""
    order = dict(GOOD)
    if refusal == "engine":
        studio.fleet.fault = EditRefused("this model takes at most 24 words")
    else:
        order["input_image"] = base64.b64encode(photo_bytes(200, 200)[:-900]).decode()
    async with studio.open() as client:
        waited = (await client.post(URL, json=order)).json()
        submitted = (await client.post("/v2/flux-kontext-dev", json=order)).json()
        async with asyncio.timeout(20):
            while (answer := await client.get(submitted["response_url"])).status_code == 202:
                pass
    result = answer.json()
    assert result["code"] == waited["code"]
    begins = {"engine": "This model", "photo": "input_image can't be used"}
    assert result["error"].startswith(begins[refusal]), "a capital, but for a parameter's name"
    assert result["error"].endswith(".")
    kinds = {"engine": "edit_refused", "photo": "unreadable_picture"}
    assert waited["code"] == kinds[refusal]
