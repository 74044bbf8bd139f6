"""The books: money is moved, never made; a hold is settled once; nobody goes below zero."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from rekontext.accounts import (
    AccountUnknown,
    Balance,
    CorrectionTooLarge,
    InsufficientCredits,
    SpendCapReached,
    integrity,
    ledger,
)
from rekontext.accounts.ledger import HoldNotOpen, Source
from rekontext.database import AccountId, Database, JobId
from rekontext.database.tables import entries, transfers
from tests.fakes import FakeClock

JOB = JobId("job-1")


class Books:
    """One account's ledger, each call a transaction of its own."""

    def __init__(self, database: Database, account: AccountId, clock: FakeClock) -> None:
        self.database, self.account, self.clock = database, account, clock

    def add(self, micros: int, source: Source = "payment") -> None:
        self.database.transact_sync(
            lambda tx: ledger.add(tx, self.account, micros, source=source, actor="test", now=self.clock.now())
        )

    def hold(self, micros: int, job: JobId = JOB, *, cap: int | None = None) -> Balance:
        return self.database.transact_sync(
            lambda tx: ledger.hold(tx, self.account, micros, job=job, now=self.clock.now(), cap_micros=cap)
        )

    def settle(self, how: ledger.Settlement, job: JobId = JOB) -> int:
        return self.database.transact_sync(
            lambda tx: ledger.settle(tx, self.account, how, job=job, now=self.clock.now())
        )

    @property
    def balance(self) -> Balance:
        return self.database.read_sync(lambda tx: ledger.balance(tx, self.account))


@pytest.fixture
def books(database: Database, alice: AccountId, clock: FakeClock) -> Books:
    return Books(database, alice, clock)


def numbers(balance: Balance) -> tuple[int, int, int, int]:
    return balance.free_micros, balance.paid_micros, balance.held_free_micros, balance.held_paid_micros


def test_a_hold_takes_free_credits_first(books: Books) -> None:
    """Gifts are used up before money."""
    books.add(30, "grant")
    books.add(100)
    assert numbers(books.hold(40)) == (0, 90, 30, 10)
    assert numbers(books.balance) == (0, 90, 30, 10)


def test_a_capture_is_revenue_and_a_release_gives_back_what_was_held(books: Books) -> None:
    """To the very books it came from."""
    books.add(30, "grant")
    books.add(100)
    books.hold(40)
    assert books.settle("release") == 40
    assert numbers(books.balance) == (30, 100, 0, 0)
    books.hold(40, JobId("job-2"))
    assert books.settle("capture", JobId("job-2")) == 40
    assert numbers(books.balance) == (0, 90, 0, 0)
    revenue = select(func.sum(entries.c.amount_micros)).where(entries.c.book == "revenue")
    assert books.database.read_sync(lambda tx: tx.execute(revenue).scalar_one()) == 40


@pytest.mark.parametrize("first", ["capture", "release"])
@pytest.mark.parametrize("second", ["capture", "release"])
def test_a_hold_is_settled_once(books: Books, first: ledger.Settlement, second: ledger.Settlement) -> None:
    """The second settlement is refused and moves nothing."""
    books.add(100)
    books.hold(40)
    books.settle(first)
    before = books.balance
    with pytest.raises(HoldNotOpen):
        books.settle(second)
    assert books.balance == before


def test_the_database_itself_refuses_a_second_settlement(books: Books) -> None:
    """Even to code that forgot to look."""
    books.add(100)
    books.hold(40)
    books.settle("capture")
    again = text(
        "INSERT INTO ledger_transfers (account_id, kind, job_id, amount_micros, at, actor, note) "
        "SELECT account_id, 'release', job_id, amount_micros, at, actor, note FROM ledger_transfers WHERE kind = 'hold'"
    )
    with pytest.raises(IntegrityError):
        books.database.transact_sync(lambda tx: tx.execute(again) and None)


def test_the_database_itself_refuses_a_negative_balance(books: Books) -> None:
    """Even to code that forgot to look."""
    broken = text("UPDATE balances SET paid_micros = paid_micros - 1")
    with pytest.raises(DBAPIError, match="paid_not_negative"):
        books.database.transact_sync(lambda tx: tx.execute(broken) and None)


def test_a_job_is_held_for_once(books: Books) -> None:
    """A second hold for it is a fault of ours that the database catches."""
    books.add(100)
    books.hold(40)
    with pytest.raises(IntegrityError):
        books.hold(40)
    assert numbers(books.balance) == (0, 60, 0, 40)


def test_too_little_is_refused_with_both_numbers(books: Books) -> None:
    """The caller reads what it costs and what there is."""
    books.add(39_999)
    with pytest.raises(InsufficientCredits, match=r"costs \$0\.04 and the available balance is \$0\.039999"):
        books.hold(40_000)
    assert numbers(books.balance) == (0, 39_999, 0, 0)


def test_a_free_edit_is_held_and_captured_like_any_other(books: Books) -> None:
    """A price of zero needs no credits but still ends once."""
    books.hold(0)
    assert books.settle("capture") == 0
    with pytest.raises(HoldNotOpen):
        books.settle("release")


def test_the_monthly_cap_counts_what_is_spent_and_what_is_held(books: Books) -> None:
    """And begins anew with each calendar month."""
    books.clock = FakeClock(datetime(2026, 3, 31, 23, 59, 0, tzinfo=UTC))
    books.add(1_000)
    books.hold(40, JobId("a"), cap=100)
    books.settle("capture", JobId("a"))
    books.hold(40, JobId("b"), cap=100)
    with pytest.raises(SpendCapReached, match=r"\$0\.00008 are spent or held this month") as refusal:
        books.hold(21, JobId("c"), cap=100)
    assert (refusal.value.spent_micros, refusal.value.cap_micros) == (80, 100)
    books.hold(20, JobId("d"), cap=100)
    books.settle("release", JobId("d"))
    books.clock.advance(60)
    books.hold(60, JobId("e"), cap=100)  # April; only what is still held counts
    with pytest.raises(SpendCapReached):
        books.hold(1, JobId("f"), cap=100)


def test_a_correction_may_take_back_but_not_below_zero(books: Books) -> None:
    """A wrong payment is set right by a new transfer."""
    books.add(100)
    books.add(-30, "correction")
    assert books.balance.paid_micros == 70
    with pytest.raises(CorrectionTooLarge, match=r"can't take \$0\.000071 away: \$0\.00007 can be spent\.$"):
        books.add(-71, "correction")
    assert books.balance.paid_micros == 70


def test_a_correction_takes_back_a_grant_too(books: Books) -> None:
    """Paid credits first, each book's part back to where it came from; what is held stays held."""
    books.add(50)
    books.add(1_000, "grant")
    books.hold(40)
    books.add(-200, "correction")
    assert numbers(books.balance) == (810, 0, 40, 0)
    with pytest.raises(CorrectionTooLarge, match=r"\$0\.00081 can be spent \(\$0\.00004 more are held for unfinished"):
        books.add(-811, "correction")
    books.add(-810, "correction")
    books.add(7, "correction")
    assert numbers(books.balance) == (0, 7, 40, 0)
    books.settle("release")
    assert numbers(books.balance) == (40, 7, 0, 0)
    house = select(entries.c.book, func.sum(entries.c.amount_micros)).group_by(entries.c.book)
    booked = books.database.read_sync(lambda tx: {book: int(total) for book, total in tx.execute(house)})
    assert (booked["grants"], booked["payments"]) == (-40, -7)


@pytest.mark.parametrize(
    ("micros", "source"), [(0, "payment"), (-1, "grant"), (10**15 + 1, "payment"), (0, "correction")]
)
def test_an_amount_that_makes_no_sense_is_refused(books: Books, micros: int, source: Source) -> None:
    """Nothing, less than nothing, or more than there is."""
    with pytest.raises(ValueError, match="can't be added"):
        books.add(micros, source)


def test_an_account_that_does_not_exist_has_no_books(books: Books) -> None:
    """It can't be given credits by mistake."""
    books.account = AccountId("acc_nobody")
    for act in (lambda: books.balance, lambda: books.add(1), lambda: books.hold(1)):
        with pytest.raises(AccountUnknown):
            act()


@pytest.mark.anyio
async def test_a_hundred_concurrent_holds_on_a_balance_for_ten_make_ten(books: Books) -> None:
    """The rest are refused, and not a micro-dollar is lost."""
    books.add(10 * 40)

    async def hold(number: int) -> bool:
        try:
            await books.database.transact(
                lambda tx: ledger.hold(tx, books.account, 40, job=JobId(f"job-{number}"), now=books.clock.now())
            )
        except InsufficientCredits:
            return False
        return True

    granted = await asyncio.gather(*(hold(number) for number in range(100)))
    assert sum(granted) == 10
    assert numbers(books.balance) == (0, 0, 0, 400)


@pytest.mark.anyio
async def test_twenty_concurrent_settlements_of_one_hold_settle_it_once(books: Books) -> None:
    """Whoever comes first decides."""
    books.add(100)
    books.hold(40)

    async def settle(how: ledger.Settlement) -> bool:
        try:
            await books.database.transact(
                lambda tx: ledger.settle(tx, books.account, how, job=JOB, now=books.clock.now())
            )
        except HoldNotOpen:
            return False
        return True

    settled = await asyncio.gather(*(settle("capture" if n % 2 else "release") for n in range(20)))
    assert sum(settled) == 1
    count = select(func.count()).select_from(transfers).where(transfers.c.kind.in_(("capture", "release")))
    assert books.database.read_sync(lambda tx: tx.execute(count).scalar_one()) == 1


def test_the_audit_finds_every_kind_of_wrong_book(books: Books) -> None:
    """A lopsided transfer, a balance that its entries don't explain, a hold without a job."""
    books.add(100)
    assert books.database.read_sync(integrity.faults) == []
    books.hold(40)
    assert [fault.split(" holds ")[-1] for fault in books.database.read_sync(integrity.faults)] == [
        "40, its unfinished jobs cost 0"
    ]
    books.settle("release")
    books.database.transact_sync(lambda tx: tx.execute(text("UPDATE balances SET paid_micros = 101")) and None)
    assert any("shows 101 in paid" in fault for fault in books.database.read_sync(integrity.faults))
    books.database.transact_sync(
        lambda tx: tx.execute(text("INSERT INTO ledger_entries VALUES (1, 'revenue', 7)")) and None
    )
    assert any("add up to 7, not 0" in fault for fault in books.database.read_sync(integrity.faults))
