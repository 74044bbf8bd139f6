"""Objects as files of this machine: made once, kept while somebody may use them, and no more of them than fit."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from rekontext.pictures import ObjectMissing, PictureStore, copies, open_store
from rekontext.pictures.copies import LocalCopies

pytestmark = pytest.mark.anyio


class CountingStore:
    """Says how often it was asked, and can be made to wait."""

    def __init__(self, store: PictureStore) -> None:
        self.store = store
        self.copied: list[str] = []
        self.may_copy = asyncio.Event()
        self.may_copy.set()

    async def copy_to(self, file: Path, key: str) -> None:
        self.copied.append(key)
        await self.may_copy.wait()
        await self.store.copy_to(file, key)


@pytest.fixture
async def store(tmp_path: Path) -> CountingStore:
    store = open_store(f"file://{tmp_path}/objects")
    for name in "abc":
        await store.put(f"loras/{name}", name.encode() * 10, content_type="application/octet-stream")
    return CountingStore(store)


async def test_an_object_is_copied_once(store: CountingStore, tmp_path: Path) -> None:
    """For all who ask, at the same moment too; and what lies there after a new start is not copied again."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    store.may_copy.clear()
    asked = [asyncio.create_task(kept.path("loras/a")) for _ in range(3)]
    await asyncio.sleep(0.05)
    store.may_copy.set()
    [path] = {await each for each in asked}
    assert path.read_bytes() == b"a" * 10
    assert await LocalCopies(store, tmp_path / "copies", bytes_max=100).path("loras/a") == path
    assert store.copied == ["loras/a"]
    assert list((tmp_path / "copies").iterdir()) == [path]


async def test_a_copy_outlives_its_object(store: CountingStore, tmp_path: Path) -> None:
    """An edit may have it open, or be about to."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    path = await kept.path("loras/a")
    await store.store.delete("loras/a")
    assert path.read_bytes() == b"a" * 10
    assert await kept.path("loras/a") == path


async def test_what_is_not_there_leaves_nothing(store: CountingStore, tmp_path: Path) -> None:
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    with pytest.raises(ObjectMissing):
        await kept.path("loras/z")
    assert list((tmp_path / "copies").iterdir()) == []


async def test_those_go_that_nobody_asked_for_for_longest(
    store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But none that somebody was just told of: more than fit are kept then."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=20)
    a, b, c = [await kept.path(f"loras/{name}") for name in "abc"]
    assert [path.is_file() for path in (a, b, c)] == [True] * 3
    monkeypatch.setattr(copies, "_IN_USE_FOR_S", 0.0)
    await kept.path("loras/a")
    c.unlink()
    await kept.path("loras/c")
    assert [path.is_file() for path in (a, b, c)] == [True, False, True]


async def test_what_was_fetched_is_taken_in(store: CountingStore, tmp_path: Path) -> None:
    """It need not be copied from where it has just been put."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    async with kept.unfinished() as file:
        file.write_bytes(b"new")
        await kept.adopt(file, "loras/new")
    assert (await kept.path("loras/new")).read_bytes() == b"new"
    assert store.copied == []


async def test_what_a_kill_left_unfinished_goes(store: CountingStore, tmp_path: Path) -> None:
    """Once it is sure that nobody writes it any more."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    async with kept.unfinished() as file:
        old, new = file.with_name("unfinished-old"), file.with_name("unfinished-new")
        old.touch()
        new.touch()
        os.utime(old, (time.time() - 7 * 3600,) * 2)
    async with kept.unfinished():
        assert (old.exists(), new.exists()) == (False, True)
