"""The service's own time per edit, and how many submits it takes per second, on both databases.

An edit here is everything but the engine and the codecs: accept, hold, queue, claim, input read from the store,
output of a usual size written to it, settle, wake whoever waits, output read back. The engine answers at once.
Then the same over HTTP on the loopback, with key, form, limits and headers: all that a client of v1 waits.
Run as `python -m bench.service [--edits N] [--json]`; commits wait for the disk, as they do in earnest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import ClassVar

import httpx2
import structlog
import uvicorn
from PIL import Image
from sqlalchemy import Connection

from rekontext.accounts import ledger, registry
from rekontext.api.http1 import server_config
from rekontext.assembly import assemble
from rekontext.contract import (
    DeviceState,
    EditRequest,
    EditResult,
    Estimate,
    ModelCard,
    OnProgress,
    Preview,
    Progress,
)
from rekontext.database import AccountId, Database, JobId
from rekontext.jobs import (
    ASSETS_FOLDER,
    Bounds,
    Desk,
    Dispatcher,
    EventHub,
    File,
    Job,
    JobLife,
    Order,
    Outbox,
    State,
    input_key,
)
from rekontext.pictures import encode
from rekontext.pictures.recent import RecentStore
from rekontext.pictures.store import open_store
from rekontext.settings import Settings
from rekontext.sources import SystemClock, random_bytes, random_id
from tests.database import postgres

ACCOUNT = AccountId("acc_bench")
PICTURE_BYTES = 1_700_000
"""What a PNG of one megapixel of photo weighs."""


class InstantFleet:
    """An engine that takes no time."""

    card = ModelCard(name="instant", canvas_area=2**20, parameters=0, device="none", dtype="none", is_mini=True)
    is_ready = True
    devices: ClassVar[Mapping[str, DeviceState]] = {"none": "ready"}

    @staticmethod
    @cache
    def photo() -> Image.Image:
        """A picture of one megapixel that compresses about as well as a photo."""
        return Image.effect_noise((64, 64), 60).resize((1024, 1024), Image.Resampling.BICUBIC).convert("RGB")

    async def offers(self) -> Sequence[str]:
        return ()

    async def profile(self) -> Mapping[str, object]:
        return {}

    async def start(self) -> None:
        return

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        return

    def estimate(self, request: EditRequest) -> Estimate:
        return Estimate(position=0, wait_s=0.0, finish_s=0.0)

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        if on_progress is not None:
            for step in range(request.steps + 1):
                on_progress(Progress(step=step, steps=request.steps, remaining_s=0.0))
        return EditResult(
            picture=self.photo(),
            seed=request.seed,
            steps=request.steps,
            passes=request.steps,
            inference_s=0.0,
        )


class BytesWorkbench:
    """Codecs that take no time."""

    def __init__(self) -> None:
        self._data = os.urandom(PICTURE_BYTES)

    def outline(self, job: Job) -> EditRequest:
        return EditRequest(id=job.id, prompt="", seed=1)

    async def unpack(self, job: Job, photo: bytes, mask: bytes | None) -> EditRequest:
        return self.outline(job)

    async def pack(self, job: Job, result: EditResult) -> Sequence[File]:
        return [File(name="0.png", data=self._data, content_type="image/png", width=1024, height=1024)]

    def preview(self, preview: Preview) -> Mapping[str, object]:
        return {}


class Bench:
    """One database, one store, one desk and one dispatcher."""

    def __init__(self, database: Database, store: RecentStore) -> None:
        clock, hub = SystemClock(), EventHub(epoch=random_id())
        life = JobLife(outbox=Outbox(ids=random_id), bounds=Bounds(in_flight_max=10**6, queued_max=10**6))
        self.database, self.store = database, store
        self.photo = os.urandom(PICTURE_BYTES)
        self.dispatcher = Dispatcher(
            database=database,
            life=life,
            fleet=InstantFleet(),
            objects=store,
            workbench=BytesWorkbench(),
            hub=hub,
            clock=clock,
            worker="bench",
            running_max=4,
            run_s_max=60.0,
        )
        self.desk = Desk(database=database, life=life, hub=hub, clock=clock, dispatcher=self.dispatcher)

    def open_account(self) -> None:
        now = SystemClock().now()

        def work(tx: Connection) -> None:
            registry.create(tx, "bench", account=ACCOUNT, randomness=random_bytes, now=now)
            ledger.add(tx, ACCOUNT, 10**12, source="grant", actor="bench", now=now)

        self.database.transact_sync(work)

    def order(self) -> Order:
        job = JobId(random_id())
        return Order(
            job=job,
            account=ACCOUNT,
            key=None,
            model="bench",
            price_micros=40_000,
            parameters={
                "prompt": "make it night",
                "seed": 1,
                "num_inference_steps": 35,
                "guidance": 7.0,
            },
            input_key=input_key(job),
        )

    async def edit(self) -> float:
        """Seconds from the checked order to the output's bytes."""
        order = self.order()
        began = time.perf_counter()
        await self.store.put(order.input_key, self.photo, content_type="image/png")
        accepted = await self.desk.submit(order)
        done = await self.desk.wait(order.job, account=ACCOUNT, timeout_s=60, known=accepted.job)
        assert done.state is State.COMPLETED, done.error
        assert done.outputs is not None
        data = await self.store.get(done.outputs[0].key)
        took = time.perf_counter() - began
        assert len(data) == PICTURE_BYTES
        return took

    async def submits(self, count: int, *, at_once: int) -> float:
        """Submits per second with so many clients; nobody works on them."""
        waiting = [self.order() for _ in range(count)]
        began = time.perf_counter()

        async def client() -> None:
            while waiting:
                await self.desk.submit(waiting.pop())

        await asyncio.gather(*(client() for _ in range(at_once)))
        return count / (time.perf_counter() - began)

    async def run(self, edits: int) -> dict[str, float]:
        working = asyncio.create_task(self.dispatcher.run())
        for _ in range(10):
            await self.edit()
        took = sorted([await self.edit() for _ in range(edits)])
        await self.dispatcher.close()
        await working
        return {
            "edit_p50_ms": 1000 * statistics.median(took),
            "edit_p99_ms": 1000 * took[int(0.99 * (len(took) - 1))],
            "submits_per_s": await self.submits(5 * edits, at_once=16),
        }


class Wire:
    """The whole service behind a real server, with an engine that takes no time."""

    def __init__(self, url: str, data_dir: Path) -> None:
        settings = Settings(
            _env_file=None,  # type: ignore[call-arg]
            data_dir=data_dir,
            database_url=url,
            requests_per_minute=10**6,
            first_credits_usd=Decimal(10**6),
        )
        service = assemble(
            settings,
            fleet=InstantFleet(),
            on_ready=lambda _: None,
            on_broken=print,
            workbench=BytesWorkbench(),
        )
        assert service.first_key is not None, "the database is not empty"
        self.key = service.first_key.secret
        self.server = uvicorn.Server(server_config(service.app, answers_s=5))
        self.photo = encode(InstantFleet.photo(), "jpg", 90)

    def run(self, edits: int) -> dict[str, float]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            while not self.server.started and thread.is_alive():
                time.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx2.Client(base_url=url, headers={"x-api-key": self.key}, timeout=60) as client:
                for _ in range(5):
                    self.edit(client)
                took = [self.edit(client) for _ in range(edits)]
            self.server.should_exit = True
            thread.join()
        return {"http_edit_p50_ms": 1000 * statistics.median(took)}

    def edit(self, client: httpx2.Client) -> float:
        """Seconds that a client waits for its picture."""
        began = time.perf_counter()
        answer = client.post(
            "/v1/flux-kontext-dev",
            data={"prompt": "make it night"},
            files={"input_image": self.photo},
        )
        took = time.perf_counter() - began
        assert answer.status_code == 200, answer.text
        return took


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """URLs of an empty SQLite file and, if it is installed, an empty PostgreSQL database."""
    urls = {"sqlite": f"sqlite:///{folder}/bench.db"}
    programs = postgres.binaries()
    if programs is None:
        yield urls
        return
    with (
        postgres.server(programs, is_durable=True) as server,
        postgres.database(server, "bench") as url,
    ):
        yield {**urls, "postgresql": url}


def measure(edits: int) -> dict[str, float]:
    """All figures, by database."""
    figures: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="rekontext-bench-") as name,
        databases(Path(name)) as urls,
    ):
        for kind, url in urls.items():
            wire = Wire(url, Path(name) / f"{kind}-wire").run(edits // 4)
            figures |= {f"{kind}_{figure}": round(value, 2) for figure, value in wire.items()}
            database = Database.open(url)
            try:
                store = open_store(f"file://{name}/{kind}")
                bench = Bench(database, RecentStore(store, bytes_max=64 * 2**20, besides=ASSETS_FOLDER))
                bench.open_account()
                found = asyncio.run(bench.run(edits))
            finally:
                database.close()
            figures |= {f"{kind}_{figure}": round(value, 2) for figure, value in found.items()}
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.service", description=__doc__)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    # What is printed is the figures; a service that runs also writes a log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    figures = measure(given.edits)
    if given.json:
        json.dump(figures, sys.stdout)
        print()
        return
    for kind in ("sqlite", "postgresql"):
        if f"{kind}_edit_p50_ms" not in figures:
            print(f"{kind}: not installed, not measured")
            continue
        print(
            f"{kind}: the service's own time per edit p50 {figures[f'{kind}_edit_p50_ms']:.1f} ms, "
            f"p99 {figures[f'{kind}_edit_p99_ms']:.1f} ms; over HTTP p50 {figures[f'{kind}_http_edit_p50_ms']:.1f} ms; "
            f"{figures[f'{kind}_submits_per_s']:.0f} submits/s"
        )


if __name__ == "__main__":
    main()
