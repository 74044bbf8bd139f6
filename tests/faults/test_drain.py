"""An orderly shutdown: running edits may end, no more are begun, and whoever waits is told where the result will be."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any, Final

import pytest

from rekontext.database import JobId
from rekontext.jobs import Job, State, queries
from tests.api.studio import Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

ORDER: Final[dict[str, Any]] = {
    "prompt": "invert it",
    "input_image": base64.b64encode(photo_bytes()).decode(),
    "num_inference_steps": 4,
}


async def job_of(studio: Studio, job: str) -> Job:
    return await studio.service.parts.database.read(lambda tx: queries.get(tx, JobId(job)))


async def test_running_edits_end_and_waiting_ones_are_left_for_the_next_process(tmp_path: Path) -> None:
    """From the moment of the signal on, not only once all connections are closed."""
    studio = Studio(folder=tmp_path, settings={"running_max": 1, "shutdown_grace_s": 30})
    studio.fleet.may_step.clear()
    async with asyncio.timeout(30), studio.open() as client:
        running = asyncio.create_task(client.post("/v1/flux-kontext-dev", json=ORDER))
        await studio.fleet.began.wait()
        queued = (await client.post("/v2/flux-kontext-dev", json=ORDER)).json()["request_id"]
        studio.service.hang_up()
        studio.fleet.may_step.set()
        assert (await running).status_code == 200
        await studio.service.drain()
        assert (await job_of(studio, queued)).attempt == 0
    assert len(studio.fleet.requests) == 1


@pytest.mark.parametrize("is_first", [False, True])
async def test_a_drain_is_cut_short(tmp_path: Path, is_first: bool) -> None:
    """By a second signal, however soon it comes: what runs goes back into the queue at once, without a fault."""
    studio = Studio(folder=tmp_path, settings={"shutdown_grace_s": 3600})
    studio.fleet.may_step.clear()
    async with asyncio.timeout(30), studio.open() as client:
        waiting = asyncio.create_task(client.post("/v1/flux-kontext-dev", json=ORDER))
        await studio.fleet.began.wait()
        if is_first:
            studio.service.hurry()
        studio.service.hang_up()
        if not is_first:
            await asyncio.sleep(0)  # the drain waits
            studio.service.hurry()
        answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        left = await job_of(studio, answer.json()["request_id"])
        assert (left.state, left.faults) == (State.QUEUED, 0)


async def test_whoever_still_waits_in_the_end_is_told_where_the_result_will_be(tmp_path: Path) -> None:
    """Its edit went back into the queue, without a fault."""
    studio = Studio(folder=tmp_path, settings={"shutdown_grace_s": 0})
    studio.fleet.may_step.clear()
    async with asyncio.timeout(30), studio.open() as client:
        waiting = asyncio.create_task(client.post("/v1/flux-kontext-dev", json=ORDER))
        await studio.fleet.began.wait()
        studio.service.hang_up()
        answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert answer.json()["error"].startswith("The edit was not done before the server went down;")
        job = answer.json()["request_id"]
        assert answer.json()["response_url"] == f"http://studio/v2/requests/{job}"
        left = await job_of(studio, job)
        assert (left.state, left.faults, studio.fleet.stopped.is_set()) == (State.QUEUED, 0, True)
