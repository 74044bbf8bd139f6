"""A whole service in a process that is made to be killed: `python -m tests.faults.victim DATABASE_URL STORE_URL`.

Reads JSON lines from its input: {"submit": key} and {"cancel": job}; answers {"accepted": key, "job": id} once the
commit is done. When its input ends it works until no job is unfinished, and leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import Callable

import structlog

from rekontext.contract import EditRequest, OnProgress, Progress
from rekontext.database import AccountId, Database, JobId
from rekontext.jobs import (
    Bounds,
    Desk,
    Dispatcher,
    EventHub,
    Idempotency,
    JobLife,
    Order,
    Outbox,
    Patience,
    input_key,
    unfinished_by_state,
)
from rekontext.pictures.store import open_store
from rekontext.sources import SystemClock, random_id
from tests.jobs.plant import FakeFleet, FakeWorkbench

ACCOUNT = AccountId("acc_alice")
PRICE_MICROS = 40_000


async def edit_for_a_moment(request: EditRequest, on_progress: OnProgress) -> None:
    """Some milliseconds of engine time, so that a kill finds edits at every stage."""
    for step in range(request.steps + 1):
        on_progress(Progress(step=step, steps=request.steps, remaining_s=None))
        await asyncio.sleep(random.uniform(0, 0.004))


async def work(database: Database, store_url: str, read_line: Callable[[], str]) -> None:
    clock, store, hub = SystemClock(), open_store(store_url), EventHub(epoch=random_id())
    # More tries than there are kills: what is tested is that nothing gets lost, not when we give up.
    life = JobLife(
        outbox=Outbox(ids=random_id),
        bounds=Bounds(in_flight_max=1000, queued_max=1000),
        patience=Patience(faults_max=100, backoff_s=0),
    )
    dispatcher = Dispatcher(
        database=database,
        life=life,
        fleet=FakeFleet(behaviours=[edit_for_a_moment]),
        objects=store,
        workbench=FakeWorkbench(),
        hub=hub,
        clock=clock,
        worker="victim",
        running_max=4,
        run_s_max=60.0,
        poll_s=0.05,
    )
    desk = Desk(database=database, life=life, hub=hub, clock=clock, dispatcher=dispatcher)

    async def submit(key: str) -> None:
        job = JobId(random_id())
        await store.put(input_key(job), b"photo", content_type="image/png")
        order = Order(
            job=job,
            account=ACCOUNT,
            key=None,
            model="fake",
            price_micros=PRICE_MICROS,
            parameters={"prompt": key, "seed": 1},
            input_key=input_key(job),
            webhook_url="https://example.com/hook",
            idempotency=Idempotency(key=key, body_digest=hashlib.sha256(key.encode()).hexdigest()),
        )
        accepted = await desk.submit(order)
        sys.stdout.write(json.dumps({"accepted": key, "job": accepted.job.id}) + "\n")
        sys.stdout.flush()

    running = asyncio.create_task(dispatcher.run())
    async with asyncio.TaskGroup() as tasks:
        while line := await asyncio.to_thread(read_line):
            message = json.loads(line)
            if "submit" in message:
                tasks.create_task(submit(message["submit"]))
            else:
                tasks.create_task(desk.cancel(message["cancel"], account=ACCOUNT))
    # Jobs of former lives count too, and only the database knows of those.
    while sum((await database.read(unfinished_by_state)).values()):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    await dispatcher.close()
    await running


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    database = Database.open(sys.argv[1], migrate=False)
    asyncio.run(work(database, sys.argv[2], sys.stdin.readline))
    database.close()


if __name__ == "__main__":
    main()
