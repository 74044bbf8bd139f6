"""Keeps the past from piling up: pictures, records, keys and logs go when their time is over.

Objects go first and their rows are changed afterwards, so a sweep that is cut short is simply done again. The ledger
and the audit log are never swept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection, bindparam, delete, select, update

from rekontext.database import Database
from rekontext.database.tables import assets, idempotency_keys, jobs, webhook_deliveries
from rekontext.jobs.objects import INPUTS_FOLDER, Objects, input_key, output_folder
from rekontext.sources import Clock

_log = structlog.get_logger(__name__)

BATCH: Final = 200
BATCHES_PER_SWEEP_MAX: Final = 50

_finished = jobs.c.finished_at.type
INPUTS: Final = (
    select(jobs.c.number, jobs.c.id, jobs.c.input_key)
    .where(
        jobs.c.finished_at.is_not(None),
        jobs.c.input_key.is_not(None),
        jobs.c.finished_at <= bindparam("before", type_=_finished),
    )
    .order_by(jobs.c.finished_at)
    .limit(bindparam("limit"))
)
FILES: Final = (
    select(jobs.c.number, jobs.c.id)
    .where(jobs.c.files_until <= bindparam("now", type_=_finished))
    .order_by(jobs.c.files_until)
    .limit(bindparam("limit"))
)
RECORDS: Final = (
    select(jobs.c.number)
    .where(jobs.c.finished_at <= bindparam("before", type_=_finished))
    .order_by(jobs.c.finished_at)
    .limit(bindparam("limit"))
)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long things are kept, in seconds; outputs have `Patience.outputs_s`.

    Attributes:
        inputs_s: input pictures, after their job ended.
        records_s: jobs with their parameters and prompts, and the webhook log, after the end.
        idempotency_s: idempotency keys, after their first use.
        assets_s: uploaded files.
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
    assets: int
    orphans: int


class Sweeper:
    """Sweeps now and then. Use `run` in a task of its own and cancel it to end."""

    def __init__(
        self, *, database: Database, objects: Objects, clock: Clock, retention: Retention, every_s: float = 60.0
    ) -> None:
        self._database = database
        self._objects = objects
        self._clock = clock
        self._retention = retention
        self._every_s = every_s

    async def run(self) -> None:
        """Work until cancelled. A sweep that fails is logged and tried again."""
        while True:
            try:
                swept = await self.sweep()
                if any(vars(swept).values()):
                    _log.info("swept", **vars(swept))
            except Exception as fault:  # an object store fails in ways of its own; the next sweep begins again
                _log.exception("sweep_failed", fault=type(fault).__name__)
            await asyncio.sleep(self._every_s)

    async def sweep(self) -> Swept:
        """Remove everything whose time is over, up to `BATCHES_PER_SWEEP_MAX` batches of each kind."""
        kept = self._retention
        return Swept(
            inputs=await self._batches(self._inputs),
            outputs=await self._batches(self._outputs),
            records=await self._batches(lambda: self._delete(_delete_records, kept.records_s)),
            idempotency_keys=await self._batches(lambda: self._delete(_delete_keys, kept.idempotency_s)),
            deliveries=await self._batches(lambda: self._delete(_delete_deliveries, kept.records_s)),
            assets=await self._batches(self._assets),
            orphans=await self._orphans(),
        )

    async def _batches(self, batch: Callable[[], Awaitable[int]]) -> int:
        total = 0
        for _ in range(BATCHES_PER_SWEEP_MAX):
            count = await batch()
            total += count
            if count < BATCH:
                break
        return total

    async def _inputs(self) -> int:
        before = self._before(self._retention.inputs_s)
        rows = await self._database.read(lambda tx: tx.execute(INPUTS, {"before": before, "limit": BATCH}).all())
        for row in rows:
            if row.input_key == input_key(row.id):  # else it belongs to someone else: an uploaded asset, say
                await self._objects.delete(row.input_key)
        await self._clear([row.number for row in rows], input_key=None)
        return len(rows)

    async def _outputs(self) -> int:
        now = self._clock.now()
        rows = await self._database.read(lambda tx: tx.execute(FILES, {"now": now, "limit": BATCH}).all())
        for row in rows:
            async for found in self._objects.list(output_folder(row.id)):
                await self._objects.delete(found.key)
        await self._clear([row.number for row in rows], files_until=None)
        return len(rows)

    async def _assets(self) -> int:
        before = self._before(self._retention.assets_s)
        query = select(assets.c.id, assets.c.object_key).where(assets.c.created_at <= before).limit(BATCH)
        rows = await self._database.read(lambda tx: tx.execute(query).all())
        for row in rows:
            await self._objects.delete(row.object_key)
        if rows:
            gone = delete(assets).where(assets.c.id.in_([row.id for row in rows]))
            await self._database.transact(lambda tx: tx.execute(gone).rowcount)
        return len(rows)

    async def _orphans(self) -> int:
        """Remove input pictures whose order was never accepted: the process died in between."""
        old = self._before(self._retention.inputs_s)
        found = [stored async for stored in self._objects.list(INPUTS_FOLDER) if stored.written_at <= old]
        removed = 0
        for start in range(0, len(found), BATCH):
            keys = [stored.key for stored in found[start : start + BATCH]]
            batch = {key.removeprefix(f"{INPUTS_FOLDER}/"): key for key in keys}
            known = await self._database.read(partial(_known, ids=list(batch)))
            for job, key in batch.items():
                if job not in known:
                    await self._objects.delete(key)
                    removed += 1
        return removed

    async def _delete(self, statement: Callable[[Connection, datetime], int], kept_s: float) -> int:
        before = self._before(kept_s)
        return await self._database.transact(lambda tx: statement(tx, before))

    async def _clear(self, numbers: Sequence[int], **values: None) -> None:
        if numbers:
            cleared = update(jobs).where(jobs.c.number.in_(numbers)).values(**values)
            await self._database.transact(lambda tx: tx.execute(cleared).rowcount)

    def _before(self, kept_s: float) -> datetime:
        return self._clock.now() - timedelta(seconds=kept_s)


def _known(tx: Connection, *, ids: Sequence[str]) -> set[str]:
    return set(tx.execute(select(jobs.c.id).where(jobs.c.id.in_(ids))).scalars())


def _delete_records(tx: Connection, before: datetime) -> int:
    """Jobs whose pictures are gone already; the others wait for the next sweep."""
    numbers = tx.execute(RECORDS, {"before": before, "limit": BATCH}).scalars().all()
    swept = (jobs.c.number.in_(numbers), jobs.c.input_key.is_(None), jobs.c.files_until.is_(None))
    return tx.execute(delete(jobs).where(*swept)).rowcount if numbers else 0


def _delete_keys(tx: Connection, before: datetime) -> int:
    old = select(idempotency_keys.c.job_id).where(idempotency_keys.c.created_at <= before).limit(BATCH)
    return tx.execute(delete(idempotency_keys).where(idempotency_keys.c.job_id.in_(old))).rowcount


def _delete_deliveries(tx: Connection, before: datetime) -> int:
    old = select(webhook_deliveries.c.id).where(webhook_deliveries.c.finished_at <= before).limit(BATCH)
    return tx.execute(delete(webhook_deliveries).where(webhook_deliveries.c.id.in_(old))).rowcount
