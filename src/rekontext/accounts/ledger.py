"""The books: double entry in whole micro-dollars.

Money moves in transfers, each written once with entries that add up to zero and never changed afterwards.
A customer has four books (free, paid, and what is held of each for unfinished edits), the house three (grants,
payments, revenue). One row per account keeps the customer's four sums; the database refuses a sum below zero.
A hold is settled exactly once, by a capture or by a release. Knows nothing of what an edit is.

Holds and additions lock the account's balance row before they look at it; a settlement changes the row without looking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

from sqlalchemy import (
    BigInteger,
    Connection,
    String,
    Update,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError

from rekontext.accounts.errors import AccountUnknown, CorrectionTooLarge, InsufficientCredits, SpendCapReached
from rekontext.accounts.money import AMOUNT_MICROS_MAX, format_usd
from rekontext.database.tables import AccountId, JobId, balances, entries, transfers

Book = Literal["free", "paid", "held_free", "held_paid", "grants", "payments", "revenue"]
Source = Literal["payment", "grant", "correction"]
Settlement = Literal["capture", "release"]

_CUSTOMER_BOOKS: Final = ("free", "paid", "held_free", "held_paid")
_BOOKS: Final[tuple[Book, ...]] = get_args(Book)
_TRANSFER_COLUMNS: Final = ("account_id", "kind", "job_id", "amount_micros", "at", "actor", "note")
_BOOKS_OF: Final[Mapping[Source, tuple[Book, Book]]] = {
    "payment": ("paid", "payments"),
    "grant": ("free", "grants"),
    "correction": ("paid", "payments"),
}
SERVICE: Final = "service"
"""The actor of transfers that no person asked for."""


class HoldNotOpen(AssertionError):
    """A job's hold was settled before, or never made: a fault in the program, never in the request."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What one account has, in micro-dollars."""

    free_micros: int
    paid_micros: int
    held_free_micros: int
    held_paid_micros: int

    @property
    def available_micros(self) -> int:
        """What can still be spent."""
        return self.free_micros + self.paid_micros

    @property
    def held_micros(self) -> int:
        """What is promised to unfinished edits."""
        return self.held_free_micros + self.held_paid_micros


BALANCE_COLUMNS: Final = tuple(balances.c[f"{book}_micros"] for book in _CUSTOMER_BOOKS)
_BALANCE: Final = select(*BALANCE_COLUMNS).where(balances.c.account_id == bindparam("account"))
_BALANCE_LOCKED: Final = _BALANCE.with_for_update()
_NEW_TRANSFER: Final = (
    insert(transfers).values({name: bindparam(f"new_{name}") for name in _TRANSFER_COLUMNS}).returning(transfers.c.id)
)
_NEW_ENTRIES: Final = insert(entries)
_CHANGE_BALANCE: Final = (
    update(balances)
    .where(balances.c.account_id == bindparam("account"))
    .where(*(balances.c[f"{book}_micros"] + bindparam(book) >= 0 for book in _CUSTOMER_BOOKS))
    .values({f"{book}_micros": balances.c[f"{book}_micros"] + bindparam(book) for book in _CUSTOMER_BOOKS})
)


def _post_at_once() -> Update:
    """The three statements above as one: two round trips fewer. SQLite has no such, and needs none."""
    transfer = _NEW_TRANSFER.cte("transfer")
    amounts = union_all(
        *(
            select(
                literal_column(f"'{book}'", String).label("book"),
                bindparam(book, type_=BigInteger).label("amount_micros"),
            )
            for book in _BOOKS
        )
    ).subquery("amounts")
    posted = insert(entries).from_select(
        ["transfer_id", "book", "amount_micros"],
        select(select(transfer.c.id).scalar_subquery(), amounts.c.book, amounts.c.amount_micros).where(
            amounts.c.amount_micros != 0
        ),
    )
    return _CHANGE_BALANCE.add_cte(transfer, posted.cte("posted"))


_POST_AT_ONCE: Final = _post_at_once()
HELD_FOR: Final = (
    select(entries.c.book, entries.c.amount_micros)
    .outerjoin_from(transfers, entries, transfers.c.id == entries.c.transfer_id)
    .where(transfers.c.job_id == bindparam("job"), transfers.c.kind == literal_column("'hold'"))
)
CAPTURED_SINCE: Final = select(func.coalesce(func.sum(transfers.c.amount_micros), 0)).where(
    transfers.c.account_id == bindparam("account"),
    transfers.c.kind == literal_column("'capture'"),
    transfers.c.at >= bindparam("since", type_=transfers.c.at.type),
)


def open_books(tx: Connection, account: AccountId) -> None:
    """Give a new account its balance row, all zero."""
    tx.execute(insert(balances).values(account_id=account, **{f"{book}_micros": 0 for book in _CUSTOMER_BOOKS}))


def balance(tx: Connection, account: AccountId) -> Balance:
    """What the account has.

    Raises:
        AccountUnknown: there is no such account.
    """
    return _balance(tx, account, lock=False)


def lock(tx: Connection, account: AccountId) -> Balance:
    """What the account has, and nobody else may change it before this transaction ends.

    Raises:
        AccountUnknown: there is no such account.
    """
    return _balance(tx, account, lock=True)


def check_amount(amount_micros: int, source: Source) -> None:
    """Return if so much can be put on an account, whatever it has.

    Raises:
        ValueError: the amount is out of range.
    """
    if not 0 < (abs(amount_micros) if source == "correction" else amount_micros) <= AMOUNT_MICROS_MAX:
        raise ValueError(
            f"{format_usd(amount_micros)} can't be added as a {source}; "
            "allowed: more than $0.00, or a correction of less"
        )


def add(
    tx: Connection, account: AccountId, amount_micros: int, *, source: Source, actor: str, now: datetime, note: str = ""
) -> Balance:
    """Put credits on an account: bought ("payment"), given ("grant") or set right ("correction", may be negative).

    A negative correction takes paid credits first, then free ones, each back to where they came from; what is held for
    unfinished edits stays.

    Raises:
        AccountUnknown: there is no such account.
        CorrectionTooLarge: the correction takes more than can be spent.
        ValueError: the amount is out of range.
    """
    check_amount(amount_micros, source)
    before = lock(tx, account)
    if before.available_micros + amount_micros < 0:
        raise CorrectionTooLarge(
            available_micros=before.available_micros, held_micros=before.held_micros, taken_micros=-amount_micros
        )
    own, house = _BOOKS_OF[source]
    rest = min(before.paid_micros + amount_micros, 0) if source == "correction" else 0
    changes: dict[Book, int] = {own: amount_micros - rest, house: rest - amount_micros}
    if rest:
        changes |= {"free": rest, "grants": -rest}
    _post(tx, account, source, changes, amount_micros, None, actor, note, now)
    return balance(tx, account)


def hold(
    tx: Connection,
    account: AccountId,
    amount_micros: int,
    *,
    job: JobId,
    now: datetime,
    cap_micros: int | None = None,
    locked: Balance | None = None,
) -> Balance:
    """Set the price of `job` aside, free credits first. At most once per job.

    Args:
        locked: the balance, if this transaction has locked it already.
        cap_micros: what the account may spend in a calendar month (UTC), None for no limit.

    Returns:
        What is left.

    Raises:
        InsufficientCredits: less is available than the price.
        SpendCapReached: the cap would be passed.
    """
    before = lock(tx, account) if locked is None else locked
    check_affordable(tx, account, before, amount_micros, now=now, cap_micros=cap_micros)
    free = min(before.free_micros, amount_micros)
    paid = amount_micros - free
    changes: dict[Book, int] = {"free": -free, "held_free": free, "paid": -paid, "held_paid": paid}
    _post(tx, account, "hold", changes, amount_micros, job, SERVICE, "", now)
    return Balance(
        free_micros=before.free_micros - free,
        paid_micros=before.paid_micros - paid,
        held_free_micros=before.held_free_micros + free,
        held_paid_micros=before.held_paid_micros + paid,
    )


def check_affordable(
    tx: Connection, account: AccountId, has: Balance, amount_micros: int, *, now: datetime, cap_micros: int | None
) -> None:
    """Return if an account that has this could have so much held.

    Raises:
        InsufficientCredits, SpendCapReached: as `hold`.
    """
    if has.available_micros < amount_micros:
        raise InsufficientCredits(available_micros=has.available_micros, price_micros=amount_micros)
    if cap_micros is not None:
        spent = spent_since(tx, account, month_start(now)) + has.held_micros
        if spent + amount_micros > cap_micros:
            raise SpendCapReached(cap_micros=cap_micros, spent_micros=spent, price_micros=amount_micros)


def settle(tx: Connection, account: AccountId, settlement: Settlement, *, job: JobId, now: datetime) -> int:
    """End the hold of `job`: "capture" makes it revenue, "release" gives it back to where it came from.

    Returns:
        The amount in micro-dollars.

    Raises:
        HoldNotOpen: the hold was never made or is settled already.
    """
    held: dict[str, int] = {row.book: row.amount_micros for row in tx.execute(HELD_FOR, {"job": job})}
    if not held:  # a free edit has one row without a book
        raise HoldNotOpen(f"nothing was ever held for job {job}")
    free, paid = held.get("held_free", 0), held.get("held_paid", 0)
    changes: dict[Book, int] = {"held_free": -free, "held_paid": -paid}
    changes |= {"revenue": free + paid} if settlement == "capture" else {"free": free, "paid": paid}
    try:
        _post(tx, account, settlement, changes, free + paid, job, SERVICE, "", now)
    except IntegrityError as error:
        raise HoldNotOpen(f"the hold of job {job} is settled already") from error
    return free + paid


def spent_since(tx: Connection, account: AccountId, since: datetime) -> int:
    """Micro-dollars captured from the account at `since` or later."""
    return int(tx.execute(CAPTURED_SINCE, {"account": account, "since": since}).scalar_one())


def month_start(now: datetime) -> datetime:
    """The first moment of the calendar month, in the timezone of `now`."""
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _balance(tx: Connection, account: AccountId, *, lock: bool) -> Balance:
    row = tx.execute(_BALANCE_LOCKED if lock else _BALANCE, {"account": account}).first()
    if row is None:
        raise AccountUnknown(f"there is no account {account!r}")
    return Balance(**row._mapping)


def _post(
    tx: Connection,
    account: AccountId,
    kind: str,
    changes: Mapping[Book, int],
    amount_micros: int,
    job: JobId | None,
    actor: str,
    note: str,
    now: datetime,
) -> None:
    assert sum(changes.values()) == 0, f"a {kind} that doesn't add up: {changes}"
    transfer = {
        "new_account_id": account,
        "new_kind": kind,
        "new_job_id": job,
        "new_amount_micros": amount_micros,
        "new_at": now,
        "new_actor": actor,
        "new_note": note,
    }
    if tx.dialect.name == "postgresql":
        amounts: dict[str, int] = {book: changes.get(book, 0) for book in _BOOKS}
        changed = tx.execute(_POST_AT_ONCE, {"account": account, **transfer, **amounts}).rowcount
    else:
        number = tx.execute(_NEW_TRANSFER, transfer).scalar_one()
        rows = [
            {"transfer_id": number, "book": book, "amount_micros": amount} for book, amount in changes.items() if amount
        ]
        if not rows:
            return
        tx.execute(_NEW_ENTRIES, rows)
        own = {book: changes.get(book, 0) for book in _CUSTOMER_BOOKS}
        changed = tx.execute(_CHANGE_BALANCE, {"account": account, **own}).rowcount
    assert changed == 1, f"the locked balance of {account} changed under a {kind} of {changes}"
