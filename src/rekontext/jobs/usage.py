"""What an account did, day by day. Added up and ranked by the database, over all its jobs of those days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
    tuple_,
)

from rekontext.database import AccountId
from rekontext.database.instant import microseconds
from rekontext.database.tables import jobs
from rekontext.jobs.model import State

_EPOCH: Final = date(1970, 1, 1)
_DAY: Final = 24 * 3600 * 1_000_000


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


_accepted: Final = microseconds(jobs.c.accepted_at)
_took: Final = microseconds(jobs.c.finished_at) - _accepted
_today: Final = bindparam("today", type_=jobs.c.number.type)
# None is of tomorrow, nor ended before it was accepted, unless the clock was set back.
_edits: Final = (
    select(
        case((_accepted // _DAY > _today, _today), else_=_accepted // _DAY).label("day"),
        jobs.c.state,
        jobs.c.price_micros,
        (case((_took < 0, 0), else_=_took) / 1e6).label("latency_s"),
        func.coalesce(jobs.c.inference_s, 0.0).label("inference_s"),
    )
    .where(
        jobs.c.account_id == bindparam("account"),
        jobs.c.accepted_at >= bindparam("since", type_=jobs.c.accepted_at.type),
    )
    .subquery("edits")
)
_COUNTS: Final = select(
    _edits.c.day, _edits.c.state, func.count().label("edits"), func.sum(_edits.c.price_micros).label("price_micros")
).group_by(_edits.c.day, _edits.c.state)


def _at_ranks(seconds: ColumnElement[float]) -> Select[Any]:
    """The completed edits that have one of the wanted ranks, in their day or in all."""
    ranked = (
        select(
            _edits.c.day,
            seconds.label("seconds"),
            func.row_number().over(partition_by=_edits.c.day, order_by=seconds).label("rank_of_day"),
            func.row_number().over(order_by=seconds).label("rank"),
        )
        .where(_edits.c.state == State.COMPLETED.value)
        .subquery("ranked")
    )
    # How many there are is known; for the database to count them along would take longer than to rank them.
    return select(ranked).where(
        tuple_(ranked.c.day, ranked.c.rank_of_day).in_(bindparam("ranks_of_days", expanding=True))
        | ranked.c.rank.in_(bindparam("ranks", expanding=True))
    )


_LATENCY: Final = _at_ranks(_edits.c.latency_s)
_INFERENCE: Final = _at_ranks(_edits.c.inference_s)

# PostgreSQL finds the same ranks itself, in half the time; the day that is NULL is all of them.
_SHARES: Final[ColumnElement[Any]] = literal_column("ARRAY[0.5, 0.95, 0.99]")
_BY_SHARES: Final = (
    select(
        _edits.c.day,
        func.percentile_disc(_SHARES).within_group(cast(_edits.c.latency_s, Double)).label("latency_s"),
        func.percentile_disc(_SHARES).within_group(cast(_edits.c.inference_s, Double)).label("inference_s"),
    )
    .where(_edits.c.state == State.COMPLETED.value)
    .group_by(func.grouping_sets(tuple_(_edits.c.day), tuple_()))
)


def by_day(tx: Connection, account: AccountId, *, days: int, now: datetime) -> tuple[dict[date, Usage], Usage]:
    """The last `days` days (UTC, today included), the earliest first, and all of them together.

    It looks through the account's whole history: for `Database.read_long`.
    """
    assert days > 0, f"usage of {days} days"
    first = (now - timedelta(days=days - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    values = {"account": account, "since": first, "today": (now.date() - _EPOCH).days}
    counts = {first.date() + timedelta(days=number): Counter[State]() for number in range(days)}
    costs = Counter[date]()
    for row in tx.execute(_COUNTS, values):
        day = _EPOCH + timedelta(days=row.day)
        counts[day][State(row.state)] = row.edits
        if row.state == State.COMPLETED:
            costs[day] = int(row.price_micros)
    completed = {day: its[State.COMPLETED] for day, its in counts.items() if its[State.COMPLETED]}
    if not completed:
        latency = inference = dict[date | None, Percentiles]()
    elif tx.dialect.name == "postgresql":
        latency, inference = _by_shares(tx, values)
    else:
        latency, inference = (_by_ranks(tx, each, values, completed) for each in (_LATENCY, _INFERENCE))
    of_days = {
        day: _usage(its, cost_micros=costs[day], latency_s=latency.get(day), inference_s=inference.get(day))
        for day, its in counts.items()
    }
    of_all = _usage(
        sum(counts.values(), Counter[State]()),
        cost_micros=costs.total(),
        latency_s=latency.get(None),
        inference_s=inference.get(None),
    )
    return of_days, of_all


def _usage(
    counted: Counter[State], *, cost_micros: int, latency_s: Percentiles | None, inference_s: Percentiles | None
) -> Usage:
    return Usage(
        edits=counted.total(),
        completed=counted[State.COMPLETED],
        failed=counted[State.FAILED],
        cancelled=counted[State.CANCELLED],
        cost_micros=cost_micros,
        latency_s=latency_s,
        inference_s=inference_s,
    )


def _by_shares(
    tx: Connection, values: Mapping[str, object]
) -> tuple[dict[date | None, Percentiles], dict[date | None, Percentiles]]:
    """Latency and inference, of each day that has completed edits, and under None of all of them."""
    rows = tx.execute(_BY_SHARES, values).all()
    days = [None if row.day is None else _EPOCH + timedelta(days=row.day) for row in rows]
    return (
        {day: _percentiles(row.latency_s) for day, row in zip(days, rows, strict=True)},
        {day: _percentiles(row.inference_s) for day, row in zip(days, rows, strict=True)},
    )


def _by_ranks(
    tx: Connection, at_ranks: Select[Any], values: Mapping[str, object], completed: Mapping[date, int]
) -> dict[date | None, Percentiles]:
    """As `_by_shares`, of one of them; SQLite has no percentiles."""
    of_days = {(day - _EPOCH).days: _ranks(edits) for day, edits in completed.items()}
    of_all = _ranks(sum(completed.values()))
    wanted = {
        "ranks_of_days": [(day, rank) for day, ranks in of_days.items() for rank in ranks],
        "ranks": of_all,
    }
    rows = tx.execute(at_ranks, {**values, **wanted}).all()
    at_day = {(row.day, row.rank_of_day): row.seconds for row in rows}
    at = {row.rank: row.seconds for row in rows}
    found: dict[date | None, Percentiles] = {None: _percentiles([at[rank] for rank in of_all])}
    for day, ranks in of_days.items():
        found[_EPOCH + timedelta(days=day)] = _percentiles([at_day[day, rank] for rank in ranks])
    return found


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    p50, p95, p99 = seconds
    return Percentiles(p50=p50, p95=p95, p99=p99)


def _ranks(edits: int) -> list[int]:
    """The nearest ranks of the percentiles among so many edits, from 1."""
    return [(edits * percent + 99) // 100 for percent in (50, 95, 99)]
