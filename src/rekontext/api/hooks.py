"""Webhooks as the SDK's calls and the console show and make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from rekontext.api.auth import Caller
from rekontext.api.parts import Parts
from rekontext.database import EndpointId
from rekontext.jobs import EVENT_TYPES, Delivery, Endpoint, WebhookRefused, endpoints
from rekontext.moments import moment

# What is wrong with them is found where webhooks are kept; here it is only described.
Url = Annotated[
    str,
    Field(json_schema_extra={"format": "uri", "pattern": "^https?://", "maxLength": endpoints.URL_CHARACTERS_MAX}),
]
EventTypes = Annotated[
    list[str],
    Field(max_length=20, json_schema_extra={"minItems": 1, "items": {"type": "string", "enum": list(EVENT_TYPES)}}),
]


async def new_endpoint(parts: Parts, caller: Caller, *, url: str, event_types: Sequence[str]) -> Endpoint:
    """Tell `url` of the caller's jobs from now on.

    Raises:
        WebhookRefused: the URL or an event type can't be used, or there are too many.
    """
    _check_receiver(parts, url)
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


async def changed_endpoint(
    parts: Parts,
    caller: Caller,
    endpoint: str,
    *,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
    active: bool | None = None,
) -> Endpoint:
    """One of the caller's, with what is given changed.

    Raises:
        WebhookUnknown: the caller has none of this name.
        WebhookRefused: the URL or an event type can't be used, or too many would be on.
    """
    if url is not None:
        _check_receiver(parts, url)
    return await parts.database.transact(
        lambda tx: endpoints.change(
            tx, caller.account, EndpointId(endpoint), url=url, event_types=event_types, active=active
        )
    )


def endpoint_json(endpoint: Endpoint) -> dict[str, object]:
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
        "due_at": moment(None if delivery.finished_at else delivery.due_at),
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


def _check_receiver(parts: Parts, url: str) -> None:
    """Return unless it is plain beforehand that nothing sent to `url` would arrive.

    Raises:
        WebhookRefused: it names an address that isn't public, and that the operator hasn't opened.
    """
    endpoints.check_url(url)
    why = parts.receivers.refusal(urlsplit(url).hostname or "")
    if why is not None:
        raise WebhookRefused(f"webhook url {url[:100]!r} can't be told: {why}; this server's operator may open it")
