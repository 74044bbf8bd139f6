"""Objects as files of this machine: made once, kept while somebody may use them, and no more of them than fit."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from rekontext.pictures import ObjectMissing, PictureStore, StoreUnavailable, copies, open_store
from rekontext.pictures.copies import LocalCopies

pytestmark = pytest.mark.anyio


class CountingStore:
    """Says how often it was asked, and can be made to wait."""

    def __init__(self, store: PictureStore) -> None:
        self.store = store
        self.copied: list[str] = []
        self.may_copy = asyncio.Event()
        self.may_copy.set()

    async def has(self, key: str) -> bool:
        return await self.store.has(key)

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


async def test_a_copy_goes_with_its_object(store: CountingStore, tmp_path: Path) -> None:
    """Nobody is told of it any more, but an edit may have it open."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    path = await kept.path("loras/a")
    with path.open("rb") as opened:
        await store.store.delete("loras/a")
        with pytest.raises(ObjectMissing):
            await kept.path("loras/a")
        assert opened.read() == b"a" * 10
    assert not path.exists()


async def test_copies_are_cleared_whose_objects_others_removed(store: CountingStore, tmp_path: Path) -> None:
    """Those of an earlier start too; and nothing that is no copy."""
    before = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    a, b = await before.path("loras/a"), await before.path("loras/b")
    strange = a.with_name("own.safetensors")
    strange.touch()
    await store.store.delete("loras/a")
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    assert (await kept.clear("loras"), await kept.clear("loras")) == (1, 0)
    assert set(a.parent.iterdir()) == {b, strange}


async def test_what_is_not_there_leaves_nothing(store: CountingStore, tmp_path: Path) -> None:
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    with pytest.raises(ObjectMissing):
        await kept.path("loras/z")
    assert not (tmp_path / "copies").exists()


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
    """It need not be copied from where it has just been put, unless it had to make room before anybody needed it."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=30)
    for name in "ab":
        async with kept.unfinished() as file:
            await file.write(name.encode() * 5)
            await file.write(name.encode() * 5)
            assert (file.size, file.digest) == (10, hashlib.sha256(name.encode() * 10).hexdigest())
            await kept.adopt(file, f"loras/{name}")
    assert (await kept.path("loras/a")).read_bytes() == b"a" * 10
    assert store.copied == []
    async with kept.unfinished() as file:
        await file.write(b"c" * 20)
        await kept.adopt(file, "loras/c")
    assert {path.stem for path in (tmp_path / "copies").iterdir()} == {"copy-a", "copy-c"}
    assert (await kept.path("loras/b")).read_bytes() == b"b" * 10
    assert store.copied == ["loras/b"]


async def test_what_others_write_makes_no_room(store: CountingStore, tmp_path: Path) -> None:
    """It takes some, and is nobody's to remove."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=30)
    async with kept.unfinished() as new:
        await new.write(b"n" * 10)
        async with kept.unfinished() as file:
            await file.write(b"c" * 25)
            await kept.adopt(file, "loras/c")
        assert [path.name for path in (tmp_path / "copies").iterdir()] == [new.path.name]
        assert new.path.read_bytes() == b"n" * 10


async def test_what_a_kill_left_unfinished_goes(
    store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is sure that nobody writes it any more."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100)
    async with kept.unfinished() as own:
        cut_off = own.path.with_name("unfinished-old")
        cut_off.touch()
        async with kept.unfinished():
            assert (cut_off.exists(), own.path.exists()) == (True, True)
        monkeypatch.setattr(copies, "_CUT_OFF_AFTER_S", -1.0)
        async with kept.unfinished():
            assert (cut_off.exists(), own.path.exists()) == (False, True)


async def test_another_name_of_an_old_object_is_not_taken_for_cut_off(store: CountingStore, tmp_path: Path) -> None:
    """A link has the age of what it links to."""
    old = tmp_path / "objects" / "loras" / "a"
    os.utime(old, (time.time() - 7 * 3600,) * 2)
    kept, others = (LocalCopies(store, tmp_path / "copies", bytes_max=100) for _ in range(2))
    copy_to = store.store.copy_to

    async def copy_while_others_begin(file: Path, key: str) -> None:
        await copy_to(file, key)
        async with others.unfinished():
            pass

    store.store.copy_to = copy_while_others_begin  # type: ignore[method-assign]
    assert (await kept.path("loras/a")).read_bytes() == b"a" * 10


async def test_a_full_disk_is_the_store_s_fault(
    store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is to stay free for others is left, however much is being written."""
    kept = LocalCopies(store, tmp_path / "copies", bytes_max=100, free_bytes_min=50)
    usage = shutil.disk_usage(tmp_path)
    async with kept.unfinished() as file:
        await file.write(b"x")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=49))
        with pytest.raises(StoreUnavailable, match="has 49 bytes free, and 50 are left for others"):
            await file.write(b"x")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=800, free=40))
        await file.write(b"x")
        file.close()
        file._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115, ASYNC230
        with pytest.raises(StoreUnavailable, match=r"can't be written: .*No space left"):
            await file.write(b"x")
    assert list((tmp_path / "copies").iterdir()) == []
