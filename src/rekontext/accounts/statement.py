"""What moved on an account, from the books: they are kept when requests are long gone.

What was held and given back is left out, since it is nobody's to pay; an edit counts when it ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

from sqlalchemy import Connection, bindparam, func, select

from rekontext.database.tables import AccountId, JobId, entries, transfers

Kind = Literal["payment", "grant", "correction", "capture"]

_MOVED: Final = (
    select(
        transfers.c.at,
        transfers.c.kind,
        transfers.c.amount_micros,
        (-func.coalesce(entries.c.amount_micros, 0)).label("of_paid_micros"),
        transfers.c.job_id,
        transfers.c.actor,
        transfers.c.note,
    )
    .outerjoin_from(transfers, entries, (entries.c.transfer_id == transfers.c.id) & (entries.c.book == "held_paid"))
    .where(
        transfers.c.account_id == bindparam("account"),
        transfers.c.at >= bindparam("since", type_=transfers.c.at.type),
        transfers.c.at < bindparam("until", type_=transfers.c.at.type),
        transfers.c.kind.in_(get_args(Kind)),
    )
    .order_by(transfers.c.id)
)


@dataclass(frozen=True, kw_only=True)
class Movement:
    """One transfer.

    Attributes:
        amount_micros: what was put on the account, or by a "capture" taken from it.
        of_paid_micros: how much of a capture was taken from paid credits, not from given ones; else 0.
        job_id: the request that a capture is for; else None.
        actor: who asked for it.
    """

    at: datetime
    kind: Kind
    amount_micros: int
    of_paid_micros: int
    job_id: JobId | None
    actor: str
    note: str


def between(tx: Connection, account: AccountId, since: datetime, until: datetime) -> Sequence[Movement]:
    """What moved from `since` on and before `until`, oldest first.

    Reads all that the account ever had, which takes seconds where that is much.
    """
    found = tx.execute(_MOVED, {"account": account, "since": since, "until": until})
    return [Movement(**row._mapping) for row in found]


def total_micros(movements: Sequence[Movement], kind: Kind) -> int:
    """Of those of one kind."""
    return sum(each.amount_micros for each in movements if each.kind == kind)
