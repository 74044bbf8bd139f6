"""What goes on while a service is up, and in which order it ends; with parts that only tell what is done to them."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import pytest

from rekontext.works import Works

pytestmark = pytest.mark.anyio


class Part:
    """Stands for any part: it writes down when it begins and ends, and works until it is cancelled."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told
        self.card = "a model"

    async def __aenter__(self) -> None:
        self.told.append(f"{self.name} opened")

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.told.append(f"{self.name} closed")

    async def run(self) -> None:
        self.told.append(f"{self.name} at work")
        try:
            await asyncio.Event().wait()
        finally:
            self.told.append(f"{self.name} stopped")

    async def start(self) -> None:
        self.told.append(f"{self.name} started")

    async def watch(self) -> None:
        await self.run()

    def begin(self) -> None:
        self.told.append(f"{self.name} began")

    async def close(self, drain_s: float | None = None) -> None:
        self.told.append(f"{self.name} closed" if drain_s is None else f"{self.name} drained for {drain_s:g} s")

    def let_go(self) -> None:
        self.told.append(f"{self.name} let go")


class Shut(Part):
    """The database is closed without waiting."""

    def close(self) -> None:  # type: ignore[override]
        self.told.append(f"{self.name} closed")


def _works(told: list[str], **parts: Any) -> Works:
    names = ("fleet", "dispatcher", "desk", "deliverer", "sweeper", "limiter")
    usual: dict[str, Any] = {name: Part(name, told) for name in names} | {
        "database": Shut("database", told),
        "sessions": [Part("fetcher", told), Part("post", told)],
        "on_ready": lambda card: told.append(f"ready with {card}"),
        "on_broken": lambda fault: told.append(f"broken: {fault}"),
    }
    return Works(**usual | parts, grace_s=30)


async def test_all_is_closed_after_what_needs_it() -> None:
    """Edits end while everything is there; then the loops, the devices, the sessions; the database last."""
    told: list[str] = []
    works = _works(told)
    async with works.lifespan(None):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert told[:2] == ["fetcher opened", "post opened"]
        assert sorted(told[2:]) == sorted(
            ["fleet started", "ready with a model", "dispatcher began"]
            + [f"{name} at work" for name in ("fleet", "dispatcher", "deliverer", "sweeper")]
        )
        del told[:]
        assert works.drain() is works.drain(), "asked for again it is the same"
    assert told == [
        "dispatcher drained for 30 s",
        "desk let go",
        *(f"{name} stopped" for name in ("fleet", "dispatcher", "deliverer", "sweeper")),
        *(f"{name} closed" for name in ("fleet", "post", "fetcher", "limiter", "database")),
    ]


@pytest.mark.parametrize("broken", ["fleet", "sweeper"])
async def test_what_breaks_is_told_and_closed_with_all_else(broken: str) -> None:
    """A model that can't be loaded, a loop that fails: whoever serves is told, and ends in good order."""

    class Broken(Part):
        async def start(self) -> None:
            raise RuntimeError("it broke")

        run = start

    told: list[str] = []
    works = _works(told, **{broken: Broken(broken, told)})
    async with works.lifespan(None):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert told.count("broken: it broke") == 1
    assert ("dispatcher began" in told) == (broken != "fleet")
    assert told[-1] == "database closed"


async def test_a_session_that_cant_be_opened_leaves_nothing_open() -> None:
    """What was opened before it is closed, and no work begins."""

    class Shy(Part):
        async def __aenter__(self) -> None:
            raise OSError("no")

    told: list[str] = []
    with pytest.raises(OSError, match="no"):
        async with _works(told, sessions=[Part("fetcher", told), Shy("post", told)]).lifespan(None):
            pass
    assert told == ["fetcher opened", "fetcher closed", "limiter closed", "database closed"]
