"""Keeps the past from piling up: pictures, records, keys and logs go when their time is over.

Objects go first (but for LoRAs) and their rows are changed afterwards, so a sweep that is cut short is simply done
again. What can't be removed is logged and left for a later sweep; it holds up neither other kinds nor what is behind
it. The ledger and the audit log are never swept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import Column, Connection, Delete, Row, Select, Update, bindparam, delete, exists, func, select, update

from rekontext.database import Database, DatabaseUnavailable
from rekontext.database.tables import accounts, api_keys, assets, idempotency_keys, jobs, loras, webhook_deliveries
from rekontext.jobs import workers
from rekontext.jobs.objects import (
    ASSETS_FOLDER,
    INPUTS_FOLDER,
    LORAS_FOLDER,
    MASKS_FOLDER,
    OUTPUTS_FOLDER,
    Objects,
    input_key,
    mask_key,
    output_folder,
)
from rekontext.pictures.copies import LocalCopies
from rekontext.sources import Clock

_log = structlog.get_logger(__name__)

BATCH: Final = 200
BATCHES_PER_SWEEP_MAX: Final = 50
FAILURES_PER_SWEEP_MAX: Final = 10
"""Of each kind: then the store may well be away, and each failure takes its time."""
ORPHAN_AGE_S: Final = 3600.0
"""What belongs to nobody after so long never will: accepting an order takes a small part of it."""

_finished = jobs.c.finished_at.type
INPUTS: Final = (
    select(jobs.c.number, jobs.c.id, jobs.c.input_key, jobs.c.mask_key)
    .where(
        jobs.c.finished_at.is_not(None),
        jobs.c.input_key.is_not(None),
        jobs.c.finished_at <= bindparam("before", type_=_finished),
    )
    .order_by(jobs.c.finished_at, jobs.c.number)
    .limit(bindparam("limit"))
    .offset(bindparam("skipped"))
)
FILES: Final = (
    select(jobs.c.number, jobs.c.id)
    .where(jobs.c.files_until <= bindparam("now", type_=_finished))
    .order_by(jobs.c.files_until, jobs.c.number)
    .limit(bindparam("limit"))
    .offset(bindparam("skipped"))
)
# Jobs whose pictures are gone already; the others wait for a later sweep.
RECORDS: Final = (
    select(jobs.c.number)
    .where(
        jobs.c.finished_at <= bindparam("before", type_=_finished),
        jobs.c.input_key.is_(None),
        jobs.c.files_until.is_(None),
    )
    .order_by(jobs.c.finished_at)
    .limit(bindparam("limit"))
)
ASSETS: Final = (
    select(assets.c.id, assets.c.object_key)
    .where(assets.c.created_at <= bindparam("before", type_=assets.c.created_at.type))
    .order_by(assets.c.created_at, assets.c.id)
    .limit(bindparam("limit"))
    .offset(bindparam("skipped"))
)
# Those that jobs name go after these.
CLOSED_KEYS: Final = (
    select(api_keys.c.id)
    .where(
        (api_keys.c.revoked_at <= bindparam("before", type_=api_keys.c.revoked_at.type))
        | (api_keys.c.expires_at <= bindparam("before", type_=api_keys.c.expires_at.type)),
        ~exists().where(jobs.c.key_id == api_keys.c.id),
    )
    .limit(bindparam("limit"))
)

_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_BEGAN: Final = select(func.min(accounts.c.created_at))


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long things are kept, in seconds; outputs have `Patience.outputs_s`.

    Attributes:
        inputs_s: input pictures and masks, after their job ended.
        records_s: jobs with their parameters and prompts, and the webhook log, after the end; closed API keys too.
        idempotency_s: idempotency keys, after their first use; those of unfinished jobs stay.
        assets_s: uploaded files; LoRAs that accounts brought, after their last use.
    """

    inputs_s: float = 3600.0
    records_s: float = 31 * 24 * 3600.0
    idempotency_s: float = 24 * 3600.0
    assets_s: float = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Swept:
    """How much went in one sweep."""

    inputs: int
    outputs: int
    records: int
    idempotency_keys: int
    deliveries: int
    api_keys: int
    assets: int
    loras: int
    copies: int
    orphans: int
    cut_off: int
    workers: int


class Sweeper:
    """Sweeps now and then. Use `run` in a task of its own and cancel it to end.

    Args:
        copies: of LoRAs, on this machine: they go with their objects.
    """

    def __init__(
        self,
        *,
        database: Database,
        objects: Objects,
        clock: Clock,
        retention: Retention,
        copies: LocalCopies | None = None,
        every_s: float = 60.0,
    ) -> None:
        self._database = database
        self._objects = objects
        self._clock = clock
        self._retention = retention
        self._copies = copies
        self._every_s = every_s
        self._skipped: Counter[str] = Counter()
        self._stuck: set[str] = set()
        self._unavailable: str | None = None
        self._many_seen_at = self._cut_off_seen_at = self._copies_seen_at = _NEVER

    async def run(self) -> None:
        """Work until cancelled. What fails is logged and tried again."""
        while True:
            swept = await self.sweep()
            if any(vars(swept).values()):
                _log.info("swept", **vars(swept))
            await asyncio.sleep(self._every_s)

    async def sweep(self) -> Swept:
        """Remove everything whose time is over, up to `BATCHES_PER_SWEEP_MAX` batches of each kind."""
        kept, self._unavailable = self._retention, None
        return Swept(
            inputs=await self._guarded("inputs", self._inputs),
            outputs=await self._guarded("outputs", self._outputs),
            records=await self._guarded("records", lambda: self._delete(_delete_records, kept.records_s)),
            idempotency_keys=await self._guarded(
                "idempotency_keys", lambda: self._delete(_delete_keys, kept.idempotency_s)
            ),
            deliveries=await self._guarded("deliveries", lambda: self._delete(_delete_deliveries, kept.records_s)),
            api_keys=await self._guarded("api_keys", self._api_keys),
            assets=await self._guarded("assets", self._assets),
            loras=await self._guarded("loras", self._loras),
            copies=await self._guarded("copies", self._copies_of_none),
            orphans=await self._guarded("orphans", self._orphans),
            cut_off=await self._guarded("cut_off", self._cut_off),
            workers=await self._guarded("workers", self._workers),
        )

    async def _guarded(self, kind: str, work: Callable[[], Awaitable[int]]) -> int:
        try:
            return await work()
        except DatabaseUnavailable as fault:  # said once a sweep, where it is the same for every kind
            if self._unavailable != (why := _why(fault)):
                _log.error("sweep_failed", kind=kind, fault=why)
            self._unavailable = why
            return 0
        except Exception as fault:  # whatever it is, the other kinds get their turn, and this one at the next sweep
            _log.exception("sweep_failed", kind=kind, fault=_why(fault))
            return 0

    async def _inputs(self) -> int:
        async def remove(row: Row[Any]) -> None:
            if row.input_key == input_key(row.id):  # no job has another; one that had wouldn't own it
                await self._objects.delete(row.input_key)
            if row.mask_key == mask_key(row.id):
                await self._objects.delete(row.mask_key)

        before = self._before(self._retention.inputs_s)
        clear = partial(_clear, input_key=None, mask_key=None)
        return await self._remove("inputs", INPUTS, {"before": before}, remove, clear)

    async def _outputs(self) -> int:
        async def remove(row: Row[Any]) -> None:
            async for found in self._objects.list(output_folder(row.id)):
                await self._objects.delete(found.key)

        now = self._clock.now()
        return await self._remove("outputs", FILES, {"now": now}, remove, partial(_clear, files_until=None))

    async def _assets(self) -> int:
        async def remove(row: Row[Any]) -> None:
            await self._objects.delete(row.object_key)

        before = self._before(self._retention.assets_s)
        return await self._remove("assets", ASSETS, {"before": before}, remove, _forget_assets)

    async def _loras(self) -> int:
        """Rows go first: an account may ask for one just now. An object that can't be removed is an orphan then."""
        before, removed, failures = self._before(self._retention.assets_s), 0, 0
        for _ in range(BATCHES_PER_SWEEP_MAX):
            gone = await self._database.transact(partial(_forget_loras, before))
            for key in gone:
                if failures < FAILURES_PER_SWEEP_MAX:
                    failures += not await self._succeeds("loras", key, self._objects.delete(key))
            removed += len(gone)
            if len(gone) < BATCH or failures == FAILURES_PER_SWEEP_MAX:
                break
        return removed

    async def _copies_of_none(self) -> int:
        """Once in `ORPHAN_AGE_S`: what removes an object on this machine removes its copy, too."""
        now, age = self._clock.now(), timedelta(seconds=ORPHAN_AGE_S)
        if self._copies is None or timedelta() <= now - self._copies_seen_at < age:
            return 0
        self._copies_seen_at = now
        return await self._copies.clear(LORAS_FOLDER)

    async def _remove(
        self,
        kind: str,
        due: Select[Any],
        values: dict[str, object],
        remove: Callable[[Row[Any]], Awaitable[None]],
        forget: Callable[[Sequence[Row[Any]]], Update | Delete],
    ) -> int:
        """Remove the objects of rows that are due, then change them as `forget` says. Returns of how many rows.

        What can't be removed stays the first that is due, and is skipped from then on until the end was reached.
        """
        removed = failures = 0
        for _ in range(BATCHES_PER_SWEEP_MAX):
            asked = {**values, "limit": BATCH, "skipped": self._skipped[kind]}
            rows = await self._database.read(partial(_rows, due, asked))
            gone = []
            for row in rows:
                if failures == FAILURES_PER_SWEEP_MAX:
                    break
                if await self._succeeds(kind, row.id, remove(row)):
                    gone.append(row)
                else:
                    failures += 1
                    self._skipped[kind] += 1
            if gone:
                await self._database.transact(partial(_changed, forget(gone)))
            removed += len(gone)
            if failures == FAILURES_PER_SWEEP_MAX:
                break
            if len(rows) < BATCH:
                self._skipped[kind] = 0
                break
        return removed

    async def _succeeds(self, kind: str, what: str, removal: Awaitable[None]) -> bool:
        try:
            await removal
        except Exception as fault:  # an object store fails in ways of its own
            _log.error("sweep_failed", kind=kind, what=what, fault=_why(fault))
            return False
        return True

    async def _orphans(self) -> int:
        """Remove pictures of orders and uploads that were never written down, or that a restored backup doesn't know.

        What is older than the first account isn't this database's: whoever starts on a new one by mistake keeps it.
        Uploads and outputs are many and orphans among them few, so these are looked through once in `ORPHAN_AGE_S`.
        Where orphans are many, as after an old backup, some go in each sweep.
        """
        now, age = self._clock.now(), timedelta(seconds=ORPHAN_AGE_S)
        began = await self._database.read(lambda tx: tx.execute(_BEGAN).scalar())
        if began is None:
            return 0
        is_seeing_many = not timedelta() <= now - self._many_seen_at < age
        looked_through = [(INPUTS_FOLDER, jobs.c.id), (MASKS_FOLDER, jobs.c.id)]
        if is_seeing_many:
            looked_through += [(ASSETS_FOLDER, assets.c.id), (LORAS_FOLDER, loras.c.id), (OUTPUTS_FOLDER, jobs.c.id)]
        orphans, most = list[str](), BATCH * BATCHES_PER_SWEEP_MAX
        for folder, ids in looked_through:
            orphans += await self._unknown(folder, ids, since=began, before=now - age, at_most=most - len(orphans))
            if len(orphans) == most:
                break
        removed = failures = 0
        for key in orphans:
            if await self._succeeds("orphans", key, self._objects.delete(key)):
                removed += 1
                continue
            failures += 1
            self._stuck.add(key)
            if failures == FAILURES_PER_SWEEP_MAX:
                return removed
        if len(orphans) == most:  # the next sweep goes on
            return removed
        self._stuck.clear()
        if is_seeing_many:  # to the last: else the next sweep looks again
            self._many_seen_at = now
        return removed

    async def _unknown(
        self, folder: str, ids: Column[str], *, since: datetime, before: datetime, at_most: int
    ) -> list[str]:
        """Keys of a folder, written from `since` until `before`, whose owners aren't among the ids of a table.

        Without those that couldn't be removed just before, and only until `at_most` are found.
        """
        unknown, batch = list[str](), list[str]()

        async def look() -> None:
            known = await self._database.read(partial(_known, ids, [_owner(key) for key in batch]))
            unknown.extend(key for key in batch if _owner(key) not in known)
            batch.clear()

        async for stored in self._objects.list(folder):
            if since <= stored.written_at <= before and stored.key not in self._stuck:
                batch.append(stored.key)
            if len(batch) == BATCH:
                await look()
                if len(unknown) >= at_most:
                    break
        await look()
        return unknown[:at_most]

    async def _cut_off(self) -> int:
        """Once in `ORPHAN_AGE_S` remove what kills cut off; where it is much, some of it in each sweep."""
        now, age = self._clock.now(), timedelta(seconds=ORPHAN_AGE_S)
        if timedelta() <= now - self._cut_off_seen_at < age:
            return 0
        self._cut_off_seen_at = now
        removed, most = 0, BATCH * BATCHES_PER_SWEEP_MAX
        for folder in (INPUTS_FOLDER, MASKS_FOLDER, ASSETS_FOLDER, LORAS_FOLDER, OUTPUTS_FOLDER):
            removed += await self._objects.clear_cut_off(folder, before=now - age, at_most=most - removed)
        if removed == most:
            self._cut_off_seen_at = _NEVER
        return removed

    async def _api_keys(self) -> int:
        # Not sooner than an order takes that came with the key while it was open.
        before = self._before(max(self._retention.records_s, ORPHAN_AGE_S))
        rows = await self._database.read_long(partial(_rows, CLOSED_KEYS, {"before": before, "limit": BATCH}))
        if not rows:
            return 0
        closed = delete(api_keys).where(api_keys.c.id.in_([row.id for row in rows]))
        return await self._database.transact(partial(_changed, closed))

    async def _workers(self) -> int:
        before = self._before(self._retention.records_s)
        return await self._database.transact(lambda tx: workers.forget(tx, before))

    async def _delete(self, statement: Callable[[Connection, datetime], int], kept_s: float) -> int:
        def work(tx: Connection) -> int:
            return statement(tx, before)

        before, total = self._before(kept_s), 0
        for _ in range(BATCHES_PER_SWEEP_MAX):
            count = await self._database.transact(work)
            total += count
            if count < BATCH:
                break
        return total

    def _before(self, kept_s: float) -> datetime:
        return self._clock.now() - timedelta(seconds=kept_s)


def _why(fault: Exception) -> str:
    """The operator's first question, in one line."""
    return str(fault).partition("\n")[0] or type(fault).__name__


def _rows(due: Select[Any], values: dict[str, object], tx: Connection) -> Sequence[Row[Any]]:
    return tx.execute(due, values).all()


def _changed(statement: Update | Delete, tx: Connection) -> int:
    return tx.execute(statement).rowcount


def _clear(rows: Sequence[Row[Any]], **values: None) -> Update:
    return update(jobs).where(jobs.c.number.in_([row.number for row in rows])).values(**values)


def _forget_assets(rows: Sequence[Row[Any]]) -> Delete:
    return delete(assets).where(assets.c.id.in_([row.id for row in rows]))


def _forget_loras(before: datetime, tx: Connection) -> list[str]:
    """Those that nobody used since. Returns the keys of their objects."""
    is_old = loras.c.used_at <= before
    old = select(loras.c.id).where(is_old).order_by(loras.c.used_at, loras.c.id).limit(BATCH)
    # Asked again of each: while its row was waited for, it may have been used.
    gone = delete(loras).where(loras.c.id.in_(old), is_old).returning(loras.c.object_key)
    return list(tx.execute(gone).scalars())


def _owner(key: str) -> str:
    """The id of the job or the upload that an object is of."""
    return key.split("/")[1]


def _known(ids: Column[str], asked: Sequence[str], tx: Connection) -> set[str]:
    return set(tx.execute(select(ids).where(ids.in_(asked))).scalars())


def _delete_records(tx: Connection, before: datetime) -> int:
    numbers = tx.execute(RECORDS, {"before": before, "limit": BATCH}).scalars().all()
    return tx.execute(delete(jobs).where(jobs.c.number.in_(numbers))).rowcount if numbers else 0


def _delete_keys(tx: Connection, before: datetime) -> int:
    is_unfinished = exists().where(jobs.c.id == idempotency_keys.c.job_id, jobs.c.finished_at.is_(None))
    # Whoever lost sight of a job that waits long asks again with its key: it must not become another one.
    old = select(idempotency_keys.c.job_id).where(idempotency_keys.c.created_at <= before, ~is_unfinished).limit(BATCH)
    return tx.execute(delete(idempotency_keys).where(idempotency_keys.c.job_id.in_(old))).rowcount


def _delete_deliveries(tx: Connection, before: datetime) -> int:
    is_old = webhook_deliveries.c.finished_at <= before
    old = select(webhook_deliveries.c.id).where(is_old).limit(BATCH)
    # Asked again of each: while its row was waited for, it may have been replayed.
    return tx.execute(delete(webhook_deliveries).where(webhook_deliveries.c.id.in_(old), is_old)).rowcount
