"""The values that jobs are made of: order, job, lease, output. Knows no database and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from rekontext.database import AccountId, JobId, KeyId


class State(StrEnum):
    """Where a job stands. The first two are left again, the other three never."""

    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """A client's promise that two requests are one.

    Attributes:
        key: the client's own, unique within its account.
        body_digest: hex SHA-256 of what the request asks for; a second request must have the same.
    """

    key: str
    body_digest: str


@dataclass(frozen=True, kw_only=True)
class Order:
    """An edit that was checked and priced, about to be accepted.

    Attributes:
        job: a new id, drawn by the caller.
        parameters: JSON values from which the edit can be run again: prompt, seed, steps, ...
        input_key: where the input picture lies in the object store.
        mask_key: where its mask does, if it has one.
        webhook_url: told of the end, besides the account's own endpoints.
    """

    job: JobId
    account: AccountId
    key: KeyId | None
    model: str
    price_micros: int
    parameters: Mapping[str, object]
    input_key: str
    mask_key: str | None = None
    webhook_url: str | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """One picture that a job made, as it lies in the object store."""

    key: str
    content_type: str
    file_name: str
    bytes: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to finish a job, held by one worker until it runs out or another attempt begins."""

    job: JobId
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the truth.

    Attributes:
        number: grows with each accepted job; the order of the queue among those of one turn.
        turn: one higher with each job of the same account that waits, so that accounts take turns.
        input_key: where the input picture lies; None once it was swept, some time after the end.
        mask_key: where its mask does, as long as that is there; None for none, too.
        attempt: claims so far; the fencing number of the present one.
        faults: attempts that failed through our fault.
        started_at: when the last attempt was claimed.
        files_until: when the outputs leave the store; None before the end and once they are gone.
        outputs: pictures of a COMPLETED job, None otherwise.
        made: how a COMPLETED job was really done: seed, steps, passes, acceleration.
        inference_s: seconds of engine time.
        timings: seconds by stage; "wait" are those in the fleet in which no device worked on it.
        error, error_code: of a FAILED job; the text is for the caller.
    """

    number: int
    turn: int
    id: JobId
    account: AccountId
    key: KeyId | None
    model: str
    state: State
    price_micros: int
    parameters: Mapping[str, object]
    input_key: str | None
    mask_key: str | None
    webhook_url: str | None
    attempt: int
    faults: int
    worker: str | None
    lease_until: datetime | None
    cancel_requested_at: datetime | None
    accepted_at: datetime
    available_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    files_until: datetime | None
    outputs: Sequence[Output] | None
    made: Mapping[str, object] | None
    inference_s: float | None
    timings: Mapping[str, float] | None
    error_code: str | None
    error: str | None

    @property
    def lease(self) -> Lease:
        """The lease of the present attempt."""
        assert self.state is State.PROCESSING, f"job {self.id} is {self.state}, nobody holds it"
        return Lease(job=self.id, attempt=self.attempt)

    @property
    def is_cancelled(self) -> bool:
        """Whether a cancel was promised: it ended CANCELLED, or will."""
        return self.state is State.CANCELLED or self.cancel_requested_at is not None

    @property
    def retries(self) -> int:
        """Attempts that followed one which failed through our fault."""
        return max(0, min(self.faults, self.attempt - 1))

    @property
    def queue_s(self) -> float | None:
        """Seconds that it waited: from accept to the start of the last attempt, and then for its device."""
        before_s = _between(self.accepted_at, self.started_at)
        return None if before_s is None else before_s + (self.timings or {}).get("wait", 0.0)

    @property
    def total_s(self) -> float | None:
        """Seconds from accept to the end."""
        return _between(self.accepted_at, self.finished_at)


def _between(earlier: datetime, later: datetime | None) -> float | None:
    """Seconds, never below zero: the clock may have been set back in between."""
    return None if later is None else max(0.0, (later - earlier).total_seconds())


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much may wait. Past it the caller is told to come back later.

    Attributes:
        in_flight_max: unfinished jobs per account, unless the account has a limit of its own.
        queued_max: waiting jobs of all accounts. Exact on SQLite; on PostgreSQL accepts that run at the same
            moment may pass it by as many as there are connections.
    """

    in_flight_max: int = 32
    queued_max: int = 1000


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long things may take, in seconds, and how often we try.

    Attributes:
        lease_s: a worker that is silent for so long is taken for dead.
        faults_max: attempts that may fail through our fault before the job does.
        backoff_s, backoff_s_max: before the second attempt; doubles with each fault, up to the second.
        queue_s_max: a job that could be claimed and found no worker for so long fails; counted anew for each attempt.
        outputs_s: outputs are kept for so long after the end.
    """

    lease_s: float = 30.0
    faults_max: int = 3
    backoff_s: float = 1.0
    backoff_s_max: float = 300.0
    queue_s_max: float = 24 * 3600.0
    outputs_s: float = 7 * 24 * 3600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "backoff_s"):
                raise ValueError(f"{name} is {value}; allowed: more than 0")
