"""OpenAI's dialect on the wire: streams, and who hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from PIL import Image
from starlette.types import Scope

from rekontext.accounts import Balance
from rekontext.api import sse
from rekontext.api.dialects import openai_order
from rekontext.api.edits import Submitted
from rekontext.contract import STEPS_MAX, STEPS_MIN, Preview
from rekontext.jobs import Job
from rekontext.pictures import StoreUnavailable
from tests.api.caller import Caller, only_request
from tests.api.conftest import MakeStudio
from tests.api.dialects.openai_calls import EDITS, JSON, PHOTO, error, form, picture, told
from tests.api.studio import SOON_S, Studio, gone
from tests.pictures.samples import encoded, gradient

pytestmark = pytest.mark.anyio


async def test_a_stream_ends_with_the_picture(client: httpx2.AsyncClient) -> None:
    """The same that the other answer has, and the same facts in its headers, as far as they are known then."""
    answer = await form(client, stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert {"x-request-id", "ratelimit-remaining", "x-eta-seconds"} <= set(answer.headers)
    [(name, data)] = told(answer.text)
    assert name == "image_edit.completed"
    whole = (await form(client)).json()
    assert data.pop("created_at") <= whole.pop("created")
    assert data.pop("b64_json") == whole.pop("data")[0]["b64_json"]
    assert data == {"type": name, "quality": "auto", "usage": None} | whole


async def test_early_looks_come_before_the_picture(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as were asked for, though the engine may make more of them."""
    shown, looks = asyncio.Semaphore(0), openai_order.is_due

    def watched(seen: int, **about: int) -> bool:
        shown.release()
        return looks(seen, **about)

    monkeypatch.setattr(openai_order, "is_due", watched)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        call = asyncio.create_task(form(client, stream="true", partial_images="2", num_inference_steps="7"))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        for step in (2, 4, 6):
            studio.fleet.tell(Preview(step=step, steps=7, picture=Image.new("RGB", (6, 4))))
            await asyncio.wait_for(shown.acquire(), SOON_S)
        studio.fleet.may_step.set()
        answer = await asyncio.wait_for(call, SOON_S)
    assert studio.fleet.requests[0].preview_every == 2
    *early, (last, _) = told(answer.text)
    assert last == "image_edit.completed"
    assert [(name, data["partial_image_index"]) for name, data in early] == [
        ("image_edit.partial_image", 0),
        ("image_edit.partial_image", 1),
    ]
    look = early[0][1]
    assert (picture(look["b64_json"]).size, picture(look["b64_json"]).format) == ((6, 4), "JPEG")
    assert (look["size"], look["output_format"]) == ("6x4", "jpeg")


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_looks_are_spread_over_the_steps(looks: int) -> None:
    """Of every number of steps all are there, each within half a pause of its place."""
    for steps in range(STEPS_MIN, STEPS_MAX + 1):
        every = max(1, steps // (looks + 1))
        at: list[int] = []
        for step in range(every, steps + 1, every):
            if openai_order.is_due(len(at), looks=looks, step=step, steps=steps):
                at.append(step)
        places = [steps * (index + 1) / (looks + 1) for index in range(looks)]
        assert len(at) == looks, steps
        assert all(abs(step - place) <= every / 2 for step, place in zip(at, places, strict=True)), (steps, at)
        assert at[-1] < steps


async def test_a_stream_fails_before_it_begins_as_any_call(client: httpx2.AsyncClient) -> None:
    """Its caller gets an HTTP error, not a stream of one."""
    error(await form(client, stream="true", size="x"), 400, "invalid_parameters")


@pytest.mark.parametrize("how", ["cancelled", "deadline", "server goes down", "cut photo", "store away"])
async def test_a_stream_that_fails_says_why(make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Under the names of its caller, with the code of the same failure before a stream."""

    async def away(*_: object) -> bytes:
        raise StoreUnavailable("away")

    studio = make_studio(deadline_s=0.05) if how == "deadline" else make_studio()
    studio.fleet.may_step.clear()
    whole = encoded(gradient(64, 64))
    photo = whole[: len(whole) // 2] if how == "cut photo" else PHOTO
    async with studio.open() as client:
        call = asyncio.create_task(form(client, ("image", ("a", photo)), stream="true"))
        if how != "cut photo":  # which is seen before the engine has it
            await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        if how == "cancelled":
            await client.post(f"/v2/requests/{(await only_request(client))['request_id']}/cancel")
        elif how == "server goes down":
            studio.service.hang_up()
        elif how == "store away":
            monkeypatch.setattr(studio.service.parts.objects, "get", away)
            studio.fleet.may_step.set()
        answer = await asyncio.wait_for(call, SOON_S)
        studio.fleet.may_step.set()
    [(name, data)] = told(answer.text)
    assert (answer.status_code, name) == (200, "error")
    goes_on = f"Ask for it at /v2/requests/{answer.headers['x-request-id']}."
    code, param, says = {
        "cancelled": ("cancelled", None, "cancelled by another request"),
        "deadline": ("deadline_exceeded", None, goes_on),
        "server goes down": ("deadline_exceeded", None, goes_on),
        "cut photo": ("unreadable_picture", "image", "image can't be used"),
        "store away": ("store_unavailable", None, goes_on),
    }[how]
    assert (data["error"]["code"], data["error"]["param"]) == (code, param)
    assert says in data["error"]["message"]


async def test_a_stream_hears_of_the_end_though_the_database_was_away(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it there are no looks; the picture is there all the same, and the connection is kept alive until then."""
    kept_alive = asyncio.Event()
    stream = sse.stream

    async def heard(*about: Any, **more: Any) -> AsyncIterator[bytes]:
        async for frame in stream(*about, **more):
            if frame.startswith(b":"):
                kept_alive.set()
            yield frame

    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.001)
    monkeypatch.setattr(sse, "stream", heard)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        monkeypatch.setattr(studio.service.parts.desk, "_tell_what_is_known", gone)
        call = asyncio.create_task(form(client, stream="true", partial_images="1"))
        await asyncio.wait_for(kept_alive.wait(), SOON_S)
        studio.fleet.may_step.set()
        answer = await asyncio.wait_for(call, SOON_S)
    assert [name for name, _ in told(answer.text)] == ["image_edit.completed"]


class Listener(Caller):
    """A connection to this path."""

    @property
    def scope(self) -> Scope:
        return {**super().scope, "path": EDITS, "raw_path": EDITS.encode()}


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_hanging_up_cancels_the_edit(studio: Studio, is_streamed: bool, has_key: bool) -> None:
    """Unless its caller may come back for it by an idempotency key."""
    headers = {**studio.headers, **({"idempotency-key": "k"} if has_key else {})}
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        caller = Listener(JSON | {"stream": is_streamed}, headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        if not has_key:
            await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        studio.fleet.may_step.set()
        again = await client.post(EDITS, json=JSON | {"stream": is_streamed}, headers=headers)
    assert again.headers.get("idempotency-replayed") == ("true" if has_key else None)
    assert len(studio.fleet.requests) == (1 if has_key else 2)
    assert b'"b64_json"' in again.content


async def test_a_listener_who_hangs_up_is_seen_by_one_only(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the stream broken off by another who sees it, the edit might go on with nobody waiting for it."""
    edits = studio.service.parts.edits
    honest = edits.wait

    async def slow_to_stop(submitted: Submitted) -> tuple[Job, Balance]:
        try:
            return await honest(submitted)
        except asyncio.CancelledError:
            for _ in range(100):
                await asyncio.sleep(0)
            raise

    monkeypatch.setattr(edits, "wait", slow_to_stop)
    studio.fleet.may_step.clear()
    async with studio.open():
        caller = Listener(JSON | {"stream": True}, studio.headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
