"""What an account did, day by day. Reads a bounded window of jobs and adds up in Python, the same on both databases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, bindparam, select

from rekontext.database import AccountId
from rekontext.database.tables import jobs
from rekontext.jobs.model import State

JOBS_MAX: Final = 200_000
"""Of a window with more, the newest so many are counted."""

_WINDOW: Final = (
    select(jobs.c.accepted_at, jobs.c.finished_at, jobs.c.state, jobs.c.price_micros, jobs.c.inference_s)
    .where(
        jobs.c.account_id == bindparam("account"),
        jobs.c.accepted_at >= bindparam("since", type_=jobs.c.accepted_at.type),
    )
    .order_by(jobs.c.number.desc())
    .limit(JOBS_MAX)
)


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of a list of seconds; by the nearest rank."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Some edits added up.

    Attributes:
        edits: all that were accepted; some may be unfinished.
        latency_s, inference_s: of completed edits, from accept to end and in the engine; None if there are none.
    """

    edits: int
    completed: int
    failed: int
    cancelled: int
    cost_micros: int
    latency_s: Percentiles | None
    inference_s: Percentiles | None


@dataclass(frozen=True, kw_only=True)
class _Edit:
    day: date
    state: State
    price_micros: int
    latency_s: float
    inference_s: float


def by_day(tx: Connection, account: AccountId, *, days: int, now: datetime) -> tuple[dict[date, Usage], Usage]:
    """The last `days` days (UTC, today included), the earliest first, and all of them together."""
    assert days > 0, f"usage of {days} days"
    first = (now - timedelta(days=days - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    edits = [
        _Edit(
            day=row.accepted_at.date(),
            state=State(row.state),
            price_micros=row.price_micros,
            latency_s=0.0 if row.finished_at is None else max(0.0, (row.finished_at - row.accepted_at).total_seconds()),
            inference_s=row.inference_s or 0.0,
        )
        for row in tx.execute(_WINDOW, {"account": account, "since": first})
    ]
    found: dict[date, list[_Edit]] = {first.date() + timedelta(days=number): [] for number in range(days)}
    for edit in edits:
        found[min(edit.day, now.date())].append(edit)  # none is of tomorrow, unless the clock was set back
    return {day: _add_up(its) for day, its in found.items()}, _add_up(edits)


def _add_up(edits: Sequence[_Edit]) -> Usage:
    completed = [edit for edit in edits if edit.state is State.COMPLETED]
    return Usage(
        edits=len(edits),
        completed=len(completed),
        failed=sum(edit.state is State.FAILED for edit in edits),
        cancelled=sum(edit.state is State.CANCELLED for edit in edits),
        cost_micros=sum(edit.price_micros for edit in completed),
        latency_s=_percentiles([edit.latency_s for edit in completed]),
        inference_s=_percentiles([edit.inference_s for edit in completed]),
    )


def _percentiles(seconds: list[float]) -> Percentiles | None:
    if not seconds:
        return None
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return ordered[math.ceil(share * len(ordered)) - 1]

    return Percentiles(p50=rank(0.5), p95=rank(0.95), p99=rank(0.99))
