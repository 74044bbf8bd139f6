"""A message that an account sends itself, to see whether its webhook works."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select

from rekontext.database import AccountId, DeliveryId, EndpointId
from rekontext.database.tables import webhook_endpoints
from rekontext.jobs.endpoints import TEST_EVENT_TYPE, WebhookUnknown, lock_with_room_to_send
from rekontext.jobs.outbox import envelope, queue


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
    queue(
        tx,
        [(delivery, endpoint, found.url)],
        account=account,
        job=None,
        event_type=TEST_EVENT_TYPE,
        message=envelope(TEST_EVENT_TYPE, {"webhook_id": endpoint}, now=now),
        now=now,
    )
    return delivery
