"""Who among the operators did what: an append-only log, written in the transaction of the act itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select

from rekontext.database.tables import audit_log

PAGE_MAX = 500


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """One act.

    `actor` is "cli:" and a user of the machine, "first start" or a key's id; `subject` the id of what was acted on.
    """

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: Mapping[str, object]


def record(
    tx: Connection, *, actor: str, action: str, subject: str, now: datetime, details: Mapping[str, object] | None = None
) -> None:
    """Append one act. Never put a key or a secret into `details`."""
    tx.execute(
        insert(audit_log).values(at=now, actor=actor, action=action, subject=subject, details=dict(details or {}))
    )


def records(tx: Connection, *, before: int | None = None, limit: int = 100) -> list[AuditRecord]:
    """The newest acts first, at most `PAGE_MAX`; `before` is the last id of the page before."""
    query = select(audit_log).order_by(audit_log.c.id.desc()).limit(min(limit, PAGE_MAX))
    if before is not None:
        query = query.where(audit_log.c.id < before)
    return [AuditRecord(**row._mapping) for row in tx.execute(query)]
