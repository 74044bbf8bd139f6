"""A message that an account sends itself, to see whether its webhook works."""

from __future__ import annotations

import json
from datetime import datetime

from sqlalchemy import Connection, insert, select

from rekontext.database import AccountId, DeliveryId, EndpointId
from rekontext.database.tables import webhook_deliveries, webhook_endpoints
from rekontext.jobs.endpoints import TEST_EVENT_TYPE, WebhookUnknown, lock_with_room_to_send


def send(
    tx: Connection, account: AccountId, endpoint: EndpointId, *, delivery: DeliveryId, now: datetime
) -> DeliveryId:
    """Queue a test message to one endpoint, whatever it subscribed to.

    Raises:
        WebhookUnknown: the account has no such endpoint, or it is switched off.
        TooManyMessages: too many that were asked for wait already.
        AccountUnknown: there is no such account.
    """
    lock_with_room_to_send(tx, account)
    found = tx.execute(
        select(webhook_endpoints.c.url).where(
            webhook_endpoints.c.id == endpoint,
            webhook_endpoints.c.account_id == account,
            webhook_endpoints.c.active.is_(True),
        )
    ).first()
    if found is None:
        raise WebhookUnknown(f"there is no active webhook {endpoint}")
    message = {"type": TEST_EVENT_TYPE, "timestamp": now.isoformat(), "data": {"webhook_id": endpoint}}
    tx.execute(
        insert(webhook_deliveries).values(
            id=delivery,
            account_id=account,
            endpoint_id=endpoint,
            job_id=None,
            url=found.url,
            event_type=TEST_EVENT_TYPE,
            body=json.dumps(message, separators=(",", ":")),
            state="PENDING",
            attempt=0,
            tries=0,
            created_at=now,
            due_at=now,
        )
    )
    return delivery
