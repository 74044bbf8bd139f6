"""A small service without HTTP and without an engine, for tests of jobs: one account, one life, one database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Unpack

from sqlalchemy import Connection

from rekontext.accounts import Balance, integrity, ledger, registry
from rekontext.accounts.registry import AccountLimits
from rekontext.database import AccountId, Database, JobId
from rekontext.jobs import (
    Accepted,
    Bounds,
    Idempotency,
    Job,
    JobLife,
    Lease,
    Order,
    Outbox,
    Output,
    Patience,
    TakenBack,
    queries,
)
from tests.fakes import FakeClock, FakeIds, FakeRandomness

ALICE = AccountId("acc_alice")
BOB = AccountId("acc_bob")
PRICE = 40_000
PHOTO_KEY = "photo"
OUTPUT = Output(key="outputs/x", content_type="image/png", file_name="x.png", bytes=3, width=1, height=1)
MADE: Mapping[str, object] = {"seed": 7, "steps": 4, "passes": 4, "acceleration": "none"}


@dataclass(kw_only=True)
class Office:
    """Calls `JobLife`, each time in a transaction of its own, with a clock that stands still."""

    database: Database
    clock: FakeClock = field(default_factory=FakeClock)
    ids: FakeIds = field(default_factory=FakeIds)
    bounds: Bounds = field(default_factory=Bounds)
    patience: Patience = field(default_factory=Patience)

    @property
    def life(self) -> JobLife:
        return JobLife(outbox=Outbox(ids=self.ids), bounds=self.bounds, patience=self.patience)

    def open_account(
        self, account: AccountId = ALICE, *, edits: int = 10, **limits: Unpack[AccountLimits]
    ) -> AccountId:
        """An account with credits for so many edits."""

        def work(tx: Connection) -> None:
            registry.create(tx, str(account), account=account, randomness=FakeRandomness(), now=self.clock.now())
            registry.set_limits(tx, account, **limits)
            if edits:
                ledger.add(tx, account, edits * PRICE, source="payment", actor="test", now=self.clock.now())

        self.database.transact_sync(work)
        return account

    def order(
        self,
        account: AccountId = ALICE,
        *,
        key: str | None = None,
        body: str = "body",
        price: int = PRICE,
        webhook_url: str | None = None,
        input_key: str = PHOTO_KEY,
    ) -> Order:
        job = JobId(self.ids())
        return Order(
            job=job,
            account=account,
            key=None,
            model="flux-kontext-dev",
            price_micros=price,
            parameters={"prompt": "make it night", "seed": 7},
            input_key=input_key,
            webhook_url=webhook_url,
            idempotency=None if key is None else Idempotency(key=key, body_digest=body),
        )

    def accept(self, order: Order | None = None) -> Accepted:
        chosen = order or self.order()
        return self.database.transact_sync(lambda tx: self.life.accept(tx, chosen, now=self.clock.now()))

    def claim(self, worker: str = "worker", limit: int = 1) -> list[Job]:
        return self.database.transact_sync(
            lambda tx: self.life.claim(tx, worker=worker, limit=limit, now=self.clock.now())
        )

    def start(self, order: Order | None = None) -> Job:
        """Accept one job and claim it."""
        accepted = self.accept(order).job
        [job] = self.claim()
        assert job.id == accepted.id
        return job

    def renew(self, *leases: Lease) -> dict[Lease, Job]:
        return self.database.transact_sync(lambda tx: self.life.renew(tx, leases, now=self.clock.now()))

    def complete(self, lease: Lease) -> Job:
        return self.database.transact_sync(
            lambda tx: self.life.complete(
                tx,
                lease,
                outputs=[OUTPUT],
                made=MADE,
                inference_s=2.5,
                timings={"denoise": 2.0},
                now=self.clock.now(),
            )
        )

    def fail(self, lease: Lease, *, retry: bool = True) -> Job:
        return self.database.transact_sync(
            lambda tx: self.life.fail(tx, lease, code="boom", error="It broke.", retry=retry, now=self.clock.now())
        )

    def stop(self, lease: Lease) -> Job:
        return self.database.transact_sync(lambda tx: self.life.stop(tx, lease, now=self.clock.now()))

    def hand_back(self, lease: Lease) -> Job:
        return self.database.transact_sync(lambda tx: self.life.hand_back(tx, lease, now=self.clock.now()))

    def cancel(self, job: JobId, account: AccountId | None = ALICE) -> Job:
        return self.database.transact_sync(lambda tx: self.life.cancel(tx, job, account=account, now=self.clock.now()))

    def recover(self, worker: str | None = None) -> list[Job]:
        return [taken.job for taken in self.take_back(worker)]

    def take_back(self, worker: str | None = None) -> list[TakenBack]:
        return self.database.transact_sync(lambda tx: self.life.recover(tx, now=self.clock.now(), worker=worker))

    def job(self, job: JobId) -> Job:
        return self.database.read_sync(lambda tx: queries.get(tx, job))

    def ahead(self, job: Job) -> int:
        return self.database.read_sync(lambda tx: queries.ahead(tx, job))

    def ahead_of_new(self, account: AccountId) -> int:
        return self.database.read_sync(lambda tx: queries.ahead_of_new(tx, account))

    def balance(self, account: AccountId = ALICE) -> Balance:
        return self.database.read_sync(lambda tx: ledger.balance(tx, account))

    def money(self, account: AccountId = ALICE) -> tuple[int, int, int]:
        """Available, held and spent, counted in edits."""
        balance = self.balance(account)
        start = self.clock.now().replace(year=2000)
        spent = self.database.read_sync(lambda tx: ledger.spent_since(tx, account, start))
        return balance.available_micros // PRICE, balance.held_micros // PRICE, spent // PRICE

    def check_books(self) -> None:
        faults = self.database.read_sync(integrity.faults)
        assert not faults, faults
