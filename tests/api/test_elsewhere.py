"""A process without devices in front, and processes with devices that come and go behind it, on one database."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final, cast

import httpx2
import pytest
from PIL import Image

from rekontext.contract import Progress
from rekontext.database import JobId
from tests.api.studio import SOON_S, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

LEASE_S: Final = 2
QUEUE: Final = "/console/api/admin/queue"
ESTIMATE: Final = "/console/api/estimate?num_inference_steps=4&width=48&height=32"
ORDER: Final = {
    "prompt": "make it night",
    "input_image": base64.b64encode(photo_bytes()).decode(),
    "num_inference_steps": 4,
}


def front_in(folder: Path) -> Studio:
    return Studio(folder=folder, fleet=cast(Any, None), settings={"worker": "front", "lease_s": LEASE_S})


def back_in(folder: Path, name: str) -> Studio:
    return Studio(folder=folder, settings={"worker": name, "lease_s": LEASE_S})


async def until(client: httpx2.AsyncClient, place: str, holds: Callable[[Any], bool]) -> Any:
    """What is answered once it is so."""
    while not holds(told := (await client.get(place)).json()):  # noqa: ASYNC110 - other processes make it true
        await asyncio.sleep(0.05)
    return told


async def until_ready(client: httpx2.AsyncClient) -> Any:
    return await until(client, "/readyz", lambda told: told.get("status") == "ready")


async def test_edits_are_accepted_while_no_device_is_up_and_run_once_one_is(tmp_path: Path) -> None:
    """From none to some and back, as a fleet does that grows with the queue."""
    front, first, second = front_in(tmp_path), back_in(tmp_path, "first"), back_in(tmp_path, "second")
    async with asyncio.timeout(2 * SOON_S), front.open() as client:
        assert (await client.get("/readyz")).json()["not_ready"] == ["model"]  # nobody has ever been up

        async with first.open():
            assert (await until_ready(client))["model"] == "mini"
            answer = await client.post("/v1/flux-kontext-dev", json=ORDER)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert Image.open(BytesIO(answer.content)).size == (48, 32)
            queue = await until(client, QUEUE, lambda told: told["workers"])
            assert (queue["devices"], queue["running_max"]) == ({}, 0)
            assert [(each["name"], each["devices"]) for each in queue["workers"]] == [("first", {"cpu": "ready"})]
            assert len(first.fleet.requests) == 1

        await until(client, ESTIMATE, lambda told: told["eta_seconds"] is None)
        submitted = (await client.post("/v2/flux-kontext-dev", json=ORDER)).json()
        assert (submitted["status"], submitted["eta_seconds"]) == ("QUEUED", None)
        assert (await client.get(QUEUE)).json()["workers"] == []
        assert (await client.get("/readyz")).status_code == 200

        async with second.open():
            place = f"/v2/requests/{submitted['request_id']}/status"
            await until(client, place, lambda told: told["status"] == "COMPLETED")
        assert len(second.fleet.requests) == 1


async def test_a_front_that_starts_while_nobody_is_up_knows_what_was_served_last(tmp_path: Path) -> None:
    """It may be started anew while the fleet is at zero."""
    back = back_in(tmp_path, "back")
    async with asyncio.timeout(2 * SOON_S):
        async with back.open() as client:
            await until(client, QUEUE, lambda told: told["workers"])
        async with front_in(tmp_path).open() as client:
            assert (await until_ready(client))["model"] == "mini"
            assert (await client.post("/v2/flux-kontext-dev", json=ORDER)).json()["status"] == "QUEUED"


async def test_a_front_tells_the_time_behind_edits_that_run_elsewhere(tmp_path: Path) -> None:
    """Else everyone who comes to a busy device would be told the time of an idle one, and no deadline be refused."""
    front, back = front_in(tmp_path), back_in(tmp_path, "back")
    async with asyncio.timeout(2 * SOON_S), back.open(), front.open() as client:
        await until_ready(client)
        back.fleet.may_step.clear()
        for _ in range(2):
            assert (await client.post("/v2/flux-kontext-dev", json=ORDER)).is_success
        queue = await until(client, QUEUE, lambda told: told["processing"] == 2)
        told = await until(client, ESTIMATE, lambda told: told["queue_position"] == 2)
        assert told["eta_seconds"] > 2 * queue["edit_s"]
        refused = await client.post("/v2/flux-kontext-dev", json={**ORDER, "deadline_s": queue["edit_s"]})
        assert refused.json()["code"] == "deadline_unmeetable"
        back.fleet.may_step.set()


async def test_a_front_tells_how_far_an_edit_is_that_runs_elsewhere(tmp_path: Path) -> None:
    """In the status, as events and on the queue page; the steps are counted where they are made."""
    front, back = front_in(tmp_path), back_in(tmp_path, "back")
    async with asyncio.timeout(2 * SOON_S), back.open() as at_back, front.open() as client:
        await until_ready(client)
        back.fleet.may_step.clear()
        once = {"Idempotency-Key": "once"}
        submitted = (await client.post("/v2/flux-kontext-dev", json=ORDER, headers=once)).json()
        await back.fleet.began.wait()
        place = f"/v2/requests/{submitted['request_id']}"
        told = await until(client, f"{place}/status", lambda told: told["eta_seconds"] is not None)
        assert (told["status"], told["queue_position"]) == ("PROCESSING", 0)  # before its first step there
        following = asyncio.create_task(client.get(f"{place}/events"))
        back.fleet.tell(Progress(step=0, steps=4, remaining_s=None))
        await until(client, f"{place}/status", lambda told: told["progress"] == {"step": 0, "steps": 4})
        back.fleet.tell(Progress(step=2, steps=4, remaining_s=1000.0))
        told = await until(client, f"{place}/status", lambda told: told["progress"] == {"step": 2, "steps": 4})
        assert (told["status"], told["queue_position"]) == ("PROCESSING", 0)
        assert 900 < told["eta_seconds"] <= 1000
        again = await client.post("/v2/flux-kontext-dev", json=ORDER, headers=once)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
        assert 900 < again.json()["eta_seconds"] <= 1000
        (job,) = (await client.get(QUEUE)).json()["jobs"]
        (same,) = (await at_back.get(QUEUE)).json()["jobs"]
        assert job["worker"] == "back"
        assert job["progress"].keys() == same["progress"].keys() == {"step", "steps", "remaining_s"}
        async for event in front.service.parts.desk.listen(JobId(submitted["request_id"]), account=front.account):
            if event.kind == "progress":
                back.fleet.may_step.set()
        events = (await client.get(f"{place}/events")).text
        assert '"step":2,"steps":4,"queue_position":0,"eta_seconds":' in events
        (prepared,) = [line for line in (await following).text.splitlines() if '"step":0' in line]
        assert json.loads(prepared.removeprefix("data: ")) | {"eta_seconds": None} == {
            "request_id": submitted["request_id"],
            "status": "PROCESSING",
            "step": 0,
            "steps": 4,
            "queue_position": 0,
            "eta_seconds": None,
        }
        assert events.index("event: processing") < events.index("event: progress") < events.index("event: done")
        assert "rekontext_steps_total 0.0" in (await client.get("/metrics")).text


async def test_a_front_that_knows_no_model_accepts_nothing_whose_price_depends_on_it(tmp_path: Path) -> None:
    """And says so, rather than that the edit waits."""
    front = Studio(folder=tmp_path, fleet=cast(Any, None), settings={"price_per_megapixel_usd": 1})
    async with asyncio.timeout(2 * SOON_S), front.open() as client:
        answer = await client.post("/v2/flux-kontext-dev", json=ORDER)
        assert (answer.status_code, answer.json()["not_ready"]) == (503, ["model"])
        assert "nothing was accepted, send it again later" in answer.json()["error"]
