"""What was just written is read from memory, within a bound; everything else from the store, and always the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekontext.pictures.recent import RecentStore
from rekontext.pictures.store import ObjectMissing, PictureStore, open_store

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return open_store(f"file://{tmp_path}/objects")


@pytest.fixture
def recent(store: PictureStore) -> RecentStore:
    return RecentStore(store, bytes_max=10, besides="shared")


async def test_what_was_written_is_in_memory_and_in_the_store(store: PictureStore, recent: RecentStore) -> None:
    """Memory alone would lose it, so the store has it first."""
    await recent.put("a", b"12345", content_type="image/png")
    assert await store.get("a") == b"12345"
    await store.delete("a")
    assert await recent.get("a") == b"12345"


async def test_whether_there_is_an_object_is_asked_of_the_store(store: PictureStore, recent: RecentStore) -> None:
    """Memory may outlive what another process has removed."""
    await recent.put("a", b"12345", content_type="image/png")
    assert await recent.has("a")
    await store.delete("a")
    assert not await recent.has("a")


async def test_the_oldest_is_forgotten_when_there_is_too_much(recent: RecentStore, store: PictureStore) -> None:
    """And read from the store from then on."""
    for key in "abc":
        await recent.put(key, key.encode() * 4, content_type="image/png")
    await store.delete("a")
    with pytest.raises(ObjectMissing):
        await recent.get("a")
    for key in "bc":
        await store.delete(key)
    assert [await recent.get(key) for key in "bc"] == [b"bbbb", b"cccc"]
    await recent.put("d", b"x" * 11, content_type="image/png")
    await store.delete("d")
    for key in "bcd":
        with pytest.raises(ObjectMissing):
            await recent.get(key)


async def test_what_is_replaced_or_deleted_is_not_remembered(recent: RecentStore, store: PictureStore) -> None:
    """Memory never answers differently from the store."""
    await recent.put("a", b"old", content_type="image/png")
    await recent.put("a", b"newer", content_type="image/png")
    assert await recent.get("a") == b"newer"
    await recent.delete("a")
    with pytest.raises(ObjectMissing):
        await recent.get("a")
    await recent.put("a", b"again", content_type="image/png")
    assert [found.key async for found in recent.list("")] == ["a"]
    await recent.put("b", b"whole", content_type="image/png")
    for key in "ab":  # what is gone takes no room: both are remembered
        await store.delete(key)
    assert [await recent.get(key) for key in "ab"] == [b"again", b"whole"]


async def test_what_others_may_remove_is_read_from_the_store(recent: RecentStore, store: PictureStore) -> None:
    """An upload that was deleted through another process would go on opening in this one."""
    await recent.put("shared/a", b"12345", content_type="image/png")
    await store.delete("shared/a")
    with pytest.raises(ObjectMissing):
        await recent.get("shared/a")
