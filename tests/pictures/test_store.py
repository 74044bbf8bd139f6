"""Objects are written whole, read back as they were, and opened to strangers only by a link that is ours and fresh."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekontext.pictures.store import (
    LinkRefused,
    LinkSigner,
    ObjectExists,
    ObjectMissing,
    PictureStore,
    StoreUnavailable,
    open_store,
)
from tests.fakes import FakeClock

SECRET = b"a secret of thirty-two bytes ..."


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return open_store(f"file://{tmp_path}/objects")


async def keys(store: PictureStore, folder: str) -> list[str]:
    return sorted([found.key async for found in store.list(folder)])


@pytest.mark.anyio
async def test_an_object_comes_back_as_it_was(store: PictureStore) -> None:
    """And a second put replaces it."""
    await store.put("outputs/job/1/a.png", b"first", content_type="image/png")
    await store.put("outputs/job/1/a.png", b"second", content_type="image/png")
    assert await store.get("outputs/job/1/a.png") == b"second"


@pytest.mark.anyio
async def test_an_object_is_there_from_when_it_was_written_until_it_is_deleted(store: PictureStore) -> None:
    """A folder is none."""
    await store.put("assets/a", b"first", content_type="image/png")
    assert [await store.has(key) for key in ("assets/a", "assets/b", "assets")] == [True, False, False]
    await store.delete("assets/a")
    assert not await store.has("assets/a")


@pytest.mark.anyio
async def test_a_first_object_replaces_none(store: PictureStore) -> None:
    """Whoever comes second is told."""
    await store.put("assets/a", b"first", content_type="image/png", is_first=True)
    with pytest.raises(ObjectExists):
        await store.put("assets/a", b"second", content_type="image/png", is_first=True)
    assert await store.get("assets/a") == b"first"


@pytest.mark.anyio
async def test_a_file_becomes_an_object_and_an_object_a_file(store: PictureStore, tmp_path: Path) -> None:
    """Without being read into memory; a second one replaces the first, whichever was which file."""
    first, second, back = (tmp_path / name for name in ("first", "second", "back"))
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    for file in (first, first, second):
        await store.put_file("loras/a", file, content_type="application/octet-stream")
    assert await store.has("loras/a")
    assert not await store.has("loras/b")
    assert await store.get("loras/a") == b"second"
    await store.copy_to(back, "loras/a")
    await store.delete("loras/a")
    assert (first.read_bytes(), second.read_bytes(), back.read_bytes()) == (b"first", b"second", b"second")
    with pytest.raises(ObjectMissing):
        await store.copy_to(tmp_path / "none", "loras/a")
    assert [file.name for file in (tmp_path / "objects").rglob("*") if file.is_file()] == []


@pytest.mark.anyio
async def test_files_are_copied_where_they_can_t_have_two_names(
    store: PictureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another disk, or a file system without such links."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    file, back = tmp_path / "file", tmp_path / "back"
    file.write_bytes(b"some")
    await store.put_file("loras/a", file, content_type="application/octet-stream")
    await store.copy_to(back, "loras/a")
    assert await store.get("loras/a") == back.read_bytes() == b"some"


@pytest.mark.anyio
async def test_an_object_is_on_the_disk_once_it_is_written(
    store: PictureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its name, and with every folder above it: an edit is charged for what a power cut can't take.

    A folder that is there may be one that another put has made and not synced yet.
    """
    synced, root = list[Path](), tmp_path / "objects"
    monkeypatch.setattr(
        "rekontext.pictures.store.os.fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").resolve())
    )
    await store.put("outputs/job/1/a.png", b"first", content_type="image/png")
    folders = [root / "outputs/job/1", root / "outputs/job", root / "outputs", root]
    assert synced == [root / "outputs/job/1/a.png", *folders]
    synced.clear()
    await store.put("outputs/job/1/b.png", b"second", content_type="image/png")
    assert synced == [root / "outputs/job/1/b.png", *folders]


@pytest.mark.anyio
@pytest.mark.parametrize(("fails", "fault"), [("a.png", errno.EINVAL), ("a.png", errno.EIO), ("outputs", errno.EIO)])
async def test_an_object_that_the_disk_does_not_take_is_not_written(
    store: PictureStore, monkeypatch: pytest.MonkeyPatch, fails: str, fault: int
) -> None:
    """The disk may say so only now; what it has of it by then goes, or a full one would stay full."""

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().name == fails:
            raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("rekontext.pictures.store.os.fsync", fsync)
    with pytest.raises(StoreUnavailable, match=r"could not write 'outputs/a\.png'"):
        await store.put("outputs/a.png", b"x", content_type="image/png")
    with pytest.raises(ObjectMissing):
        await store.get("outputs/a.png")


@pytest.mark.anyio
async def test_what_is_deleted_is_gone_and_may_be_deleted_again(store: PictureStore) -> None:
    """A sweep that was cut short can be repeated."""
    await store.put("a/b", b"x", content_type="image/png")
    await store.delete("a/b")
    await store.delete("a/b")
    with pytest.raises(ObjectMissing, match="'a/b'"):
        await store.get("a/b")


@pytest.mark.anyio
async def test_a_listing_stays_in_its_folder(store: PictureStore) -> None:
    """A folder whose name merely begins the same is another one."""
    for key in ("outputs/job1/1/a", "outputs/job1/2/b", "outputs/job10/1/c"):
        await store.put(key, b"xy", content_type="image/png")
    assert await keys(store, "outputs/job1") == ["outputs/job1/1/a", "outputs/job1/2/b"]
    assert await keys(store, "outputs/none") == []
    assert [found.bytes async for found in store.list("outputs/job10")] == [2]


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/../../outside"])
async def test_a_key_cannot_leave_the_store(store: PictureStore, tmp_path: Path, key: str) -> None:
    """However it is written."""
    with pytest.raises(ValueError, match=r"\.\."):
        await store.put(key, b"x", content_type="image/png")
    assert not (tmp_path / "outside").exists()


@pytest.mark.anyio
async def test_a_store_that_is_away_is_told_apart_from_an_object_that_is_missing(
    store: PictureStore, tmp_path: Path
) -> None:
    """Whatever is asked of it; the message is one line, for the log."""
    (tmp_path / "objects").rmdir()
    (tmp_path / "objects").write_text("no folder any more")
    for asked in (
        store.put("a/b", b"x", content_type="image/png"),
        store.get("a/b"),
        store.delete("a/b"),
        keys(store, "a"),
    ):
        with pytest.raises(StoreUnavailable, match=r"the store could not \w+ 'a(/b)?': .+$") as fault:
            await asked
        assert "\n" not in str(fault.value)


KILLED_IN_A_PUT = """
import asyncio, resource, signal, sys
from rekontext.pictures.store import open_store
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
asyncio.run(open_store(sys.argv[1]).put("outputs/job/1/0.png", b"x" * 65536, content_type="image/png"))
"""
"""What writes more than 4 KiB into a file is killed by its system, in the middle."""


def put_and_be_killed(folder: Path) -> None:
    command = [sys.executable, "-c", KILLED_IN_A_PUT, f"file://{folder}"]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGXFSZ


@pytest.mark.anyio
async def test_what_a_kill_cut_off_is_seen_by_no_listing_and_cleared_away_by_its_age(
    store: PictureStore, tmp_path: Path
) -> None:
    """With the folders that were made for it; whole objects and younger writes, which may go on, stay."""
    put_and_be_killed(tmp_path / "objects")
    for key in ("outputs/job#1a", "outputs/7"):
        await store.put(key, b"whole", content_type="image/png")
    [cut_off] = (tmp_path / "objects/outputs/job/1").iterdir()
    moment = datetime(2026, 3, 14, tzinfo=UTC)
    for path in (cut_off, *(tmp_path / "objects/outputs").glob("*7*")):
        os.utime(path, (moment.timestamp(), moment.timestamp()))
    whole = ["outputs/7", "outputs/job#1a"]
    assert await keys(store, "outputs") == whole
    earlier = moment - timedelta(seconds=1)
    assert await store.clear_cut_off("outputs", before=earlier, at_most=10) == 0
    assert await store.clear_cut_off("inputs", before=moment, at_most=10) == 0
    assert await store.clear_cut_off("outputs", before=moment, at_most=0) == 0
    assert cut_off.exists()
    assert await store.clear_cut_off("outputs", before=moment, at_most=10) == 1
    assert not (tmp_path / "objects/outputs/job").exists()
    assert await keys(store, "outputs") == whole


@pytest.mark.anyio
async def test_what_was_cut_off_and_can_t_be_removed_is_told(
    store: PictureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that can be removed is gone."""
    folder, unlink = tmp_path / "objects/inputs", Path.unlink
    folder.mkdir()
    for name in ("a#1", "b#1", "c#22"):
        (folder / name).write_bytes(b"cut off")

    def guarded(path: Path) -> None:
        if path.name == "b#1":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path)

    monkeypatch.setattr(Path, "unlink", guarded)
    with pytest.raises(StoreUnavailable, match=r"the store could not clear 'inputs': .*Permission denied"):
        await store.clear_cut_off("inputs", before=datetime.now(UTC) + timedelta(hours=1), at_most=10)
    assert [path.name for path in folder.iterdir()] == ["b#1"]


@pytest.mark.anyio
async def test_a_store_of_another_kind_keeps_the_same_promises() -> None:
    """What holds for a folder holds for an object store, here one in memory."""
    store = open_store("memory:///")
    await store.put("a/b", b"one", content_type="image/png")
    assert await store.get("a/b") == b"one"
    assert await keys(store, "a") == ["a/b"]
    assert await store.has("a/b")
    await store.delete("a/b")
    await store.delete("a/b")
    assert not await store.has("a/b")
    with pytest.raises(ObjectMissing):
        await store.get("a/b")
    assert await store.clear_cut_off("a", before=datetime.now(UTC), at_most=10) == 0


@pytest.mark.parametrize("url", ["objects", "file://relative/folder", "ftp://host/x", "file:///proc/nowhere"])
def test_a_store_that_cannot_be_opened_is_refused_by_name(url: str) -> None:
    """When the service starts."""
    with pytest.raises(ValueError, match=url):
        open_store(url)


def parts(link: str) -> tuple[str, str, str]:
    path, _, query = link.partition("?")
    values = parse_qs(query, strict_parsing=True)
    return unquote(path), values["expires"][0], values["signature"][0]


def test_a_link_opens_its_object_until_its_moment(clock: FakeClock) -> None:
    """Not a second longer."""
    signer = LinkSigner(SECRET)
    key, expires, signature = parts(signer.sign("outputs/a b/ü.png", until=clock.now() + timedelta(seconds=60)))
    assert key == "outputs/a b/ü.png"
    signer.verify(key, expires=expires, signature=signature, now=clock.now())
    clock.advance(60)
    with pytest.raises(LinkRefused, match="expired"):
        signer.verify(key, expires=expires, signature=signature, now=clock.now())


@given(data=st.data())
def test_no_part_of_a_link_can_be_changed(data: st.DataObject) -> None:
    """Another object, another moment or another signature opens nothing."""
    clock, signer = FakeClock(), LinkSigner(SECRET)
    original = parts(signer.sign("outputs/job/1/a.png", until=clock.now() + timedelta(seconds=60)))
    changed = tuple(data.draw(st.one_of(st.just(part), st.text(), st.integers().map(str))) for part in original)
    key, expires, signature = changed
    if changed == original:
        signer.verify(key, expires=expires, signature=signature, now=clock.now())
        return
    with pytest.raises(LinkRefused):
        signer.verify(key, expires=expires, signature=signature, now=clock.now())


def test_a_link_of_another_server_opens_nothing(clock: FakeClock) -> None:
    """And a secret that could be guessed stops the start."""
    link = parts(LinkSigner(b"another secret, not ours").sign("a", until=clock.now() + timedelta(seconds=60)))
    with pytest.raises(LinkRefused):
        LinkSigner(SECRET).verify(link[0], expires=link[1], signature=link[2], now=clock.now())
    with pytest.raises(ValueError, match="5 bytes is too short"):
        LinkSigner(b"short")
