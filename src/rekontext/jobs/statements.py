"""The statements about jobs, built once. Knows the table and nothing of when they are used.

A state in a condition is written out, not bound: only so can both planners see that a partial index fits, which a
test checks with EXPLAIN.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, bindparam, func, insert, literal_column, or_, select, tuple_, update

from rekontext.database.tables import jobs
from rekontext.jobs.model import State


def is_state(*states: State) -> ColumnElement[bool]:
    """`state IN (...)` with the states written out."""
    names: list[ColumnElement[str]] = [literal_column(f"'{state.value}'") for state in states]
    return jobs.c.state == names[0] if len(names) == 1 else jobs.c.state.in_(names)


BY_ID: Final = select(jobs).where(jobs.c.id == bindparam("job"))
ENDED: Final = select(jobs).where(jobs.c.id.in_(bindparam("jobs", expanding=True)), jobs.c.finished_at.is_not(None))
IN_FLIGHT: Final = (
    select(func.count())
    .select_from(jobs)
    .where(jobs.c.account_id == bindparam("account"), is_state(State.QUEUED, State.PROCESSING))
)
QUEUED: Final = select(func.count()).select_from(jobs).where(is_state(State.QUEUED))
AHEAD: Final = QUEUED.where(tuple_(jobs.c.turn, jobs.c.number) < tuple_(bindparam("turn"), bindparam("number")))
PLACES: Final = select(
    jobs.c.id, (func.row_number().over(order_by=(jobs.c.turn, jobs.c.number)) - 1).label("ahead")
).where(is_state(State.QUEUED))
FIRST_TURN: Final = select(func.min(jobs.c.turn)).where(is_state(State.QUEUED))
HIGHEST_TURN: Final = select(func.max(jobs.c.turn)).where(is_state(State.QUEUED))
# Of the job that waits longest. One that is tried again waits for something else.
OLDEST_TURN: Final = (
    select(jobs.c.turn).where(is_state(State.QUEUED), jobs.c.attempt == 0).order_by(jobs.c.number).limit(1)
)
# The first condition is for SQLite, which doesn't see that an index on it fits the second.
LAST_TURN: Final = select(func.max(jobs.c.turn)).where(
    jobs.c.account_id == bindparam("account"), is_state(State.QUEUED, State.PROCESSING), is_state(State.QUEUED)
)
QUEUE: Final = select(
    IN_FLIGHT.scalar_subquery().label("in_flight"),
    QUEUED.scalar_subquery().label("queued"),
    OLDEST_TURN.scalar_subquery().label("oldest_turn"),
    LAST_TURN.scalar_subquery().label("last_turn"),
    HIGHEST_TURN.scalar_subquery().label("highest_turn"),
)
NEXT: Final = (
    select(jobs.c.number)
    .where(
        is_state(State.QUEUED),
        jobs.c.account_id.not_in(bindparam("besides", expanding=True)),
        # No wait is as long as the second: then the clock was set back, and nobody should wait for it to catch up.
        or_(
            jobs.c.available_at <= bindparam("now", type_=jobs.c.available_at.type),
            jobs.c.available_at > bindparam("latest", type_=jobs.c.available_at.type),
        ),
    )
    .order_by(jobs.c.turn, jobs.c.number)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
# Materialized, for else a planner may run it more than once and pass the limit.
_CHOSEN: Final = NEXT.cte("chosen").prefix_with("MATERIALIZED")
EXPIRED: Final = (
    select(jobs)
    .where(is_state(State.PROCESSING), jobs.c.lease_until <= bindparam("now", type_=jobs.c.lease_until.type))
    .order_by(jobs.c.lease_until)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
RUNNING: Final = select(jobs).where(is_state(State.PROCESSING)).order_by(jobs.c.lease_until).limit(bindparam("limit"))
WAITING: Final = select(jobs).where(is_state(State.QUEUED)).order_by(jobs.c.number).limit(bindparam("limit"))
# Both conditions for SQLite, as in LAST_TURN.
_OF_ACCOUNT: Final = select(jobs).where(
    jobs.c.account_id == bindparam("account"), is_state(State.QUEUED, State.PROCESSING)
)
RUNNING_OF: Final = _OF_ACCOUNT.where(is_state(State.PROCESSING)).limit(bindparam("limit"))
# A sum, or SQLite would walk through the account's whole history to save the sorting.
WAITING_OF: Final = _OF_ACCOUNT.where(is_state(State.QUEUED)).order_by(jobs.c.number + 0).limit(bindparam("limit"))
COUNT_BY_STATE: Final = (
    select(jobs.c.state, func.count().label("how_many"))
    .where(is_state(State.QUEUED, State.PROCESSING))
    .group_by(jobs.c.state)
)

NEW: Final = insert(jobs).returning(jobs)
BY_ID_LOCKED: Final = BY_ID.with_for_update()
CLAIM: Final = (
    update(jobs)
    .where(jobs.c.number.in_(select(_CHOSEN.c.number)), is_state(State.QUEUED))
    .values(
        attempt=jobs.c.attempt + 1,
        **{name: bindparam(name) for name in ("state", "worker", "lease_until", "started_at")},
    )
    .returning(jobs)
)
COMPLETE: Final = (
    update(jobs)
    .where(
        jobs.c.id == bindparam("job"),
        jobs.c.attempt == bindparam("this_attempt"),
        is_state(State.PROCESSING),
        jobs.c.cancel_requested_at.is_(None),
    )
    .values(
        worker=None,
        lease_until=None,
        **{
            name: bindparam(name)
            for name in ("state", "finished_at", "files_until", "outputs", "made", "inference_s", "timings")
        },
    )
    .returning(jobs)
)
CHANGE: Final = update(jobs).where(jobs.c.number == bindparam("this")).returning(jobs)
# From when it could last be claimed: neither an earlier attempt nor the wait before the next is a wait for a worker.
OVERDUE: Final = (
    select(jobs)
    .where(is_state(State.QUEUED), jobs.c.available_at <= bindparam("since", type_=jobs.c.available_at.type))
    .order_by(jobs.c.number)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_OF_WORKER: Final = select(jobs).where(is_state(State.PROCESSING), jobs.c.worker == bindparam("worker"))
HELD_BY: Final = _OF_WORKER.order_by(jobs.c.number).limit(bindparam("limit")).with_for_update(skip_locked=True)
CLAIMED: Final = _OF_WORKER.where(jobs.c.started_at == bindparam("at", type_=jobs.c.started_at.type)).order_by(
    jobs.c.turn, jobs.c.number
)
