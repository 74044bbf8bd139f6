"""Webhooks as the SDK's calls and the console show and make them."""

from __future__ import annotations

from collections.abc import Sequence

from rekontext.api.auth import Caller
from rekontext.api.parts import Parts
from rekontext.api.rows import moment
from rekontext.database import EndpointId
from rekontext.jobs import Delivery, Endpoint, endpoints


async def new_endpoint(parts: Parts, caller: Caller, *, url: str, event_types: Sequence[str]) -> Endpoint:
    """Tell `url` of the caller's jobs from now on.

    Raises:
        WebhookRefused: the URL or an event type can't be used, or there are too many.
    """
    endpoint, now = EndpointId(f"wh_{parts.ids()}"), parts.clock.now()
    return await parts.database.transact(
        lambda tx: endpoints.add(
            tx,
            caller.account,
            endpoint=endpoint,
            url=url,
            event_types=event_types,
            randomness=parts.randomness,
            now=now,
        )
    )


def described(endpoint: Endpoint) -> dict[str, object]:
    """A webhook without its secret, which is shown when it is made and never again."""
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "is_active": endpoint.active,
        "created_at": moment(endpoint.created_at),
    }


def described_delivery(delivery: Delivery) -> dict[str, object]:
    """One message and every try to deliver it."""
    return {
        "id": delivery.id,
        "webhook_id": delivery.endpoint,
        "request_id": delivery.job,
        "url": delivery.url,
        "event_type": delivery.event_type,
        "state": delivery.state,
        "tries": delivery.tries,
        "created_at": moment(delivery.created_at),
        "due_at": moment(delivery.due_at),
        "finished_at": moment(delivery.finished_at),
        "body": delivery.body,
        "attempts": [
            {
                "at": moment(attempt.at),
                "duration_s": round(attempt.duration_s, 3),
                "status": attempt.status,
                "error": attempt.error,
            }
            for attempt in delivery.attempts
        ],
    }
