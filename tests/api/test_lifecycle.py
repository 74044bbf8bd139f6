"""What happens around an edit: callers who hang up, and edits that wait for room, for a model, up to a deadline."""

from __future__ import annotations

import asyncio
import base64
import random
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2
import pytest
from PIL import Image
from starlette.types import Message

from rekontext import assembly
from rekontext.api import surfaces
from rekontext.database import AccountId, DatabaseUnavailable, JobId
from rekontext.jobs import Job
from tests.api.caller import Caller, only_request
from tests.api.conftest import MakeStudio
from tests.api.orders import PLAIN, V1
from tests.api.studio import SOON_S, PillowFleet, Studio
from tests.pictures.samples import encoded

pytestmark = pytest.mark.anyio


async def test_hanging_up_cancels_the_edit_within_one_step(studio: Studio) -> None:
    """Nobody waits for the picture any more, so no further step is computed and nothing is charged."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        caller = Caller(PLAIN, studio.headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        await asyncio.wait_for(call, SOON_S)
        assert studio.fleet.steps_done == 0
        studio.fleet.may_step.set()
        assert (await client.post(V1, json=PLAIN)).headers["x-remaining-credits"] == "9.96"


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
        caller = Caller(PLAIN, studio.headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        assert (await only_request(client))["status"] in ("PROCESSING", "CANCELLED")
        studio.fleet.may_step.set()
        assert (await client.post(V1, json=PLAIN)).headers["x-remaining-credits"] == "9.96"
    assert tries == 3


async def test_a_key_that_is_revoked_while_the_body_comes_orders_nothing(studio: Studio) -> None:
    """A body may take hours; whoever revokes a key that leaked means all that comes from then on."""
    leaked = studio.new_key()
    async with studio.open() as client:
        caller = Caller(PLAIN, {"x-api-key": leaked.secret})
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
        caller = Caller(PLAIN, headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        studio.fleet.may_step.set()
        answer = await client.post(V1, json=PLAIN, headers=headers)
        assert (answer.status_code, answer.headers["idempotency-replayed"]) == (200, "true")
        assert answer.headers["x-request-id"] == (await only_request(client))["request_id"]
    assert len(studio.fleet.requests) == 1


async def test_hanging_up_in_the_middle_of_the_body(studio: Studio) -> None:
    """An upload that breaks off starts nothing."""
    caller = Caller(PLAIN, studio.headers)
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
        inside = [asyncio.create_task(client.post(V1, json=PLAIN | {"num_inference_steps": 40}))]
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        if code == "queue_full":
            assert (await client.post("/v2/flux-kontext-dev", json=PLAIN)).status_code == 200
        turned_away = await client.post(V1, json=PLAIN)
        held = (await client.get("/console/api/me")).json()["balance"]["held"]
        studio.fleet.may_step.set()
        assert [(await call).status_code for call in inside] == [200]
        assert (await client.post(V1, json=PLAIN)).status_code == 200
    assert (turned_away.status_code, turned_away.json()["code"]) == (429, code)
    assert int(turned_away.headers["retry-after"]) == 40 * step_s, "when the one that runs is expected to end"
    assert held == pytest.approx(0.08 if code == "queue_full" else 0.04)


async def test_no_more_edits_run_than_allowed(make_studio: MakeStudio) -> None:
    """The others wait as bytes: the fleet has seen one photo only."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        calls = [asyncio.create_task(client.post(V1, json=PLAIN)) for _ in range(3)]
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        assert len(studio.fleet.requests) == 1
        studio.fleet.may_step.set()
        assert [answer.status_code for answer in await asyncio.gather(*calls)] == [200, 200, 200]


async def test_the_deadline_answers_504_and_says_where_the_result_will_be(make_studio: MakeStudio) -> None:
    """A caller never waits for ever, and the edit is not lost."""
    studio = make_studio(deadline_s=0.05)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        answer = await client.post(V1, json=PLAIN)
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
        call = asyncio.create_task(client.post(V1, json=PLAIN))
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
        answer = await client.post(V1, json=PLAIN)
        assert (answer.status_code, answer.json()["code"]) == (504, "queue_timeout")
        me = (await client.get("/console/api/me")).json()
        assert me["balance"]["available"] == 10
        assert not studio.fleet.is_ready


async def in_turn(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def asked(photo: bytes) -> Mapping[str, tuple[str, dict[str, Any]]]:
    """A call of every surface that waits, with a photo in it: its path, and how it is made."""
    text = base64.b64encode(photo).decode()
    plain = {"prompt": "invert it"}
    replicate = {"json": {"input": plain | {"input_image": text}}, "headers": {"prefer": "wait"}}
    return {
        "JSON": (V1, {"json": PLAIN | {"input_image": text}}),
        "a form": (V1, {"data": plain, "files": {"input_image": photo}}),
        "OpenAI": ("/v1/images/edits", {"data": plain, "files": {"image": photo}}),
        "Replicate": ("/v1/models/black-forest-labs/flux-kontext-dev/predictions", replicate),
        "fal": ("/fal/run/fal-ai/flux-kontext/dev", {"json": plain | {"image_url": text}}),
        "Hugging Face": ("/hf/flux-kontext-dev", {"json": {"inputs": text, "parameters": plain}}),
    }


@pytest.mark.parametrize("surface", asked(b""))
async def test_who_waits_holds_no_picture(
    monkeypatch: pytest.MonkeyPatch, make_studio: MakeStudio, surface: str
) -> None:
    """The store has it: hundreds may wait, each for minutes, with bodies of many megabytes."""
    monkeypatch.setattr(assembly, "_RECENT_BYTES_MAX", 0)  # bounded, however many wait
    studio = make_studio()
    photo = encoded(Image.frombytes("RGB", (150, 150), random.Random(0).randbytes(3 * 150 * 150)))
    path, how = asked(photo)[surface]
    studio.fleet.may_start.clear()
    async with studio.open() as client:
        whole = client.build_request("POST", path, **how)
        body = await whole.aread()
        pieces = [body[start : start + 2**14] for start in range(0, len(body), 2**14)]
        tracemalloc.start()  # the caller's own copies were made before
        try:
            headers = {name: whole.headers[name] for name in ("content-type", "prefer") if name in whole.headers}
            call = asyncio.create_task(client.post(path, content=in_turn(pieces), headers=headers))
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
        assert (await call).is_success
