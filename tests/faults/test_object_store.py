"""Pictures in a store that speaks S3, over a real socket: the promises of a folder, and what happens without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rekontext.database import Database
from rekontext.jobs import Patience, State, input_key
from rekontext.pictures import open_store
from rekontext.pictures.store import ObjectMissing, PictureStore
from tests.faults import s3
from tests.faults.s3 import BUCKET, S3Server
from tests.jobs.office import ALICE, PHOTO_KEY, Office
from tests.jobs.plant import Plant

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3.running() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def store(server: S3Server) -> PictureStore:
    """Opened as `REKONTEXT_STORE_URL` does it: what is not in the URL comes from the store's own variables."""
    return open_store(f"s3://{BUCKET}/folder")


async def keys(store: PictureStore, folder: str) -> list[tuple[str, int]]:
    return sorted([(found.key, found.bytes) async for found in store.list(folder)])


async def test_a_store_over_the_network_keeps_its_promises(store: PictureStore) -> None:
    """Whole objects, listings that stay in their folder, deletes that may be repeated."""
    picture = bytes(range(256)) * 4096
    await store.put("outputs/job1/1/a b.png", b"first", content_type="image/png")
    await store.put("outputs/job1/1/a b.png", picture, content_type="image/png")
    await store.put("outputs/job10/1/c.png", b"c", content_type="image/png")
    assert await store.get("outputs/job1/1/a b.png") == picture
    assert await keys(store, "outputs/job1") == [("outputs/job1/1/a b.png", len(picture))]
    await store.delete("outputs/job1/1/a b.png")
    await store.delete("outputs/job1/1/a b.png")
    with pytest.raises(ObjectMissing):
        await store.get("outputs/job1/1/a b.png")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_an_edit_whose_store_is_away_is_free_and_the_next_one_runs(
    database: Database, store: PictureStore, server: S3Server
) -> None:
    """A store that goes away is a fault of ours: tried again, then FAILED and released; nothing else suffers."""
    office = Office(database=database, patience=Patience(faults_max=1))
    office.open_account(ALICE)
    plant = Plant(office=office, objects=store)
    async with plant.at_work():
        order = office.order()
        order = office.order(input_key=input_key(order.job))
        await store.put(order.input_key, b"photo", content_type="image/png")
        done = await plant.ended((await plant.desk.submit(order)).job)
        assert (done.state, plant.workbench.photos) == (State.COMPLETED, [b"photo"])
        assert done.outputs is not None
        assert await store.get(done.outputs[0].key) == b"picture 7"
        server.kill()
        failed = await plant.ended((await plant.desk.submit(office.order())).job)
        assert (failed.state, failed.error_code) == (State.FAILED, "engine_fault")
        server.start()  # without what it had in memory
        await store.put(PHOTO_KEY, b"photo", content_type="image/png")
        again = await plant.ended((await plant.desk.submit(office.order())).job)
        assert again.state is State.COMPLETED
    assert office.money() == (8, 0, 2)
    office.check_books()
