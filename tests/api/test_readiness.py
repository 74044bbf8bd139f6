"""Whether a service is ready, and what is missing: its engine, its database, room on the disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from rekontext.api import disk, health
from rekontext.contract import EngineFault
from tests.api.studio import SOON_S, Studio, gone

pytestmark = pytest.mark.anyio


async def test_a_service_whose_engine_broke_says_so_and_wants_to_end(studio: Studio) -> None:
    """A supervisor starts it anew; meanwhile nobody is sent here."""
    async with studio.open() as client:
        assert (await client.get("/readyz")).status_code == 200
        studio.fleet.may_break.set()
        for _ in range(1000):
            if studio.broken:
                break
            await asyncio.sleep(0.01)
        assert (await client.get("/readyz")).status_code == 503
        fault = studio.broken.pop()
    assert (type(fault), str(fault)) == (EngineFault, "the engine broke: no device")


async def test_nothing_is_ready_without_the_database(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer sends its traffic elsewhere; a human reads what is missing."""
    async with studio.open() as client:
        assert (await client.get("/readyz")).status_code == 200
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.database, "read", gone)
            answer = await client.get("/readyz")
            studio.fleet.is_ready = False
            neither = await client.get("/readyz")
            studio.fleet.is_ready = True
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert answer.json()["error"] == "The database can't be reached."
        assert (answer.json()["not_ready"], answer.headers["retry-after"]) == (["database"], "1")
        assert neither.json()["not_ready"] == ["model", "database"]
        assert (await client.get("/readyz")).status_code == 200


async def test_nothing_is_ready_on_a_full_disk(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database still reads; but no edit can be accepted. When there is room again, that is seen."""
    tried: list[Path] = []

    def full(*, dir: Path) -> BinaryIO:
        tried.append(dir)
        return Path("/dev/full").open("wb")

    now_s = 0.0
    monkeypatch.setattr(disk, "monotonic", lambda: now_s)
    async with studio.open() as client:
        assert (await client.get("/readyz")).status_code == 200
        with monkeypatch.context() as broken:
            broken.setattr("rekontext.api.disk.tempfile.TemporaryFile", full)
            assert (await client.get("/readyz")).status_code == 200, "the outcome counts for a while"
            now_s += disk.KEPT_S
            answers = [await client.get("/readyz") for _ in range(3)]
            assert (answers[0].status_code, answers[0].json()["not_ready"]) == (503, ["disk"])
            assert answers[0].json()["error"] == "The disk is full or can't be written."
            assert tried == [studio.options.data_dir], "one trial is enough for some seconds"
        now_s += disk.KEPT_S
        assert (await client.get("/readyz")).status_code == 200
    assert not list(studio.options.data_dir.glob("tmp*"))


async def test_a_folder_that_is_gone_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is tried; a disk that hangs is tried by one at a time, and said to be full meanwhile."""
    assert await disk.DiskCheck([]).has_room()
    assert await disk.DiskCheck([tmp_path]).has_room()
    assert not await disk.DiskCheck([tmp_path, tmp_path / "gone"]).has_room()
    trials = 0
    may_go_on = threading.Event()

    def hang(_folders: Sequence[Path]) -> bool:
        nonlocal trials
        trials += 1
        return may_go_on.wait(10)

    monkeypatch.setattr(disk, "_all_take", hang)
    monkeypatch.setattr(disk, "LOOK_S_MAX", 0.01)
    hanging = disk.DiskCheck([tmp_path])
    assert [await hanging.has_room() for _ in range(2)] == [False, False]
    monkeypatch.setattr(disk, "LOOK_S_MAX", 10.0)
    may_go_on.set()
    assert await hanging.has_room()
    assert trials == 1


async def test_readiness_is_told_soon_when_the_database_says_nothing(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs is as good as away."""
    asked = asyncio.Event()

    async def hang(_work: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(health, "LOOK_S_MAX", 0.01)
    async with studio.open() as client:
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.database, "read", hang)
            answer = await asyncio.wait_for(client.get("/readyz"), SOON_S)
    assert asked.is_set()
    assert (answer.status_code, answer.json()["not_ready"]) == (503, ["database"])
