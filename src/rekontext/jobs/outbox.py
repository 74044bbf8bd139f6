"""Messages about jobs that ended, written in the transaction that ends them, so that none is lost or made up.

Knows which endpoints want to hear and what they are told; sending is `webhooks.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

from sqlalchemy import Connection, bindparam, insert, select

from rekontext.database import AccountId, DeliveryId, EndpointId, JobId
from rekontext.database.tables import webhook_deliveries, webhook_endpoints
from rekontext.jobs.model import Job, State
from rekontext.sources import Ids

EventType = Literal["edit.completed", "edit.failed", "edit.cancelled"]
EVENT_TYPES: Final[tuple[EventType, ...]] = get_args(EventType)
_EVENT_OF: Final[Mapping[State, EventType]] = {
    State.COMPLETED: "edit.completed",
    State.FAILED: "edit.failed",
    State.CANCELLED: "edit.cancelled",
}

Describe = Callable[[Job], Mapping[str, object]]
"""What a message says about a job that ended, as JSON values."""

_ENDPOINTS: Final = select(webhook_endpoints.c.id, webhook_endpoints.c.url, webhook_endpoints.c.event_types).where(
    webhook_endpoints.c.account_id == bindparam("account"), webhook_endpoints.c.active.is_(True)
)


def describe_plainly(job: Job) -> Mapping[str, object]:
    """The least that a message must say. The wire passes its own, which has the URLs of the outputs."""
    return {"request_id": job.id, "status": job.state.value, "error": job.error}


OwnMessage = Callable[[Job], Mapping[str, object] | None]
"""The whole message to a job's own `webhook_url`, where that gets another than endpoints do."""


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """Writes one delivery per endpoint, and one for the job's own `webhook_url`."""

    ids: Ids
    describe: Describe = describe_plainly
    own_message: OwnMessage = lambda _job: None

    def write(self, tx: Connection, job: Job, *, now: datetime) -> None:
        """Queue the news that `job` ended."""
        event = _EVENT_OF[job.state]
        endpoints: list[tuple[EndpointId | None, str]] = [
            (endpoint.id, endpoint.url)
            for endpoint in tx.execute(_ENDPOINTS, {"account": job.account})
            if event in endpoint.event_types
        ]
        if endpoints:
            self._queue(tx, job, endpoints, envelope(event, self.describe(job), now=now), now=now)
        if job.webhook_url is not None:
            message = self.own_message(job)
            if message is None:
                message = envelope(event, self.describe(job), now=now)
            self._queue(tx, job, [(None, job.webhook_url)], message, now=now)

    def _queue(
        self,
        tx: Connection,
        job: Job,
        targets: Sequence[tuple[EndpointId | None, str]],
        message: Mapping[str, object],
        *,
        now: datetime,
    ) -> None:
        named = [(DeliveryId(f"msg_{self.ids()}"), endpoint, url) for endpoint, url in targets]
        event = _EVENT_OF[job.state]
        queue(tx, named, account=job.account, job=job.id, event_type=event, message=message, now=now)


def envelope(event_type: str, data: Mapping[str, object], *, now: datetime) -> dict[str, object]:
    """A message as the Standard Webhooks spec has it."""
    return {"type": event_type, "timestamp": now.isoformat(), "data": data}


def queue(
    tx: Connection,
    targets: Sequence[tuple[DeliveryId, EndpointId | None, str]],
    *,
    account: AccountId,
    job: JobId | None,
    event_type: str,
    message: Mapping[str, object],
    now: datetime,
) -> None:
    """Put one message, to be sent to each of some targets, where the deliverer finds it.

    Args:
        targets: the delivery's name, the endpoint if it is one, the URL.
        job: whose news it is, if it is a job's.
        message: JSON values.
    """
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False)
    tx.execute(
        insert(webhook_deliveries),
        [
            {
                "id": delivery,
                "account_id": account,
                "endpoint_id": endpoint,
                "job_id": job,
                "url": url,
                "event_type": event_type,
                "body": body,
                "state": "PENDING",
                "attempt": 0,
                "tries": 0,
                "created_at": now,
                "due_at": now,
            }
            for delivery, endpoint, url in targets
        ],
    )
