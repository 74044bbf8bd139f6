"""An engine's process is killed while it runs somebody's edit."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path
from typing import Any, Final, cast

import pytest

from rekontext.database import JobId
from rekontext.fleet import ProcessFleet
from rekontext.jobs import queries
from tests.api.studio import Studio
from tests.faults.test_server_killed import START_S_MAX
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

PHOTO: Final = base64.b64encode(photo_bytes()).decode()


@pytest.mark.parametrize(
    ("dies", "status", "attempt", "faults", "credits"), [("once", 200, 2, 1, 9.96), ("always", 500, 3, 3, 10.0)]
)
async def test_an_edit_survives_its_device_s_process(
    tmp_path: Path, dies: str, status: int, attempt: int, faults: int, credits: float
) -> None:
    """It runs again on the next one, and is charged once; one that kills every process fails, free of charge."""
    command = (sys.executable, "-m", "tests.fleet.fake_worker")
    fleet = ProcessFleet(devices=["a", "b"], model="good", retry_s=0.01, command=command)
    studio = Studio(folder=tmp_path, fleet=cast(Any, fleet), settings={"faults_max": 3})
    prompt = f"die {tmp_path / 'dead'}" if dies == "once" else "die"
    async with asyncio.timeout(START_S_MAX), studio.open() as client:
        answer = await client.post(
            "/v1/flux-kontext-dev", json={"prompt": prompt, "input_image": PHOTO, "num_inference_steps": 4}
        )
        assert answer.status_code == status
        job = JobId(answer.headers["x-request-id"])
        ended = await studio.service.parts.database.read(lambda tx: queries.get(tx, job))
        assert (ended.attempt, ended.faults) == (attempt, faults)
        me = (await client.get("/console/api/me")).json()
        assert (me["balance"]["available"], me["balance"]["held"]) == (credits, 0)
