"""An engine's process is killed while it runs somebody's edit."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest

from rekontext.database import JobId
from rekontext.fleet import Opening, ProcessFleet
from rekontext.jobs import queries
from rekontext.jobs.model import Job, State
from tests.api.studio import Studio
from tests.faults.test_server_killed import START_S_MAX
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

PHOTO: Final = base64.b64encode(photo_bytes()).decode()


def studio_on(folder: Path, *devices: str) -> Studio:
    """A service on fake devices."""
    command = (sys.executable, "-m", "tests.fleet.fake_worker")
    fleet = ProcessFleet(Opening(model="good"), devices=devices, retry_s=0.01, command=command)
    return Studio(folder=folder, fleet=cast(Any, fleet), settings={"faults_max": 3})


def order(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "input_image": PHOTO, "num_inference_steps": 4}


@pytest.mark.parametrize(
    ("dies", "status", "attempt", "faults", "credits"), [("once", 200, 2, 1, 9.96), ("always", 500, 3, 3, 10.0)]
)
async def test_an_edit_survives_its_device_s_process(
    tmp_path: Path, dies: str, status: int, attempt: int, faults: int, credits: float
) -> None:
    """It runs again on the next one, and is charged once; one that kills every process fails, free of charge."""
    studio = studio_on(tmp_path, "a", "b")
    prompt = f"die {tmp_path / 'dead'}" if dies == "once" else "die"
    async with asyncio.timeout(START_S_MAX), studio.open() as client:
        answer = await client.post("/v1/flux-kontext-dev", json=order(prompt))
        assert answer.status_code == status
        job = JobId(answer.headers["x-request-id"])
        ended = await studio.service.parts.database.read(lambda tx: queries.get(tx, job))
        assert (ended.attempt, ended.faults) == (attempt, faults)
        me = (await client.get("/console/api/me")).json()
        assert (me["balance"]["available"], me["balance"]["held"]) == (credits, 0)


async def test_an_edit_that_kills_every_process_takes_its_neighbours_along_once(tmp_path: Path) -> None:
    """On each of its tries it would else: as many as it has, and theirs are used up as well."""
    go = tmp_path / "go"
    studio = studio_on(tmp_path, "a")
    async with asyncio.timeout(START_S_MAX), studio.open() as client:

        async def jobs(*ids: str) -> list[Job]:
            return await studio.service.parts.database.read(lambda tx: [queries.get(tx, JobId(id)) for id in ids])

        async def until(holds: Callable[[Job], bool], *ids: str) -> None:
            while not all(map(holds, await jobs(*ids))):  # noqa: ASYNC110 - other processes make it true
                await asyncio.sleep(0.02)

        neighbours = [
            (await client.post("/v2/flux-kontext-dev", json=order(f"wait {go}"))).json()["request_id"] for _ in range(3)
        ]
        await until(lambda job: studio.service.parts.forecast.progress(job) is not None, *neighbours)
        poison = asyncio.create_task(client.post("/v1/flux-kontext-dev", json=order("die")))
        await until(lambda job: job.faults == 1, *neighbours)
        go.touch()
        assert (await poison).status_code == 500
        await until(lambda job: job.state.is_terminal, *neighbours)
        assert {(job.state, job.faults) for job in await jobs(*neighbours)} == {(State.COMPLETED, 1)}
