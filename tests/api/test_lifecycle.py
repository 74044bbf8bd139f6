"""What happens around an edit: queues, deadlines, callers who hang up, engines that fail."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Final

import orjson
import pytest
from starlette.types import Message, Scope

from rekontext.contract import EditRefused, EngineFault
from tests.api.studio import HEADERS, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

URL: Final = "/v1/flux-kontext-dev"
GOOD: Final = {"prompt": "invert it", "input_image": base64.b64encode(photo_bytes()).decode()}


class Caller:
    """One connection, spoken to in ASGI, so that a test decides when it breaks."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = orjson.dumps(body)
        self._has_sent = False
        self.hang_up = asyncio.Event()
        self.got: list[Message] = []

    @property
    def scope(self) -> Scope:
        headers = [(b"content-type", b"application/json"), *((k.encode(), v.encode()) for k, v in HEADERS.items())]
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


async def test_hanging_up_stops_the_edit_within_one_step() -> None:
    """Nobody waits for the picture any more, so no further step is computed."""
    studio = Studio()
    studio.fleet.may_step.clear()
    caller = Caller(GOOD)
    call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
    await studio.fleet.began.wait()
    caller.hang_up.set()
    await asyncio.wait_for(studio.fleet.stopped.wait(), 5)
    await asyncio.wait_for(call, 5)
    assert studio.fleet.steps_done == 0
    async with studio.client() as client:  # and the place in the queue is free again
        studio.fleet.may_step.set()
        assert (await client.post(URL, json=GOOD)).status_code == 200


async def test_hanging_up_in_the_middle_of_the_body() -> None:
    """An upload that breaks off starts nothing."""
    studio = Studio()
    caller = Caller(GOOD)
    pieces: list[Message] = [
        {"type": "http.request", "body": b'{"prompt"', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return pieces.pop(0)

    await studio.app(caller.scope, receive, caller.send)
    assert caller.got[0]["status"] == 499
    assert studio.fleet.requests == []


async def test_a_full_queue_answers_429_with_retry_after() -> None:
    """Edits beyond the queue's places are turned away at once, and served once one is free."""
    studio = Studio(queue_max=1)
    studio.fleet.may_step.clear()
    async with studio.client() as client:
        inside = asyncio.create_task(client.post(URL, json=GOOD))
        await studio.fleet.began.wait()
        turned_away = await client.post(URL, json=GOOD)
        studio.fleet.may_step.set()
        assert (await inside).status_code == 200
        assert (await client.post(URL, json=GOOD)).status_code == 200
    assert (turned_away.status_code, turned_away.json()["code"]) == (429, "queue_full")
    assert 1 <= int(turned_away.headers["retry-after"]) <= 60
    assert len(studio.fleet.requests) == 2


async def test_no_more_edits_run_than_allowed() -> None:
    """The others wait as bytes: the fleet has seen one photo only."""
    studio = Studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.client() as client:
        calls = [asyncio.create_task(client.post(URL, json=GOOD)) for _ in range(3)]
        await studio.fleet.began.wait()
        assert len(studio.fleet.requests) == 1
        studio.fleet.may_step.set()
        assert [answer.status_code for answer in await asyncio.gather(*calls)] == [200, 200, 200]


async def test_the_deadline_answers_504_and_stops_the_edit() -> None:
    """A caller never waits for ever."""
    studio = Studio(deadline_s=0.05)
    studio.fleet.may_step.clear()
    async with studio.client() as client:
        answer = await client.post(URL, json=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert "0.05 s" in answer.json()["error"]
    assert studio.fleet.stopped.is_set()


async def test_edits_wait_for_the_model_to_load() -> None:
    """A request that comes before the model is ready is served, not refused."""
    studio = Studio(is_open=False)
    async with studio.client() as client:
        call = asyncio.create_task(client.post(URL, json=GOOD))
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        not_ready = await client.get("/readyz")
        assert (not_ready.status_code, not_ready.json()["code"]) == (503, "not_ready")
        assert studio.fleet.requests == []
        await studio.fleet.start()
        studio.edits.open()
        assert (await call).status_code == 200
        assert (await client.get("/readyz")).json()["model"] == "mini"


async def test_an_engine_fault_is_ours_and_tells_nothing() -> None:
    """500 with a request id; the reason stays in the log."""
    for fault in (EngineFault("secret tensor"), KeyError("secret key"), TimeoutError("secret socket")):
        studio = Studio()
        studio.fleet.fault = fault
        async with studio.client() as client:
            answer = await client.post(URL, json=GOOD)
        assert answer.status_code == 500
        assert answer.json()["code"] == ("engine_fault" if isinstance(fault, EngineFault) else "internal_error")
        assert answer.json()["request_id"] == answer.headers["x-request-id"] == "request-1"
        assert "secret" not in answer.text


async def test_an_engine_s_refusal_is_the_caller_s_fault() -> None:
    """What the engine will not do is answered 400 in its words."""
    studio = Studio()
    studio.fleet.fault = EditRefused("this model takes at most 24 words")
    async with studio.client() as client:
        answer = await client.post(URL, json=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (400, "edit_refused")
    assert answer.json()["error"] == "This model takes at most 24 words."
