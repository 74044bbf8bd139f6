"""An account's webhooks, what they were sent, and sending it again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from rekontext.accounts import registry
from rekontext.api.console.keys import acts_of
from rekontext.api.hooks import EventTypes, Url, changed_endpoint, described_delivery, endpoint_json, new_endpoint
from rekontext.api.keyed import Editor, Reader
from rekontext.api.parts import Parts
from rekontext.database import DeliveryId, EndpointId
from rekontext.jobs import EVENT_TYPES, endpoints, trial


class WebhookWanted(BaseModel):
    """A webhook to be made."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    event_types: EventTypes = list(EVENT_TYPES)


class WebhookChange(BaseModel):
    """What is to change; the rest stays."""

    model_config = ConfigDict(extra="forbid")

    url: Url | None = None
    event_types: EventTypes | None = None
    is_active: bool | None = None


def add(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/webhooks", summary="The account's webhooks")
    async def list_webhooks(caller: Reader) -> dict[str, object]:
        found = await parts.database.read(lambda tx: endpoints.of_account(tx, caller.account))
        return {"webhooks": [endpoint_json(each) for each in reversed(found)], "event_types": list(EVENT_TYPES)}

    @routes.post("/webhooks", summary="Make a webhook", status_code=201)
    async def create_webhook(caller: Editor, wanted: WebhookWanted) -> dict[str, object]:
        """The answer holds the secret that signs its messages, which is never shown again."""
        made = await new_endpoint(parts, caller, url=wanted.url, event_types=wanted.event_types)
        return {"webhook": endpoint_json(made) | {"secret": made.secret}}

    @routes.patch("/webhooks/{webhook_id}", summary="Change a webhook")
    async def change_webhook(caller: Editor, webhook_id: str, change: WebhookChange) -> dict[str, object]:
        changed = await changed_endpoint(
            parts, caller, webhook_id, url=change.url, event_types=change.event_types, active=change.is_active
        )
        return {"webhook": endpoint_json(changed)}

    @routes.delete("/webhooks/{webhook_id}", summary="Switch a webhook off")
    async def delete_webhook(caller: Editor, webhook_id: str) -> dict[str, object]:
        changed = await changed_endpoint(parts, caller, webhook_id, active=False)
        return {"webhook": endpoint_json(changed)}

    @routes.post("/webhooks/{webhook_id}/test", summary="Send a test message", status_code=202)
    async def test_webhook(caller: Editor, webhook_id: str) -> dict[str, str]:
        await parts.edits.allow(caller)
        delivery, now = DeliveryId(f"msg_{parts.ids()}"), parts.clock.now()
        await parts.database.transact(
            lambda tx: trial.send(tx, caller.account, EndpointId(webhook_id), delivery=delivery, now=now)
        )
        parts.deliverer.wake()
        return {"delivery_id": delivery}

    @routes.get("/webhook-secret", summary="What signs a request's own webhook")
    async def show_webhook_secret(caller: Editor) -> dict[str, str]:
        """Messages to the `webhook_url` of a request are signed with it; each webhook has a secret of its own."""
        account = await parts.database.read(lambda tx: registry.get(tx, caller.account))
        return {"secret": account.webhook_secret}

    @routes.post("/webhook-secret", summary="Replace what signs a request's own webhook")
    async def replace_webhook_secret(caller: Editor) -> dict[str, str]:
        """The old one signs nothing any more, messages that are tried again included."""
        await parts.edits.allow(caller)
        acts = acts_of(parts, caller)
        account = await parts.database.transact(lambda tx: acts.replace_webhook_secret(tx, caller.account))
        return {"secret": account.webhook_secret}

    @routes.get("/deliveries", summary="What was sent")
    async def list_deliveries(
        caller: Reader,
        webhook_id: str | None = None,
        limit: Annotated[int, Query(ge=1, le=endpoints.PAGE_MAX)] = 50,
    ) -> dict[str, object]:
        endpoint = None if webhook_id is None else EndpointId(webhook_id)
        found = await parts.database.read_long(
            lambda tx: endpoints.deliveries(tx, caller.account, endpoint=endpoint, limit=limit)
        )
        return {"deliveries": [described_delivery(each) for each in found]}

    @routes.post("/deliveries/{delivery_id}/replay", summary="Send a message again", status_code=202)
    async def replay_delivery(caller: Editor, delivery_id: str) -> dict[str, str]:
        await parts.edits.allow(caller)
        now = parts.clock.now()
        await parts.database.transact(lambda tx: endpoints.replay(tx, caller.account, DeliveryId(delivery_id), now=now))
        parts.deliverer.wake()
        return {"delivery_id": delivery_id}
