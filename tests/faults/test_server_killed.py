"""SIGKILL on the server at random moments under 200 edits over HTTP: nothing is lost, nothing is charged twice."""

from __future__ import annotations

import asyncio
import base64
import random
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

import httpx2
import pytest
from PIL import Image
from sqlalchemy import Connection, select

from rekontext.accounts import integrity, ledger
from rekontext.database.tables import jobs, transfers
from rekontext.installation import open_database
from rekontext.jobs import State
from rekontext.jobs.queries import from_row
from tests.api.studio import Studio
from tests.faults.server import settings
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

ROOT: Final = Path(__file__).parents[2]
EDITS: Final = 200
KILLS: Final = 5
START_S_MAX: Final = 180.0
"""Where others compute, a process takes half a minute to import all that it needs."""
SUBMITTERS: Final = 8
PRICE_MICROS: Final = 40_000
GOOD: Final = {
    "prompt": "invert it",
    "input_image": base64.b64encode(photo_bytes()).decode(),
    "num_inference_steps": 4,
    "output_format": "jpg",
}


class Customer:
    """Sends every order with a key of its own until it has an answer, and remembers which job each became."""

    def __init__(self, key: str, chance: random.Random) -> None:
        self.key = key
        self.chance = chance
        self.unanswered = [f"order-{number}" for number in range(EDITS)]
        self.jobs: dict[str, str] = {}

    async def send(self, url: str, *, kill: Callable[[], None] | None, answers: int) -> None:
        """Submit over several connections, and kill the server a random moment after so many answers."""
        waiting = iter(list(self.unanswered))
        enough = asyncio.Event()

        async def submit(client: httpx2.AsyncClient) -> None:
            nonlocal answers
            for order in waiting:
                # Mostly submits that return at once, some that wait for the picture.
                path = "/v1/flux-kontext-dev" if self.chance.random() < 0.2 else "/v2/flux-kontext-dev"
                answer = await client.post(path, json=GOOD, headers={"idempotency-key": order})
                assert answer.status_code == 200, answer.text
                self.jobs[order] = answer.headers["x-request-id"]
                self.unanswered.remove(order)
                answers -= 1
                if not answers:
                    enough.set()

        async with httpx2.AsyncClient(base_url=url, headers={"x-api-key": self.key}, timeout=60) as client:
            submitting = asyncio.gather(*(submit(client) for _ in range(SUBMITTERS)), return_exceptions=True)
            if kill is not None:
                await asyncio.wait_for(enough.wait(), 60)
                await asyncio.sleep(self.chance.uniform(0, 0.05))  # the random moment
                kill()
            for outcome in await asyncio.wait_for(submitting, 120):
                is_expected = kill is not None and isinstance(outcome, httpx2.TransportError)
                if isinstance(outcome, BaseException) and not is_expected:
                    raise outcome


@asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[tuple[Process, str]]:
    """A server that answers, and its address; killed at the end if it wasn't before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.server", data_dir, cwd=ROOT, stdout=PIPE
    )
    try:
        assert process.stdout is not None
        said = (await asyncio.wait_for(process.stdout.readline(), START_S_MAX)).decode()
        assert said.startswith("PORT "), "the server ended before it answered"
        yield process, f"http://127.0.0.1:{said.split()[1]}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_killed_server_loses_no_edit_and_charges_none_twice(tmp_path: Path) -> None:
    """Each order has one job, each job ends COMPLETED once, each completed job is charged once and has its picture."""
    studio = Studio(folder=tmp_path / "studio")  # only for its first account and key
    studio.service.parts.database.close()
    data_dir = studio.options.data_dir
    chance = random.Random(20261122)
    customer = Customer(studio.key, chance)
    for _ in range(KILLS):
        async with running(data_dir) as (process, url):
            await customer.send(url, kill=process.kill, answers=chance.randint(15, 35))
        assert customer.unanswered, "all edits were answered before the last kill: give it more edits"
    async with running(data_dir) as (_, url):
        await customer.send(url, kill=None, answers=EDITS)
        assert not customer.unanswered
        async with httpx2.AsyncClient(base_url=url, headers={"x-api-key": studio.key}, timeout=60) as client:
            for job in customer.jobs.values():
                stream = (await client.get(f"/v2/requests/{job}/events")).text
                assert "event: done" in stream
            result = (await client.get(f"/v2/requests/{job}")).json()
            picture = Image.open(BytesIO((await client.get(result["output"])).content))
            assert picture.size == (48, 32)

    database = open_database(settings(data_dir))

    def look(tx: Connection) -> None:
        found = {row["id"]: from_row(row) for row in tx.execute(select(jobs)).mappings()}
        assert sorted(customer.jobs.values()) == sorted(found)
        assert Counter(job.state for job in found.values()) == {State.COMPLETED: EDITS}
        captured = [row.job_id for row in tx.execute(select(transfers).where(transfers.c.kind == "capture"))]
        assert sorted(captured) == sorted(found)
        balance = ledger.balance(tx, studio.account)
        assert (balance.held_micros, balance.available_micros) == (0, 10_000_000 - EDITS * PRICE_MICROS)
        assert integrity.faults(tx) == []
        assert max(job.attempt for job in found.values()) > 1, "no kill hit a running edit"
        for job in found.values():
            assert job.outputs is not None
            assert (data_dir / "store" / job.outputs[0].key).stat().st_size == job.outputs[0].bytes

    try:
        database.read_sync(look)
    finally:
        database.close()
    shutil.rmtree(data_dir)
