"""The questions asked about jobs, and how a row becomes a `Job`. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, func, or_, select

from rekontext.database import AccountId, JobId
from rekontext.database.tables import jobs
from rekontext.jobs import statements
from rekontext.jobs.errors import JobUnknown
from rekontext.jobs.model import Job, Output, State
from rekontext.jobs.statements import is_state

PAGE_MAX: Final = 100


def from_row(row: RowMapping) -> Job:
    """The job in a row of the whole table."""
    values = dict(row)
    outputs = values.pop("outputs")
    return Job(
        account=values.pop("account_id"),
        key=values.pop("key_id"),
        state=State(values.pop("state")),
        outputs=None if outputs is None else tuple(Output(**output) for output in outputs),
        **values,
    )


def get(tx: Connection, job: JobId, *, account: AccountId | None = None) -> Job:
    """The job with this id.

    Args:
        account: if given, the job must be this account's; another's is as good as none.

    Raises:
        JobUnknown: there is none.
    """
    row = tx.execute(statements.BY_ID, {"job": job}).mappings().first()
    if row is None or (account is not None and row["account_id"] != account):
        raise JobUnknown(job)
    return from_row(row)


def ended(tx: Connection, jobs: Sequence[JobId]) -> list[Job]:
    """Those of these jobs that have ended."""
    return [from_row(row) for row in tx.execute(statements.ENDED, {"jobs": jobs}).mappings()]


def claimed(tx: Connection, *, worker: str, at: datetime) -> list[Job]:
    """Those that a worker claimed at this moment and that still run in that attempt."""
    return [from_row(row) for row in tx.execute(statements.CLAIMED, {"worker": worker, "at": at}).mappings()]


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What waits, as an account finds it.

    Attributes:
        in_flight: unfinished jobs of this account.
        queued: jobs of all accounts that wait.
        turn: of this account's next job: one behind its last one that waits, but no lower than that of the job which
            waits longest, so that no job is passed by for ever.
        is_last: whether that job comes after all that wait.
    """

    in_flight: int
    queued: int
    turn: int
    is_last: bool


def queue(tx: Connection, account: AccountId) -> Queue:
    """What waits, as the account finds it."""
    row = tx.execute(statements.QUEUE, {"account": account}).one()
    oldest = 0 if row.oldest_turn is None else int(row.oldest_turn)
    behind_own = 0 if row.last_turn is None else int(row.last_turn) + 1
    turn = max(oldest, behind_own)
    is_last = row.highest_turn is None or turn >= row.highest_turn
    return Queue(in_flight=int(row.in_flight), queued=int(row.queued), turn=turn, is_last=is_last)


def ahead(tx: Connection, job: Job) -> int:
    """How many waiting jobs come before this one. 0: it is next."""
    return int(tx.execute(statements.AHEAD, {"turn": job.turn, "number": job.number}).scalar_one())


def place(tx: Connection, job: Job) -> int | None:
    """The same of a job in any state; None for one that doesn't wait."""
    return ahead(tx, job) if job.state is State.QUEUED else None


def places(tx: Connection) -> dict[JobId, int]:
    """The same of all that wait."""
    return {JobId(row.id): int(row.ahead) for row in tx.execute(statements.PLACES)}


def ahead_of_new(tx: Connection, account: AccountId) -> int:
    """The same of a job that the account would submit now."""
    found = queue(tx, account)
    if found.is_last:
        return found.queued
    return int(tx.execute(statements.AHEAD, {"turn": found.turn + 1, "number": 0}).scalar_one())


def unfinished_by_state(tx: Connection) -> dict[State, int]:
    """How many jobs wait and how many run, for the metrics."""
    counted = {State(row.state): int(row.how_many) for row in tx.execute(statements.COUNT_BY_STATE)}
    return {state: counted.get(state, 0) for state in (State.QUEUED, State.PROCESSING)}


def running(tx: Connection, account: AccountId | None, *, most: int) -> list[Job]:
    """Jobs in work, of this account or, for None, of all."""
    return _unfinished(tx, statements.RUNNING if account is None else statements.RUNNING_OF, account, most)


def waiting(tx: Connection, account: AccountId | None, *, most: int) -> list[Job]:
    """Jobs that wait, in the order in which they came, of this account or, for None, of all."""
    return _unfinished(tx, statements.WAITING if account is None else statements.WAITING_OF, account, most)


def _unfinished(tx: Connection, statement: Select[Any], account: AccountId | None, most: int) -> list[Job]:
    of = {} if account is None else {"account": account}
    return [from_row(row) for row in tx.execute(statement, {"limit": most, **of}).mappings()]


def newest(tx: Connection, account: AccountId, *, before: JobId | None = None, most: int) -> list[Job]:
    """An account's jobs, those that were accepted last first.

    Args:
        before: only those accepted before this one of them.

    Raises:
        JobUnknown: the account has no such job.
    """
    query = select(jobs).where(jobs.c.account_id == account).order_by(jobs.c.number.desc()).limit(most)
    if before is not None:
        query = query.where(jobs.c.number < get(tx, before, account=account).number)
    return [from_row(row) for row in tx.execute(query).mappings()]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some jobs, and how many there are in all."""

    jobs: Sequence[Job]
    total: int


def history(
    tx: Connection,
    account: AccountId | None,
    *,
    states: Sequence[State] = (),
    model_contains: str | None = None,
    prompt_contains: str | None = None,
    or_is: JobId | None = None,
    accepted_from: datetime | None = None,
    accepted_before: datetime | None = None,
    sort_by: Literal["accepted_at", "model", "price"] = "accepted_at",
    descending: bool = True,
    page: int = 1,
    per_page: int = 20,
) -> Page:
    """One page of an account's jobs, or of everyone's.

    Args:
        model_contains, prompt_contains: to be found in it; capitals or not is the same, on both databases.
        or_is: the job with this id is found whatever its prompt.

    Raises:
        ValueError: the page or its size is out of range.
    """
    if page < 1:
        raise ValueError(f"page is {page}; allowed: 1 or more")
    if not 1 <= per_page <= PAGE_MAX:
        raise ValueError(f"per_page is {per_page}; allowed: 1 to {PAGE_MAX}")
    conditions: list[ColumnElement[bool]] = []
    if account is not None:
        conditions.append(jobs.c.account_id == account)
    if states:
        conditions.append(is_state(*states))
    if model_contains:
        conditions.append(jobs.c.model.icontains(model_contains, autoescape=True))
    if prompt_contains:
        has_words = jobs.c.parameters["prompt"].as_string().icontains(prompt_contains, autoescape=True)
        conditions.append(has_words if or_is is None else or_(has_words, jobs.c.id == or_is))
    if accepted_from is not None:
        conditions.append(jobs.c.accepted_at >= accepted_from)
    if accepted_before is not None:
        conditions.append(jobs.c.accepted_at < accepted_before)
    columns: dict[str, ColumnElement[object]] = {
        "accepted_at": jobs.c.number,  # jobs are numbered as they are accepted
        "model": jobs.c.model,
        "price": jobs.c.price_micros,
    }
    order = [columns[sort_by], jobs.c.number]
    rows = tx.execute(
        select(jobs)
        .where(*conditions)
        .order_by(*(column.desc() if descending else column for column in order))
        .limit(per_page)
        .offset((page - 1) * per_page)
    ).mappings()
    total = tx.execute(select(func.count()).select_from(jobs).where(*conditions)).scalar_one()
    return Page(jobs=[from_row(row) for row in rows], total=int(total))
