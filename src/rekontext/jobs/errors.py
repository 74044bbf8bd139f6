"""Why a job can't be accepted, found or finished. Each has a stable `code`; the wire decides the HTTP status."""

from __future__ import annotations

from typing import ClassVar, Final

ATTEMPT_FAULTS: Final = ("edit_timeout", "engine_fault", "safety_unavailable", "worker_lost")
"""Codes of attempts that came to nothing through a fault of ours: another is made, a bounded number of times."""


class JobRefused(Exception):
    """The caller can't have this. The message is for the caller to read."""

    code: ClassVar[str] = "refused"


class JobUnknown(JobRefused):
    """No such job in this account, or its record is gone."""

    code = "request_not_found"

    def __init__(self, job: str) -> None:
        super().__init__(f"Request {job} not found")
        self.job = job


class IdempotencyKeyReused(JobRefused):
    """The key came with another body before."""

    code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r} was used for a different request. Use a new key for a new request.")
        self.key = key


class TooManyInFlight(JobRefused):
    """The account has as many unfinished edits as it may."""

    code = "too_many_in_flight"

    def __init__(self, *, in_flight: int, limit: int) -> None:
        super().__init__(
            f"Too many edits in flight: {in_flight} are unfinished and this account may have {limit}. "
            "Wait for one to end."
        )
        self.in_flight = in_flight
        self.limit = limit


class QueueFull(JobRefused):
    """The whole service has as many waiting edits as it takes."""

    code = "queue_full"

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"The service is busy: {limit} edits are waiting already. Retry later.")
        self.limit = limit


class LeaseLost(Exception):
    """Another attempt has the job, or it ended. What this worker made must be thrown away."""
