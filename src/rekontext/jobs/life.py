"""The life of a job: QUEUED -> PROCESSING -> COMPLETED | FAILED | CANCELLED.

Each function here is one transition, to be run in one transaction together with its money and its messages
(docs/states.md draws them). A worker holds a job by a lease with an attempt number; whoever comes with an older
number is refused, so a job ends once even if two workers ran it. Knows no event loop, no engine and no HTTP.

The order of locks is the same everywhere: job rows, then balance rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Connection, tuple_, update

from rekontext.accounts import Balance, keys, ledger, registry
from rekontext.database import AccountId, JobId
from rekontext.database.tables import jobs
from rekontext.jobs import idempotency, queries, statements
from rekontext.jobs.errors import JobUnknown, LeaseLost, QueueFull, TooManyInFlight
from rekontext.jobs.model import Bounds, Job, Lease, Order, Output, Patience, State
from rekontext.jobs.outbox import Outbox
from rekontext.jobs.queries import from_row
from rekontext.jobs.statements import is_state

RECOVERED_PER_TRANSACTION: Final = 100


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The answer to an order.

    Attributes:
        replayed: an earlier request with the same idempotency key made this job; nothing was held again.
        ahead: waiting jobs before this one, None for one that doesn't wait any more.
    """

    job: Job
    balance: Balance
    replayed: bool
    ahead: int | None


def replay(tx: Connection, job: JobId, *, account: AccountId) -> Accepted:
    """The answer to an order whose idempotency key has made this job before."""
    earlier = queries.get(tx, job, account=account)
    return Accepted(job=earlier, balance=ledger.balance(tx, account), replayed=True, ahead=queries.place(tx, earlier))


@dataclass(frozen=True, kw_only=True)
class TakenBack:
    """A job that was taken from a worker that is gone, or that waited too long.

    Attributes:
        worker: the one that had it, which its row tells no more; None for one that waited.
        code: why, whatever became of the job.
    """

    job: Job
    worker: str | None
    code: Literal["worker_lost", "queue_timeout"]


@dataclass(frozen=True, kw_only=True)
class JobLife:
    """The transitions, with the rules they go by. Has no state of its own."""

    outbox: Outbox
    bounds: Bounds = field(default_factory=Bounds)
    patience: Patience = field(default_factory=Patience)

    def accept(self, tx: Connection, order: Order, *, now: datetime) -> Accepted:
        """Take an order: claim its idempotency key, hold its price, write its job. All of it or nothing.

        Raises:
            IdempotencyKeyReused: the key came with another body before.
            TooManyInFlight, QueueFull: a bound is reached.
            InsufficientCredits, SpendCapReached: the account can't pay.
            KeyRefused: its key was revoked or expired meanwhile.
            AccountUnknown: there is no such account.
        """
        if order.idempotency is not None:
            earlier = idempotency.claim(tx, order.account, order.idempotency, job=order.job, now=now)
            if earlier is not None:
                return replay(tx, earlier, account=order.account)
        # The lock makes accepts of one account come one after the other, which makes the count below exact.
        account, balance = registry.lock(tx, order.account)
        if order.key is not None:
            keys.check_open(tx, order.key, now=now)
        queue = self._queue(tx, account)
        balance = ledger.hold(
            tx,
            order.account,
            order.price_micros,
            job=order.job,
            now=now,
            cap_micros=account.monthly_cap_micros,
            locked=balance,
        )
        row = tx.execute(
            statements.NEW,
            {
                "id": order.job,
                "account_id": order.account,
                "key_id": order.key,
                "model": order.model,
                "state": State.QUEUED.value,
                "turn": queue.turn,
                "price_micros": order.price_micros,
                "parameters": dict(order.parameters),
                "input_key": order.input_key,
                "mask_key": order.mask_key,
                "webhook_url": order.webhook_url,
                "attempt": 0,
                "faults": 0,
                "accepted_at": now,
                "available_at": now,
            },
        )
        job = from_row(row.mappings().one())
        ahead = queue.queued if queue.is_last else queries.ahead(tx, job)
        return Accepted(job=job, balance=balance, replayed=False, ahead=ahead)

    def check(self, tx: Connection, account: AccountId, price_micros: int, *, now: datetime) -> None:
        """Return if an order of this price would be taken as things stand. Locks and holds nothing.

        Raises:
            TooManyInFlight, QueueFull, InsufficientCredits, SpendCapReached, AccountUnknown: as `accept`.
        """
        found = registry.get(tx, account)
        self._queue(tx, found)
        has, cap_micros = ledger.balance(tx, account), found.monthly_cap_micros
        ledger.check_affordable(tx, account, has, price_micros, now=now, cap_micros=cap_micros)

    def _queue(self, tx: Connection, account: registry.Account) -> queries.Queue:
        """What waits, if one more may.

        Raises:
            TooManyInFlight, QueueFull: a bound is reached.
        """
        limit = self.bounds.in_flight_max if account.in_flight_max is None else account.in_flight_max
        queue = queries.queue(tx, account.id)
        if queue.in_flight >= limit:
            raise TooManyInFlight(in_flight=queue.in_flight, limit=limit)
        if queue.queued >= self.bounds.queued_max:
            raise QueueFull(limit=self.bounds.queued_max)
        return queue

    def claim(
        self, tx: Connection, *, worker: str, limit: int, now: datetime, besides: Collection[AccountId] = ()
    ) -> list[Job]:
        """Give the next waiting jobs to `worker`, each under a lease with a new attempt number.

        Accounts take turns, and each one's jobs go in the order in which they came.

        Args:
            limit: how many at most.
            besides: accounts whose jobs go on waiting.
        """
        claimed = tx.execute(
            statements.CLAIM,
            {
                "now": now,
                "latest": now + timedelta(seconds=self.patience.backoff_s_max),
                "limit": limit,
                "besides": list(besides),
                "state": State.PROCESSING.value,
                "worker": worker,
                "lease_until": self._lease_end(now),
                "started_at": now,
            },
        )
        return sorted((from_row(row) for row in claimed.mappings()), key=lambda job: (job.turn, job.number))

    def renew(self, tx: Connection, leases: Sequence[Lease], *, now: datetime) -> dict[Lease, Job]:
        """Say that these attempts are alive.

        Returns:
            The leases that go on, with their jobs: see `cancel_requested_at`. One that is missing is lost.
        """
        if not leases:
            return {}
        renewed = tx.execute(
            update(jobs)
            .where(
                is_state(State.PROCESSING),
                tuple_(jobs.c.id, jobs.c.attempt).in_([(lease.job, lease.attempt) for lease in leases]),
            )
            .values(lease_until=self._lease_end(now))
            .returning(jobs)
        )
        return {job.lease: job for job in map(from_row, renewed.mappings())}

    def complete(
        self,
        tx: Connection,
        lease: Lease,
        *,
        outputs: Sequence[Output],
        made: Mapping[str, object],
        inference_s: float,
        timings: Mapping[str, float],
        now: datetime,
    ) -> Job:
        """End the job well and capture its price. Where a cancel was promised, that is kept instead.

        Raises:
            LeaseLost: the job is another attempt's, or ended.
        """
        row = (
            tx.execute(
                statements.COMPLETE,
                {
                    "job": lease.job,
                    "this_attempt": lease.attempt,
                    "state": State.COMPLETED.value,
                    "finished_at": now,
                    "files_until": now + timedelta(seconds=self.patience.outputs_s),
                    "outputs": [asdict(output) for output in outputs],
                    "made": dict(made),
                    "inference_s": inference_s,
                    "timings": dict(timings),
                },
            )
            .mappings()
            .first()
        )
        if row is None:
            job = self._held(tx, lease)
            assert job.cancel_requested_at is not None, f"job {job.id} was neither completed nor cancelled nor lost"
            return self._end_free(tx, job, State.CANCELLED, now=now)
        return self._settled(tx, from_row(row), "capture", now=now)

    def fail(self, tx: Connection, lease: Lease, *, code: str, error: str, retry: bool, now: datetime) -> Job:
        """End an attempt badly.

        Args:
            retry: the fault was ours, so another attempt is made while `Patience.faults_max` allows; False for bad
                input, which would fail again.

        Returns:
            The job: QUEUED again, or FAILED (or CANCELLED if that was promised) with the credits given back.

        Raises:
            LeaseLost: the job is another attempt's, or ended.
        """
        return self._fault(tx, self._held(tx, lease), code=code, error=error, retry=retry, now=now)

    def stop(self, tx: Connection, lease: Lease, *, now: datetime) -> Job:
        """End an attempt whose cancel was asked for, and give the credits back.

        Raises:
            LeaseLost: the job is another attempt's, or ended.
        """
        return self._end_free(tx, self._held(tx, lease), State.CANCELLED, now=now)

    def hand_back(self, tx: Connection, lease: Lease, *, now: datetime) -> Job:
        """Put the job back into the queue because its worker goes away in good order. No fault is counted.

        Raises:
            LeaseLost: the job is another attempt's, or ended.
        """
        job = self._held(tx, lease)
        if job.cancel_requested_at is not None:
            return self._end_free(tx, job, State.CANCELLED, now=now)
        return self._requeue(tx, job, available_at=now)

    def cancel(self, tx: Connection, job: JobId, *, account: AccountId | None, now: datetime) -> Job:
        """Cancel a waiting job at once, or ask the worker of a running one to stop. Free from this moment on.

        A job that ended stays as it is; so does one whose cancel was asked for before.

        Raises:
            JobUnknown: the account has no such job.
        """
        row = tx.execute(statements.BY_ID_LOCKED, {"job": job}).mappings().first()
        if row is None or (account is not None and row["account_id"] != account):
            raise JobUnknown(job)
        found = from_row(row)
        if found.state is State.QUEUED:
            return self._end_free(tx, found, State.CANCELLED, now=now)
        if found.state is State.PROCESSING and found.cancel_requested_at is None:
            return self._change(tx, found, cancel_requested_at=now)
        return found

    def recover(self, tx: Connection, *, now: datetime, worker: str | None = None) -> list[TakenBack]:
        """Take jobs back from workers that are gone, and give up on jobs that waited too long.

        Args:
            worker: also take back all that this one holds, whatever its leases say: it has just started anew.

        Returns:
            The jobs that changed, at most `RECOVERED_PER_TRANSACTION` of each kind. There may be more if it is so many.
        """
        limit = RECOVERED_PER_TRANSACTION
        lost = tx.execute(statements.EXPIRED, {"now": now, "limit": limit}).mappings().all()
        if worker is not None:
            lost = [*lost, *tx.execute(statements.HELD_BY, {"worker": worker, "limit": limit}).mappings()]
        since = now - timedelta(seconds=self.patience.queue_s_max)
        overdue = tx.execute(statements.OVERDUE, {"since": since, "limit": limit}).mappings().all()
        found = {row["number"]: from_row(row) for row in (*lost, *overdue)}
        # Balances are locked in one order by everyone who takes several.
        return [self._take_back(tx, job, now=now) for job in sorted(found.values(), key=lambda job: job.account)]

    def _take_back(self, tx: Connection, job: Job, *, now: datetime) -> TakenBack:
        """Try a job again whose worker is gone, or give up on one that waits."""
        if job.state is State.PROCESSING:
            error = _worker_lost(job.faults + 1)
            changed = self._fault(tx, job, code="worker_lost", error=error, retry=True, now=now)
            return TakenBack(job=changed, worker=job.worker, code="worker_lost")
        error = f"No worker was free within {self.patience.queue_s_max:.0f} s."
        changed = self._end_free(tx, job, State.FAILED, now=now, error_code="queue_timeout", error=error)
        return TakenBack(job=changed, worker=None, code="queue_timeout")

    def _held(self, tx: Connection, lease: Lease) -> Job:
        """The job that `lease` is for, locked."""
        row = tx.execute(statements.BY_ID_LOCKED, {"job": lease.job}).mappings().first()
        if row is None or row["state"] != State.PROCESSING or row["attempt"] != lease.attempt:
            now_is = "gone" if row is None else f"{row['state']} in attempt {row['attempt']}"
            raise LeaseLost(f"attempt {lease.attempt} of job {lease.job} lost its lease: the job is {now_is}")
        return from_row(row)

    def _fault(self, tx: Connection, job: Job, *, code: str, error: str, retry: bool, now: datetime) -> Job:
        if job.cancel_requested_at is not None:
            return self._end_free(tx, job, State.CANCELLED, now=now)
        if not retry:
            return self._end_free(tx, job, State.FAILED, now=now, error_code=code, error=error)
        faults = job.faults + 1
        if faults >= self.patience.faults_max:
            return self._end_free(tx, job, State.FAILED, now=now, error_code=code, error=error, faults=faults)
        wait = timedelta(seconds=min(self.patience.backoff_s * 2 ** (faults - 1), self.patience.backoff_s_max))
        return self._requeue(tx, job, available_at=now + wait, faults=faults)

    def _requeue(self, tx: Connection, job: Job, **values: Any) -> Job:
        # Its own turn is long past, or that of a queue which is gone: it is next.
        turn = int(tx.execute(statements.FIRST_TURN).scalar_one() or 0)
        return self._change(tx, job, state=State.QUEUED.value, turn=turn, worker=None, lease_until=None, **values)

    def _end_free(self, tx: Connection, job: Job, state: State, *, now: datetime, **values: Any) -> Job:
        """FAILED or CANCELLED, and free."""
        ended = self._change(
            tx,
            job,
            state=state.value,
            worker=None,
            lease_until=None,
            finished_at=now,
            files_until=now,  # what its attempts left behind nobody waits for
            **values,
        )
        return self._settled(tx, ended, "release", now=now)

    def _settled(self, tx: Connection, ended: Job, settlement: ledger.Settlement, *, now: datetime) -> Job:
        """The money and the news of a job that has just ended."""
        ledger.settle(tx, ended.account, settlement, job=ended.id, now=now)
        self.outbox.write(tx, ended, now=now)
        return ended

    def _change(self, tx: Connection, job: Job, **values: Any) -> Job:
        """Write `values` into a job that this transaction has locked."""
        unchanged = (jobs.c.state == job.state.value, jobs.c.attempt == job.attempt)
        row = tx.execute(statements.CHANGE.where(*unchanged).values(**values), {"this": job.number}).mappings().one()
        return from_row(row)

    def _lease_end(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self.patience.lease_s)


def _worker_lost(tries: int) -> str:
    """What the caller is told when the last of so many tries ended with its worker; those before had faults of ours."""
    return "The worker stopped before the edit was done" + ("." if tries == 1 else f", in the last of {tries} tries.")
