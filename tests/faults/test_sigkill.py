"""SIGKILL at random moments under 200 edits: every accepted job ends once, and charges are for completed jobs only."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from rekontext.accounts import integrity, ledger, registry
from rekontext.database import Database
from rekontext.database.tables import jobs, transfers, webhook_deliveries
from rekontext.jobs import State, unfinished_by_state
from rekontext.jobs.queries import from_row
from rekontext.pictures.store import open_store
from tests.fakes import FakeClock, FakeRandomness
from tests.faults.test_server_killed import START_S_MAX
from tests.faults.victim import ACCOUNT, PRICE_MICROS

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
EDITS = 200
KILLS = 5
"""At least; more until one has hit a running edit, which on a busy machine may take some."""
OUTSTANDING_MAX = 8


class Client:
    """Sends every key until it has an answer for it, to whichever process is alive. Cancels every tenth job."""

    def __init__(self, *command: str) -> None:
        self.command = command
        self.unanswered = [f"key-{number}" for number in range(EDITS)]
        self.jobs: dict[str, str] = {}

    async def start(self) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.victim", *self.command, cwd=ROOT, stdin=PIPE, stdout=PIPE
        )

    async def talk(self, process: Process, *, answers: int) -> None:
        """Keep some submits outstanding until so many answers have come."""
        assert process.stdin is not None
        assert process.stdout is not None
        waiting = list(self.unanswered)
        outstanding = 0
        while answers and (waiting or outstanding):
            while waiting and outstanding < OUTSTANDING_MAX:
                process.stdin.write(json.dumps({"submit": waiting.pop(0)}).encode() + b"\n")
                outstanding += 1
            answer = json.loads(await asyncio.wait_for(process.stdout.readline(), START_S_MAX))
            outstanding -= 1
            answers -= 1
            key, job = answer["accepted"], answer["job"]
            self.unanswered.remove(key)
            self.jobs[key] = job
            if len(self.jobs) % 10 == 0:
                process.stdin.write(json.dumps({"cancel": job}).encode() + b"\n")


async def test_a_killed_process_loses_no_job_and_charges_none_twice(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """The client has an answer for each key, the database one job for each answer, the books one charge for each
    completed job, the outbox one message for each job, the store a picture for each that was charged."""
    chance = random.Random(20261122)
    store_url = f"file://{tmp_path}/objects"

    def prepare(tx: Connection) -> None:
        moment = FakeClock().now()
        registry.create(tx, "Alice", account=ACCOUNT, randomness=FakeRandomness(), now=moment)
        ledger.add(tx, ACCOUNT, EDITS * PRICE_MICROS, source="payment", actor="test", now=moment)

    database.transact_sync(prepare)
    client = Client(database_url, store_url)
    kills, has_hit = 0, False
    while kills < KILLS or not has_hit:
        process = await client.start()
        try:
            await client.talk(process, answers=chance.randint(10, 35))
            await asyncio.sleep(chance.uniform(0, 0.05))  # the random moment
        finally:
            process.kill()
            await process.wait()
        kills += 1
        has_hit |= database.read_sync(unfinished_by_state)[State.PROCESSING] > 0
        assert client.unanswered, "all edits were answered before the last kill: give it more edits"
    process = await client.start()
    try:
        await client.talk(process, answers=EDITS)
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 120) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    def look(tx: Connection) -> None:
        found = {row["id"]: from_row(row) for row in tx.execute(select(jobs)).mappings()}
        states = Counter(job.state for job in found.values())
        assert sorted(client.jobs.values()) == sorted(found)
        assert set(states) <= {State.COMPLETED, State.CANCELLED}
        assert len(found) == EDITS
        assert states[State.COMPLETED] >= EDITS - EDITS // 10 - kills
        captured = [row.job_id for row in tx.execute(select(transfers).where(transfers.c.kind == "capture"))]
        assert sorted(captured) == sorted(job.id for job in found.values() if job.state is State.COMPLETED)
        messages = Counter(tx.execute(select(webhook_deliveries.c.job_id)).scalars())
        assert messages == dict.fromkeys(found, 1)
        balance = ledger.balance(tx, ACCOUNT)
        assert (balance.held_micros, balance.available_micros) == (0, states[State.CANCELLED] * PRICE_MICROS)
        assert integrity.faults(tx) == []
        assert max(job.attempt for job in found.values()) > 1, "no kill hit a running edit"

    database.read_sync(look)
    store = open_store(store_url)
    completed = database.read_sync(
        lambda tx: [from_row(row) for row in tx.execute(select(jobs).where(jobs.c.state == "COMPLETED")).mappings()]
    )
    for job in completed:
        assert job.outputs is not None
        assert await store.get(job.outputs[0].key) == b"picture 1"
