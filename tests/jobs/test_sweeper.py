"""What is old goes, and nothing else; a sweep that was cut short is done again."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, Insert, func, insert, select, text, update
from structlog.testing import capture_logs

from rekontext.accounts import KeyPolicy
from rekontext.accounts import keys as api_keys
from rekontext.database import DatabaseUnavailable, DeliveryId, JobId, KeyId
from rekontext.database.tables import accounts, assets, idempotency_keys, jobs, transfers, webhook_deliveries
from rekontext.jobs import Job, JobUnknown, Patience, State, endpoints, input_key, mask_key, output_key
from rekontext.jobs.sweeper import Retention, Sweeper, Swept
from rekontext.pictures.store import PictureStore, StoredObject, StoreUnavailable, open_store
from tests.fakes import FakeRandomness
from tests.jobs.office import ALICE, BOB, Office

pytestmark = pytest.mark.anyio

NOTHING = Swept(**{field.name: 0 for field in fields(Swept)})
HOUR = 3600
RETENTION = Retention(inputs_s=HOUR, records_s=30 * HOUR, idempotency_s=20 * HOUR, assets_s=5 * HOUR)


@pytest.fixture
def office(office: Office) -> Office:
    office.patience = Patience(outputs_s=10 * HOUR, queue_s_max=1000 * HOUR)
    return office


@pytest.fixture
def sweeper(office: Office, store: PictureStore) -> Sweeper:
    return Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION)


class SpoiltStore(PictureStore):
    """Can't remove some keys."""

    spoilt: set[str]
    tried: list[str]

    def __init__(self, folder: Path) -> None:
        vars(self).update(vars(open_store(f"file://{folder}")))
        self.spoilt, self.tried = set(), []

    async def delete(self, key: str) -> None:
        self.tried.append(key)
        if key in self.spoilt:
            raise StoreUnavailable(f"the store could not remove {key!r}: no permission")
        await super().delete(key)


async def keys(store: PictureStore) -> list[str]:
    return sorted([found.key for folder in ("inputs", "masks", "outputs") async for found in store.list(folder)])


async def run_a_job(office: Office, store: PictureStore, *, key: str | None = None) -> Job:
    """A completed job with an input, an output and what a lost attempt left behind."""
    order = office.order(key=key, webhook_url="https://example.com")
    order = replace(order, input_key=input_key(order.job), mask_key=mask_key(order.job))
    for kept in (input_key(order.job), mask_key(order.job)):
        await store.put(kept, b"in", content_type="image/png")
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
    assert (swept.state, swept.input_key, swept.mask_key, swept.files_until) == (State.COMPLETED, None, None, None)
    office.clock.advance(10 * HOUR)
    assert (await sweeper.sweep()).idempotency_keys == 1
    office.clock.advance(10 * HOUR)
    assert (await sweeper.sweep()).records == 1
    with pytest.raises(JobUnknown):
        office.job(job.id)
    assert await sweeper.sweep() == NOTHING
    books = select(func.count()).select_from(transfers)
    assert office.database.read_sync(lambda tx: tx.execute(books).scalar_one()) == 3  # the books stay


async def test_the_key_of_a_job_that_waits_stays(office: Office, sweeper: Sweeper) -> None:
    """However long: a second request with it gets that job, not another one."""
    waiting = office.accept(office.order(key="k")).job
    office.clock.advance(1000 * HOUR)
    assert (await sweeper.sweep()).idempotency_keys == 0
    again = office.accept(office.order(key="k"))
    assert (again.job.id, again.replayed) == (waiting.id, True)
    office.cancel(waiting.id)
    assert (await sweeper.sweep()).idempotency_keys == 1


async def test_everything_at_once_after_a_long_pause(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """Pictures still go before the record that knows of them, and the key goes with the record."""
    await run_a_job(office, store, key="k")
    office.clock.advance(1000 * HOUR)
    assert await sweeper.sweep() == replace(NOTHING, inputs=1, outputs=1, records=1)
    assert await keys(store) == []
    counted = select(func.count()).select_from(idempotency_keys)
    assert office.database.read_sync(lambda tx: tx.execute(counted).scalar_one()) == 0


async def test_closed_keys_go_as_late_as_the_records(office: Office, sweeper: Sweeper) -> None:
    """Revoked or expired so long ago, and named by no job."""
    now = office.clock.now()
    hour, revoked = timedelta(hours=1), ["revoked", "revoked too", "named"]
    policies = {"open": None, "expires": now + hour, "outlives": now + 2 * hour} | dict.fromkeys(revoked)

    def make(tx: Connection) -> None:
        randomness = FakeRandomness()
        for name, expires_at in policies.items():
            policy = KeyPolicy(expires_at=expires_at)
            api_keys.create(tx, ALICE, policy, key=KeyId(name), pepper=b"p" * 16, randomness=randomness, now=now)
        for name in revoked:
            api_keys.revoke(tx, KeyId(name), now=now + hour)
        tx.execute(update(jobs).values(key_id="named"))

    def left() -> set[str]:
        found = office.database.read_sync(lambda tx: api_keys.of_account(tx, ALICE, now=office.clock.now()))
        return {key.id for key in found}

    job = office.start()
    office.database.transact_sync(make)
    office.clock.advance(31 * HOUR - 1)
    assert await sweeper.sweep() == NOTHING
    office.clock.advance(1)
    assert (await sweeper.sweep()).api_keys == 3
    assert left() == {"open", "outlives", "named"}
    office.clock.advance(HOUR)
    office.complete(job.lease)
    assert (await sweeper.sweep()).api_keys == 1
    office.clock.advance(30 * HOUR)
    swept = await sweeper.sweep()
    assert (swept.records, swept.api_keys) == (1, 1)
    assert left() == {"open"}


async def test_unfinished_jobs_keep_everything(office: Office, store: PictureStore, sweeper: Sweeper) -> None:
    """However old."""
    order = office.order()
    order = replace(order, input_key=input_key(order.job), mask_key=mask_key(order.job))
    kept = [input_key(order.job), mask_key(order.job)]
    for key in kept:
        await store.put(key, b"in", content_type="image/png")
    office.accept(order)
    office.clock.advance(900 * HOUR)
    assert await sweeper.sweep() == NOTHING
    assert await keys(store) == kept


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
    job = office.start(replace(office.order(input_key="assets/one"), mask_key="assets/one"))
    office.complete(job.lease)
    office.clock.advance(HOUR)
    assert (await sweeper.sweep()).inputs == 1
    assert await store.get("assets/one") == b"asset"


@pytest.mark.parametrize("folder", ["inputs", "masks", "assets"])
@pytest.mark.parametrize("inputs_s", [1, HOUR])
async def test_a_picture_that_belongs_to_nobody_goes(
    office: Office, store: PictureStore, folder: str, inputs_s: float
) -> None:
    """Its order or upload was never written down; that it still may be is ruled out after an hour, and not before."""
    retention = Retention(inputs_s=inputs_s)
    sweeper = Sweeper(database=office.database, objects=store, clock=office.clock, retention=retention)
    await store.put(f"{folder}/nobody", b"in", content_type="image/png")
    [stored] = [found async for found in store.list(folder)]
    office.clock.advance(max(0.0, (stored.written_at - office.clock.now()).total_seconds()) + HOUR - 1)
    assert (await sweeper.sweep()).orphans == 0
    office.clock.advance(HOUR)
    assert (await sweeper.sweep()).orphans == 1
    assert [found async for found in store.list(folder)] == []


async def test_a_picture_whose_writing_a_kill_cut_off_goes(
    office: Office, store: PictureStore, sweeper: Sweeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour, within the next one, and of many only some at once. Half a picture is nobody's."""
    monkeypatch.setattr("rekontext.jobs.sweeper.BATCH", 1)
    monkeypatch.setattr("rekontext.jobs.sweeper.BATCHES_PER_SWEEP_MAX", 3)
    cut_off = [tmp_path / "objects" / name for name in ("inputs/a#1", "assets/a#1", "outputs/j/1/a#1", "outputs/b#1")]
    for path in cut_off:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of")
        moment = office.clock.now().timestamp() + 60
        os.utime(path, (moment, moment))
    await sweeper.sweep()
    office.clock.advance(HOUR)
    assert await sweeper.sweep() == NOTHING
    office.clock.advance(HOUR)
    assert [(await sweeper.sweep()).cut_off for _ in range(3)] == [3, 1, 0]
    assert [path for path in cut_off if path.exists()] == []


async def test_folders_are_searched_for_cut_off_pictures_once_an_hour(
    office: Office, store: PictureStore, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can't be searched is told, and isn't tried sooner."""
    tried: list[str] = []

    async def away(folder: str, *, before: datetime, at_most: int) -> int:
        tried.append(folder)
        raise StoreUnavailable("no permission")

    monkeypatch.setattr(store, "clear_cut_off", away)
    with capture_logs() as logs:
        for seconds, times in ((0, 1), (HOUR - 1, 1), (1, 2)):
            office.clock.advance(seconds)
            await sweeper.sweep()
            assert len(tried) == times
    assert [(log["event"], log["kind"], log["fault"]) for log in logs] == [
        ("sweep_failed", "cut_off", "no permission")
    ] * 2


@pytest.mark.parametrize("folder", ["inputs", "assets", "outputs"])
async def test_pictures_from_before_the_database_stay(
    office: Office, store: PictureStore, sweeper: Sweeper, tmp_path: Path, folder: str
) -> None:
    """A service that is started on a new or a wrong database doesn't clear away the store of the right one."""
    began = office.database.read_sync(lambda tx: tx.execute(select(func.min(accounts.c.created_at))).scalar_one())
    for name, age_s in (("before", 1), ("after", -1)):
        await store.put(f"{folder}/{name}", b"in", content_type="image/png")
        moment = began.timestamp() - age_s
        os.utime(tmp_path / "objects" / folder / name, (moment, moment))
    office.clock.advance(24 * HOUR)
    assert (await sweeper.sweep()).orphans == 1
    assert [found.key async for found in store.list(folder)] == [f"{folder}/before"]


async def test_a_picture_whose_order_is_being_accepted_stays(office: Office, store: PictureStore) -> None:
    """However short finished inputs are kept."""
    retention = Retention(inputs_s=1)
    sweeper = Sweeper(database=office.database, objects=store, clock=office.clock, retention=retention)
    await store.put("inputs/coming", b"in", content_type="image/png")
    [stored] = [found async for found in store.list("inputs")]
    office.clock.advance(max(0.0, (stored.written_at - office.clock.now()).total_seconds()) + 60)
    assert await sweeper.sweep() == NOTHING
    assert await store.get("inputs/coming") == b"in"


async def test_uploads_are_looked_through_now_and_then(
    office: Office, store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once an hour, since a cloud charges for each listing; after the clock was set back, at once."""
    listed: list[str] = []
    listing = store.list

    def watched(folder: str) -> AsyncIterator[StoredObject]:
        listed.append(folder)
        return listing(folder)

    monkeypatch.setattr(store, "list", watched)
    sweeper = Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION)
    for seconds, looks in ((0, 1), (HOUR - 1, 1), (1, 2), (60, 2)):
        office.clock.advance(seconds)
        await sweeper.sweep()
        assert (listed.count("assets"), listed.count("outputs")) == (looks, looks)
    office.clock.set_back(24 * HOUR)
    await sweeper.sweep()
    assert (listed.count("assets"), listed.count("outputs")) == (3, 3)


async def test_orphans_that_cannot_be_removed_hide_no_upload(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a sweep gave up before it came to the uploads, the next one looks through them."""
    monkeypatch.setattr("rekontext.jobs.sweeper.FAILURES_PER_SWEEP_MAX", 2)
    store = SpoiltStore(tmp_path / "spoilt")
    sweeper = Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION)
    store.spoilt = {"inputs/one", "inputs/two"}
    for key in (*store.spoilt, "assets/nobody"):
        await store.put(key, b"in", content_type="image/png")
    office.clock.advance(20_000 * HOUR)
    assert [(await sweeper.sweep()).orphans for _ in range(2)] == [0, 1]


async def test_many_orphans_go_in_several_sweeps(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else would wait for them. The sweeps go on to the last, whatever can't be removed before it."""
    monkeypatch.setattr("rekontext.jobs.sweeper.BATCH", 2)
    monkeypatch.setattr("rekontext.jobs.sweeper.BATCHES_PER_SWEEP_MAX", 2)
    store = SpoiltStore(tmp_path / "spoilt")
    sweeper = Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION)
    for number in range(7):
        await store.put(f"inputs/no-{number}", b"in", content_type="image/png")
    for number in range(3):
        await store.put(f"outputs/no-{number}/1/0.png", b"out", content_type="image/png")
    store.spoilt = {"inputs/no-1", "inputs/no-3"}
    office.clock.advance(20_000 * HOUR)
    swept = []
    for sweeps in range(1, 5):
        swept.append((await sweeper.sweep()).orphans)
        assert len(store.tried) <= 4 * sweeps
    assert sum(swept) == 8
    left = [found.key for folder in ("inputs", "outputs") async for found in store.list(folder)]
    assert sorted(left) == sorted(store.spoilt)


async def test_outputs_of_jobs_that_a_restored_backup_does_not_know_go(
    office: Office, store: PictureStore, sweeper: Sweeper
) -> None:
    """Each of their pictures, an hour after it was written; those of known jobs stay, whatever became of the job."""
    office.patience = Patience(outputs_s=50_000 * HOUR)
    job = await run_a_job(office, store)
    kept = [output_key(job.id, 1, "0.png"), output_key(job.id, 2, "0.png")]
    for attempt in (1, 2):
        await store.put(output_key(JobId("unknown"), attempt, "0.png"), b"out", content_type="image/png")
    written = [found.written_at async for found in store.list("outputs")]
    office.clock.advance(max(0.0, (min(written) - office.clock.now()).total_seconds()) + HOUR - 1)
    assert (await sweeper.sweep()).orphans == 0
    office.clock.advance(2 * HOUR)
    assert (await sweeper.sweep()).orphans == 2
    assert [key for key in await keys(store) if key.startswith("outputs")] == kept


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


async def test_a_message_that_is_replayed_at_the_moment_of_its_sweep_stays(
    office: Office, store: PictureStore, sweeper: Sweeper
) -> None:
    """The answer was that it will be sent."""
    await run_a_job(office, store)
    ended = webhook_deliveries.update().values(state="DEAD", finished_at=office.clock.now())
    office.database.transact_sync(lambda tx: tx.execute(ended) and None)
    office.clock.advance(30 * HOUR)
    replayed, sweeping = threading.Event(), threading.Event()

    def replay(tx: Connection) -> None:
        [message] = tx.execute(select(webhook_deliveries.c.id)).scalars()
        endpoints.replay(tx, ALICE, DeliveryId(message), now=office.clock.now())
        replayed.set()
        sweeping.wait(10)
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        for _ in range(500 if tx.dialect.name == "postgresql" else 0):  # until the sweep waits for this row
            if tx.execute(waiting).scalar_one():
                break
            tx.execute(text("SELECT pg_sleep(0.01)"))

    async def sweep() -> int:
        await asyncio.to_thread(replayed.wait, 10)
        sweeping.set()
        return (await sweeper.sweep()).deliveries

    _, swept = await asyncio.gather(office.database.transact(replay), sweep())
    assert swept == 0
    states = select(webhook_deliveries.c.state)
    assert office.database.read_sync(lambda tx: tx.execute(states).scalars().all()) == ["PENDING"]


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


def execute(statement: Insert, tx: Connection) -> None:
    tx.execute(statement)


async def ended_jobs(office: Office, store: PictureStore, count: int) -> list[Job]:
    """Jobs that ended one after the other, each with an input, an output, an upload of its age and an orphan."""
    office.open_account(BOB, edits=count)
    jobs = []
    for _ in range(count):
        order = office.order(BOB)
        job = office.start(type(order)(**{**vars(order), "input_key": input_key(order.job)}))
        for key in (input_key(job.id), output_key(job.id, 1, "0.png"), f"assets/{job.id}", f"inputs/no-{job.id}"):
            await store.put(key, b"bytes", content_type="image/png")
        upload = assets.insert().values(
            id=job.id,
            account_id=BOB,
            object_key=f"assets/{job.id}",
            content_type="image/png",
            file_name="a.png",
            bytes=5,
            created_at=office.clock.now(),
        )
        office.database.transact_sync(partial(execute, upload))
        jobs.append(office.complete(job.lease))
        office.clock.advance(1)
    office.clock.advance(20_000 * HOUR)
    return jobs


@pytest.mark.parametrize("folder", ["inputs/{}", "outputs/{}/1/0.png", "assets/{}", "inputs/no-{}"])
async def test_what_cannot_be_removed_holds_up_nothing_else(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """It is the oldest, and more than a batch: what comes behind it and all other kinds go, and it does in the end."""
    monkeypatch.setattr("rekontext.jobs.sweeper.BATCH", 2)
    store = SpoiltStore(tmp_path / "spoilt")
    sweeper = Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION)
    jobs = await ended_jobs(office, store, 5)
    store.spoilt = {folder.format(job.id) for job in jobs[:3]}
    with capture_logs() as logs:
        await sweeper.sweep()
    left = sorted([found.key for name in ("inputs", "outputs", "assets") async for found in store.list(name)])
    assert left == sorted(store.spoilt)
    assert {log["event"] for log in logs} == {"sweep_failed"}
    assert {log["fault"] for log in logs} == {f"the store could not remove {key!r}: no permission" for key in left}
    store.spoilt = set()
    await sweeper.sweep()
    assert [found.key for name in ("inputs", "outputs", "assets") async for found in store.list(name)] == []


@pytest.mark.parametrize("folder", ["inputs/{}", "inputs/no-{}"])
async def test_a_store_that_is_away_is_asked_a_few_times_and_not_always_for_the_same(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Each sweep goes on behind what failed in the one before; when all were tried, from the beginning."""
    monkeypatch.setattr("rekontext.jobs.sweeper.FAILURES_PER_SWEEP_MAX", 2)
    store = SpoiltStore(tmp_path / "spoilt")
    sweeper = Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION)
    store.spoilt = {folder.format(job.id) for job in await ended_jobs(office, store, 5)}
    for sweeps in (1, 2, 3):
        await sweeper.sweep()
        tried = [key for key in store.tried if key in store.spoilt]
        assert len(tried) == len(set(tried)) == min(5, 2 * sweeps)
    await sweeper.sweep()
    assert len([key for key in store.tried if key in store.spoilt]) == 7


async def test_a_record_whose_pictures_remain_holds_up_no_other(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them are the oldest."""
    monkeypatch.setattr("rekontext.jobs.sweeper.BATCH", 2)
    store = SpoiltStore(tmp_path / "spoilt")
    jobs = await ended_jobs(office, store, 5)
    store.spoilt = {input_key(job.id) for job in jobs[:3]}
    await Sweeper(database=office.database, objects=store, clock=office.clock, retention=RETENTION).sweep()
    assert [office.job(job.id).id for job in jobs[:3]] == [job.id for job in jobs[:3]]
    for job in jobs[3:]:
        with pytest.raises(JobUnknown):
            office.job(job.id)


async def test_a_database_that_fails_on_one_kind_has_the_others_swept(
    office: Office, store: PictureStore, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the log says why."""

    def broken(tx: object, before: object) -> int:
        raise DatabaseUnavailable("the disk is full\nand more")

    monkeypatch.setattr("rekontext.jobs.sweeper._delete_records", broken)
    await ended_jobs(office, store, 1)
    with capture_logs() as logs:
        swept = await sweeper.sweep()
    assert (swept.inputs, swept.records, swept.assets, swept.orphans) == (1, 0, 1, 1)
    assert [(log["event"], log["kind"], log["fault"]) for log in logs] == [
        ("sweep_failed", "records", "the disk is full")
    ]


async def test_a_database_that_is_away_is_said_once_a_sweep(
    office: Office, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each kind, nor with a traceback, which says nothing that the sentence doesn't."""

    async def away(_work: object) -> int:
        raise DatabaseUnavailable("nobody listens there")

    for ask in ("read", "read_long", "transact"):
        monkeypatch.setattr(office.database, ask, away)
    for _ in range(2):
        with capture_logs() as logs:
            await sweeper.sweep()
        assert logs == [
            {"event": "sweep_failed", "log_level": "error", "kind": "inputs", "fault": "nobody listens there"}
        ]
