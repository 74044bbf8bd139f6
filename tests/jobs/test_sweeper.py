"""What is old goes, and nothing else; a sweep that was cut short is done again."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from rekontext.database.tables import assets, idempotency_keys, transfers, webhook_deliveries
from rekontext.jobs import Job, JobUnknown, Patience, State, input_key, output_key
from rekontext.jobs.sweeper import Retention, Sweeper, Swept
from rekontext.pictures.store import PictureStore, open_store
from tests.jobs.office import ALICE, Office

pytestmark = pytest.mark.anyio

NOTHING = Swept(inputs=0, outputs=0, records=0, idempotency_keys=0, deliveries=0, assets=0, orphans=0)
HOUR = 3600
RETENTION = Retention(inputs_s=HOUR, records_s=30 * HOUR, idempotency_s=20 * HOUR, assets_s=5 * HOUR)


@pytest.fixture
def office(office: Office) -> Office:
    office.patience = Patience(outputs_s=10 * HOUR, queue_s_max=1000 * HOUR)
    return office


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return open_store(f"file://{tmp_path}/objects")


@pytest.fixture
def sweeper(office: Office, store: PictureStore) -> Sweeper:
    return Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION)


async def keys(store: PictureStore) -> list[str]:
    return sorted([found.key for folder in ("inputs", "outputs") async for found in store.list(folder)])


async def run_a_job(office: Office, store: PictureStore, *, key: str | None = None) -> Job:
    """A completed job with an input, an output and what a lost attempt left behind."""
    order = office.order(key=key, webhook_url="https://example.com")
    order = type(order)(**{**vars(order), "input_key": input_key(order.job)})
    await store.put(input_key(order.job), b"in", content_type="image/png")
    job = office.start(order)
    for attempt in (1, 2):
        await store.put(output_key(job.id, attempt, "0.png"), b"out", content_type="image/png")
    return office.complete(job.lease)


async def test_each_thing_goes_when_its_time_is_over(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """The input after an hour, the outputs after ten, the idempotency key after twenty, the record after thirty."""
    job = await run_a_job(office, store, key="k")
    assert await sweeper.sweep() == NOTHING
    office.clock.advance(HOUR)
    assert (await sweeper.sweep()).inputs == 1
    assert await keys(store) == [output_key(job.id, 1, "0.png"), output_key(job.id, 2, "0.png")]
    office.clock.advance(9 * HOUR)
    assert (await sweeper.sweep()).outputs == 1
    assert await keys(store) == []
    swept = office.job(job.id)
    assert (swept.state, swept.input_key, swept.files_until) == (State.COMPLETED, None, None)
    office.clock.advance(10 * HOUR)
    assert (await sweeper.sweep()).idempotency_keys == 1
    office.clock.advance(10 * HOUR)
    assert (await sweeper.sweep()).records == 1
    with pytest.raises(JobUnknown):
        office.job(job.id)
    assert await sweeper.sweep() == NOTHING
    books = select(func.count()).select_from(transfers)
    assert office.database.read_sync(lambda tx: tx.execute(books).scalar_one()) == 3  # the books stay


async def test_everything_at_once_after_a_long_pause(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """Pictures still go before the record that knows of them, and the key goes with the record."""
    await run_a_job(office, store, key="k")
    office.clock.advance(1000 * HOUR)
    assert await sweeper.sweep() == Swept(
        inputs=1, outputs=1, records=1, idempotency_keys=0, deliveries=0, assets=0, orphans=0
    )
    assert await keys(store) == []
    counted = select(func.count()).select_from(idempotency_keys)
    assert office.database.read_sync(lambda tx: tx.execute(counted).scalar_one()) == 0


async def test_unfinished_jobs_keep_everything(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """However old."""
    order = office.order()
    order = type(order)(**{**vars(order), "input_key": input_key(order.job)})
    await store.put(input_key(order.job), b"in", content_type="image/png")
    office.accept(order)
    office.clock.advance(900 * HOUR)
    assert await sweeper.sweep() == NOTHING
    assert await keys(store) == [input_key(order.job)]


async def test_failed_and_cancelled_jobs_leave_no_files(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """Nobody will come for what their attempts made."""
    job = office.start()
    await store.put(output_key(job.id, 1, "0.png"), b"out", content_type="image/png")
    office.fail(job.lease, retry=False)
    assert (await sweeper.sweep()).outputs == 1
    assert await keys(store) == []


async def test_an_input_that_belongs_to_someone_else_stays(
    office: Office, store: PictureStore, sweeper: Sweeper
) -> None:
    """An uploaded asset outlives the job that used it."""
    await store.put("assets/one", b"asset", content_type="image/png")
    job = office.start(office.order(input_key="assets/one"))
    office.complete(job.lease)
    office.clock.advance(HOUR)
    assert (await sweeper.sweep()).inputs == 1
    assert await store.get("assets/one") == b"asset"


async def test_an_input_without_a_job_goes(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """Its order was never accepted."""
    await store.put("inputs/nobody", b"in", content_type="image/png")
    [stored] = [found async for found in store.list("inputs")]
    office.clock.advance(max(0.0, (stored.written_at - office.clock.now()).total_seconds()) + HOUR - 1)
    assert (await sweeper.sweep()).orphans == 0
    office.clock.advance(1)
    assert (await sweeper.sweep()).orphans == 1
    assert await keys(store) == []


async def test_assets_and_old_deliveries_go(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """Each by its own age; a delivery that waits stays."""
    await store.put("assets/one", b"asset", content_type="image/png")
    row = {"id": "a", "account_id": ALICE, "object_key": "assets/one", "content_type": "image/png"}
    rest = {"file_name": "a.png", "bytes": 5, "created_at": office.clock.now()}
    office.database.transact_sync(lambda tx: tx.execute(insert(assets).values(**row, **rest)) and None)
    await run_a_job(office, store)
    office.clock.advance(5 * HOUR)
    assert (await sweeper.sweep()).assets == 1
    assert [found async for found in store.list("assets")] == []
    office.clock.advance(100 * HOUR)
    assert (await sweeper.sweep()).deliveries == 0
    ended = webhook_deliveries.update().values(state="DEAD", finished_at=office.clock.now())
    office.database.transact_sync(lambda tx: tx.execute(ended) and None)
    office.clock.advance(30 * HOUR)
    assert (await sweeper.sweep()).deliveries == 1


async def test_more_than_a_batch_goes_in_one_sweep(
    office: Office, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces that never hold the database for long."""
    monkeypatch.setattr("rekontext.jobs.sweeper.BATCH", 2)
    for _ in range(7):
        office.complete(office.start().lease)
    office.clock.advance(1000 * HOUR)
    swept = await sweeper.sweep()
    assert (swept.outputs, swept.records) == (7, 7)
