"""The audit of the books: reads everything, changes nothing, and says what doesn't add up.

It reads the whole ledger: `rekontext doctor --books` runs it when asked to, the tests after every random history.
"""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import Connection, func, select

from rekontext.database.tables import balances, entries, jobs, transfers

_CUSTOMER_BOOKS = ("free", "paid", "held_free", "held_paid")


def faults(tx: Connection) -> list[str]:
    """One sentence per broken rule; empty when the books are right."""
    found: list[str] = []
    lopsided = tx.execute(
        select(entries.c.transfer_id, func.sum(entries.c.amount_micros).label("total"))
        .group_by(entries.c.transfer_id)
        .having(func.sum(entries.c.amount_micros) != 0)
    )
    found += [f"the entries of transfer {row.transfer_id} add up to {row.total}, not 0" for row in lopsided]

    summed: dict[str, dict[str, int]] = defaultdict(dict)
    for row in tx.execute(
        select(transfers.c.account_id, entries.c.book, func.sum(entries.c.amount_micros).label("total"))
        .join(entries, entries.c.transfer_id == transfers.c.id)
        .group_by(transfers.c.account_id, entries.c.book)
    ):
        summed[row.account_id][row.book] = int(row.total)
    promised = {
        row.account_id: int(row.total)
        for row in tx.execute(
            select(jobs.c.account_id, func.sum(jobs.c.price_micros).label("total"))
            .where(jobs.c.finished_at.is_(None))
            .group_by(jobs.c.account_id)
        )
    }
    for row in tx.execute(select(balances)):
        kept = row._mapping
        for book in _CUSTOMER_BOOKS:
            entered = summed[row.account_id].get(book, 0)
            if kept[f"{book}_micros"] != entered:
                found.append(
                    f"account {row.account_id} shows {kept[f'{book}_micros']} in {book}, its entries say {entered}"
                )
        held = row.held_free_micros + row.held_paid_micros
        if held != promised.get(row.account_id, 0):
            found.append(
                f"account {row.account_id} holds {held}, its unfinished jobs cost {promised.get(row.account_id, 0)}"
            )
    return found
