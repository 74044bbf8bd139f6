"""Whatever happens in whatever order, the books are right and each job ends once. On both databases."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, func, select, text

from rekontext.accounts import CorrectionTooLarge, InsufficientCredits, SpendCapReached, integrity, ledger
from rekontext.database import AccountId, Database, JobId
from rekontext.database.tables import entries, jobs, metadata, transfers
from rekontext.jobs import (
    Bounds,
    IdempotencyKeyReused,
    Job,
    Lease,
    LeaseLost,
    Patience,
    QueueFull,
    State,
    TooManyInFlight,
)
from tests.jobs.office import ALICE, BOB, Office

ACCOUNTS = (ALICE, BOB)
REFUSALS = (InsufficientCredits, SpendCapReached, TooManyInFlight, QueueFull, IdempotencyKeyReused)


def empty(tx: Connection) -> None:
    """Wipe every table. The triggers that keep history are put to sleep for it."""
    tables = [table.name for table in reversed(metadata.sorted_tables)]
    if tx.dialect.name == "postgresql":
        tx.execute(text("SET LOCAL session_replication_role = replica"))
        for table in tables:
            tx.execute(text(f"DELETE FROM {table}"))
        return
    triggers = tx.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
    for name, _ in triggers:
        tx.execute(text(f"DROP TRIGGER {name}"))
    for table in tables:
        tx.execute(text(f"DELETE FROM {table}"))
    for _, definition in triggers:
        tx.execute(text(definition))


class History(RuleBasedStateMachine):
    """Accounts, workers that die and come back, clients that repeat themselves: a random history of the service."""

    database: Database
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.database.transact_sync(empty)
        self.office = Office(
            database=self.database,
            bounds=Bounds(in_flight_max=4, queued_max=6),
            patience=Patience(lease_s=30, faults_max=2, backoff_s=5, queue_s_max=300),
        )
        for account in ACCOUNTS:
            self.office.open_account(account, edits=0, monthly_cap_micros=300)
        self.ended: dict[JobId, Job] = {}
        self.paid_in = 0
        for account in ACCOUNTS:
            self.add_credits(account, 100, free=True)
            self.add_credits(account, 100, free=False)

    @rule(account=st.sampled_from(ACCOUNTS), micros=st.integers(1, 100), free=st.booleans())
    def more_credits(self, account: AccountId, micros: int, free: bool) -> None:
        self.add_credits(account, micros, free=free)

    def add_credits(self, account: AccountId, micros: int, *, free: bool) -> None:
        source: ledger.Source = "grant" if free else "payment"
        now = self.office.clock.now()
        self.database.transact_sync(lambda tx: ledger.add(tx, account, micros, source=source, actor="test", now=now))
        self.paid_in += micros

    @rule(
        account=st.sampled_from(ACCOUNTS),
        price=st.integers(0, 60),
        key=st.none() | st.sampled_from("ab"),
        body=st.sampled_from("xy"),
        webhook=st.booleans(),
    )
    def submit(self, account: AccountId, price: int, key: str | None, body: str, webhook: bool) -> None:
        url = "https://example.com/hook" if webhook else None
        order = self.office.order(account, key=key, body=body, price=price, webhook_url=url)
        try:
            accepted = self.office.accept(order)
        except REFUSALS:
            return
        assert accepted.replayed == (accepted.job.id != order.job)

    @rule(target=leases, worker=st.sampled_from(["one", "two"]), limit=st.integers(1, 3))
    def claim(self, worker: str, limit: int) -> MultipleResults[Lease]:
        return multiple(*(job.lease for job in self.office.claim(worker, limit=limit)))

    @rule(lease=consumes(leases), ending=st.sampled_from(["complete", "fail", "refuse", "stop", "hand_back"]))
    def end(self, lease: Lease, ending: str) -> None:
        before = self.office.job(lease.job)
        mine = before.state is State.PROCESSING and before.attempt == lease.attempt
        try:
            match ending:
                case "complete":
                    self.office.complete(lease)
                case "fail":
                    self.office.fail(lease)
                case "refuse":
                    self.office.fail(lease, retry=False)
                case "stop":
                    self.office.stop(lease)
                case _:
                    self.office.hand_back(lease)
        except LeaseLost:
            assert not mine
            assert self.office.job(lease.job) == before
        else:
            assert mine

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        self.office.renew(lease)

    @rule(lease=leases)
    def cancel(self, lease: Lease) -> None:
        self.office.cancel(lease.job, None)

    @rule(seconds=st.sampled_from([1, 10, 60, 200]))
    def time_passes(self, seconds: int) -> None:
        self.office.clock.advance(seconds)

    @rule(target=leases)
    def workers_vanish_and_others_take_over(self) -> MultipleResults[Lease]:
        """The way to a stale lease; by single steps chance finds it too seldom."""
        for seconds in (60, 10):
            self.office.clock.advance(seconds)
            self.office.recover()
        return multiple(*(job.lease for job in self.office.claim("two", limit=3)))

    @rule(worker=st.none() | st.sampled_from(["one", "two"]))
    def recover(self, worker: str | None) -> None:
        self.office.recover(worker)

    @rule(account=st.sampled_from(ACCOUNTS), micros=st.integers(1, 50))
    def correct(self, account: AccountId, micros: int) -> None:
        now = self.office.clock.now()
        try:
            self.database.transact_sync(
                lambda tx: ledger.add(tx, account, -micros, source="correction", actor="test", now=now)
            )
        except CorrectionTooLarge:
            return
        self.paid_in -= micros

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.database.read_sync(integrity.faults) == []

    @invariant()
    def all_entries_add_up_to_zero_and_money_is_where_it_should_be(self) -> None:
        def sums(tx: Connection) -> dict[str, int]:
            query = select(entries.c.book, func.sum(entries.c.amount_micros).label("total")).group_by(entries.c.book)
            return {row.book: int(row.total) for row in tx.execute(query)}

        books = self.database.read_sync(sums)
        assert sum(books.values()) == 0
        assert -books.get("payments", 0) - books.get("grants", 0) == self.paid_in
        assert all(books.get(book, 0) >= 0 for book in ("free", "paid", "held_free", "held_paid", "revenue"))

    @invariant()
    def every_job_has_one_hold_and_is_settled_once_when_it_ends_as_it_ends(self) -> None:
        def look(tx: Connection) -> None:
            settled = {
                row.job_id: row.kind
                for row in tx.execute(select(transfers).where(transfers.c.kind.in_(("capture", "release"))))
            }
            held = [row.job_id for row in tx.execute(select(transfers).where(transfers.c.kind == "hold"))]
            states = {row.id: State(row.state) for row in tx.execute(select(jobs.c.id, jobs.c.state))}
            assert sorted(held) == sorted(states)
            assert set(settled) == {job for job, state in states.items() if state.is_terminal}
            for job, kind in settled.items():
                assert (kind == "capture") == (states[job] is State.COMPLETED)

        self.database.read_sync(look)

    @invariant()
    def what_has_ended_never_changes(self) -> None:
        for job, before in self.ended.items():
            assert self.office.job(job) == before

        def finished(tx: Connection) -> list[JobId]:
            return list(tx.execute(select(jobs.c.id).where(jobs.c.finished_at.is_not(None))).scalars())

        for job in self.database.read_sync(finished):
            self.ended.setdefault(job, self.office.job(job))


def test_no_history_breaks_the_books(database: Database) -> None:
    """Random interleavings of clients, workers, faults, cancels and time."""
    machine = type("HistoryHere", (History,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
