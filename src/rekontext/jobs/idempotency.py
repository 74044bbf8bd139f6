"""Idempotency keys: two requests with one key are one job. Knows only keys, digests and job ids."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from rekontext.database import AccountId, JobId
from rekontext.database.tables import idempotency_keys
from rekontext.jobs.errors import IdempotencyKeyReused
from rekontext.jobs.model import Idempotency

KEY_CHARACTERS_MAX: Final = 255

# A second request with the key waits here until the first has committed, then finds its row.
_CLAIM: Final = {
    "sqlite": sqlite.insert(idempotency_keys).on_conflict_do_nothing().returning(idempotency_keys.c.job_id),
    "postgresql": postgresql.insert(idempotency_keys).on_conflict_do_nothing().returning(idempotency_keys.c.job_id),
}
EARLIER: Final = select(idempotency_keys.c.job_id, idempotency_keys.c.body_digest).where(
    idempotency_keys.c.account_id == bindparam("account"), idempotency_keys.c.key == bindparam("key")
)


def claim(tx: Connection, account: AccountId, promise: Idempotency, *, job: JobId, now: datetime) -> JobId | None:
    """Take the key for `job`, or find the job that has it.

    Returns:
        None if `job` has the key now, else the earlier job.

    Raises:
        IdempotencyKeyReused: the earlier job was ordered with another body.
    """
    assert 0 < len(promise.key) <= KEY_CHARACTERS_MAX, f"an idempotency key of {len(promise.key)} characters"
    row = {
        "account_id": account,
        "key": promise.key,
        "body_digest": promise.body_digest,
        "job_id": job,
        "created_at": now,
    }
    earlier = None
    # On PostgreSQL an old key may be swept between claim and look, and is free then; one claimed since is too new.
    while earlier is None:
        if tx.execute(_CLAIM[tx.dialect.name], row).first() is not None:
            return None
        earlier = find(tx, account, promise)
    return earlier


def find(tx: Connection, account: AccountId, promise: Idempotency) -> JobId | None:
    """The job that has the key; None where it is free. Raises as `claim`."""
    found = tx.execute(EARLIER, {"account": account, "key": promise.key}).first()
    if found is None:
        return None
    if found.body_digest != promise.body_digest:
        raise IdempotencyKeyReused(promise.key)
    return JobId(found.job_id)
