"""Fleets whose engines are fakes in processes of their own, which die, wait and refuse when they are told to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from PIL import Image

from rekontext.contract import (
    EditRequest,
    EditResult,
    Preview,
    Progress,
)
from rekontext.fleet import ProcessFleet
from rekontext.fleet.messages import Opening

FAKE = (sys.executable, "-m", "tests.fleet.fake_worker")
SOON_S = 30.0
GOOD = Opening(model="good")
STEPS_MAX = "rekontext.fleet.process._SILENT_STEPS_MAX"


def request(id: int, prompt: str = "", *, steps: int = 4) -> EditRequest:
    return EditRequest(
        id=str(id),
        prompt=prompt,
        seed=id,
        steps=steps,
        photo=Image.new("RGB", (64, 64), (id, 0, 0)),
    )


def fleet_of(
    *devices: str,
    model: str = "good",
    idle_s: float | None = None,
    standby: bool = False,
    folder: Path | None = None,
    retry_s: float = 0.01,
    silent_s_max: float = SOON_S,
) -> ProcessFleet:
    return ProcessFleet(
        Opening(model=model, cache_folder=folder),
        devices=devices,
        idle_s=idle_s,
        standby=standby,
        retry_s=retry_s,
        silent_s_max=silent_s_max,
        command=FAKE,
    )


@asynccontextmanager
async def started(fleet: ProcessFleet) -> AsyncIterator[ProcessFleet]:
    """At work, as long as the block lasts; what it waits for too long fails it."""
    async with asyncio.timeout(4 * SOON_S), AsyncExitStack() as stack:
        stack.push_async_callback(fleet.close)
        await fleet.start()
        yield fleet


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110 - other processes make it true
            await asyncio.sleep(0.01)


def standing_by(fleet: ProcessFleet) -> list[int]:
    """The processes that stand by, 0 where none does."""
    tasks = [process._standby._coming for process in fleet._processes]
    return [task.result()._process.pid if task is not None and task.done() else 0 for task in tasks]


def process_of(result: EditResult) -> int:
    return int(result.inference_s)


def is_alive(process: int) -> bool:
    """Whether it runs; one that ended and whose parent hasn't looked yet doesn't."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def running(fleet: ProcessFleet, id: int, path: Path) -> asyncio.Task[EditResult]:
    """An edit that runs, until there is `path`."""
    news: list[Progress | Preview] = []
    edit = asyncio.create_task(fleet.edit(request(id, f"wait {path}"), on_progress=news.append))
    await until(lambda: bool(news) or edit.done())
    assert news, edit.exception()
    return edit
