"""An account's edits added up by day."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

from rekontext.database import Database
from rekontext.database.tables import jobs
from rekontext.jobs import State, usage
from rekontext.jobs.usage import Percentiles, Usage
from tests.jobs.office import ALICE, BOB, PRICE, Office


def test_days_without_edits_are_there_and_empty(office: Office) -> None:
    """The earliest first, today last."""
    office.complete(office.start().lease)
    office.clock.advance(24 * 3600)
    office.accept()
    days, total = office.database.read_sync(lambda tx: usage.by_day(tx, ALICE, days=3, now=office.clock.now()))
    assert [(its.edits, its.completed, its.cost_micros) for its in days.values()] == [
        (0, 0, 0),
        (1, 1, PRICE),
        (1, 0, 0),
    ]
    assert (total.edits, total.completed, total.cost_micros) == (2, 1, PRICE)


def test_edits_of_tomorrow_count_as_today_s(office: Office) -> None:
    """The clock was set back over midnight."""
    office.complete(office.start().lease)
    office.clock.set_back(24 * 3600)
    days, _ = office.database.read_sync(lambda tx: usage.by_day(tx, ALICE, days=2, now=office.clock.now()))
    assert [its.edits for its in days.values()] == [0, 1]


def test_usage_is_that_of_the_edits_one_by_one(office: Office) -> None:
    """Days, counts, costs and percentiles are those of a plain count over every edit of the account."""
    chance = random.Random(7)
    now = office.clock.now()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    edges = [midnight, midnight - timedelta(microseconds=1), midnight - timedelta(days=3), now]
    moments = [*edges, *(now - timedelta(seconds=chance.uniform(0, 5 * 24 * 3600)) for _ in range(300))]
    made = [_row(number, accepted_at, chance) for number, accepted_at in enumerate(moments)]
    others = _row(len(made), now, chance) | {"account_id": office.open_account(BOB)}
    office.database.transact_sync(lambda tx: tx.execute(insert(jobs), [*made, others]) and None)
    days, total = office.database.read_sync(lambda tx: usage.by_day(tx, ALICE, days=4, now=now))
    first = midnight - timedelta(days=3)
    recent = [row for row in made if row["accepted_at"] >= first]
    for number, (day, its) in enumerate(days.items()):
        start = first + timedelta(days=number)
        assert day == start.date()
        assert its == _counted([row for row in recent if start <= row["accepted_at"] < start + timedelta(days=1)])
    assert total == _counted(recent)
    assert total.edits < len(made)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_both_databases_mean_the_same_edit_by_a_percentile(database: Database) -> None:
    """PostgreSQL multiplies its shares in floating point; the rank is that of whole numbers, however many edits."""
    asked = (
        f"SELECT edits, percentile_disc({usage._SHARES}) WITHIN GROUP (ORDER BY rank) "
        "FROM generate_series(1, 400) AS edits, generate_series(1, edits) AS rank GROUP BY edits"
    )
    found = database.read_sync(lambda tx: {row.edits: row[1] for row in tx.exec_driver_sql(asked)})
    assert found == {edits: usage._ranks(edits) for edits in range(1, 401)}


def _row(number: int, accepted_at: datetime, chance: random.Random) -> dict[str, Any]:
    state = chance.choice([State.COMPLETED, State.COMPLETED, State.FAILED, State.CANCELLED, State.QUEUED])
    is_completed, is_over = state is State.COMPLETED, state is not State.QUEUED
    return {
        "id": f"job-{number}",
        "account_id": ALICE,
        "model": "m",
        "state": state.value,
        "price_micros": number if is_over else 0,
        "parameters": {},
        "attempt": 1,
        "faults": 0,
        "accepted_at": accepted_at,
        "available_at": accepted_at,
        # Some ended before they began: the clock was set back.
        "finished_at": accepted_at + timedelta(seconds=chance.uniform(-1, 20)) if is_over else None,
        "outputs": [] if is_completed else None,
        "inference_s": chance.choice([None, chance.random()]) if is_completed else None,
        "error": "It broke." if state is State.FAILED else None,
    }


def _counted(rows: list[dict[str, Any]]) -> Usage:
    completed = [row for row in rows if row["state"] == "COMPLETED"]
    return Usage(
        edits=len(rows),
        completed=len(completed),
        failed=sum(row["state"] == "FAILED" for row in rows),
        cancelled=sum(row["state"] == "CANCELLED" for row in rows),
        cost_micros=sum(row["price_micros"] for row in completed),
        latency_s=_percentiles(
            [max(0.0, (row["finished_at"] - row["accepted_at"]).total_seconds()) for row in completed]
        ),
        inference_s=_percentiles([row["inference_s"] or 0.0 for row in completed]),
    )


def _percentiles(seconds: list[float]) -> Percentiles | None:
    if not seconds:
        return None
    p50, p95, p99 = (sorted(seconds)[math.ceil(share * len(seconds)) - 1] for share in (0.5, 0.95, 0.99))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def test_every_edit_counts_however_many(tmp_path: Path) -> None:
    """Also where they are more than a process would read."""
    office = Office(database=Database.open(f"sqlite:///{tmp_path / 'jobs.db'}", synchronous="NORMAL"))
    office.open_account()
    office.complete(office.start().lease)
    copies = text(
        "INSERT INTO jobs (id, account_id, model, state, price_micros, parameters, attempt, faults,"
        " accepted_at, available_at, finished_at, outputs) "
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 200001) "
        "SELECT 'copy-' || n, account_id, model, state, 1, parameters, attempt, faults,"
        " accepted_at, available_at, finished_at, outputs FROM jobs, numbers"
    )
    office.database.transact_sync(lambda tx: tx.execute(copies) and None)
    _, total = office.database.read_sync(lambda tx: usage.by_day(tx, ALICE, days=1, now=office.clock.now()))
    assert (total.completed, total.cost_micros) == (200_002, PRICE + 200_001)
    office.database.close()
