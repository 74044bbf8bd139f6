"""The calls that Segmind's SDK makes beside edits, at its own paths and in its own words.

Its hosts are fixed constants; pointed at this server, the paths below are what it asks for.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Security
from pydantic import BaseModel

from rekontext.accounts import ledger, registry, usd
from rekontext.api import openapi
from rekontext.api.hooks import EventTypes, Url, changed_endpoint, described_delivery, endpoint_json, new_endpoint
from rekontext.api.keyed import Anybody, Editor, Reader, keyed_route
from rekontext.api.parameters import Day, schema
from rekontext.api.parts import Parts
from rekontext.api.problems import ParametersRefused, Problem
from rekontext.api.rows import PageNumber, PageSize, Rows, page, states_named
from rekontext.api.segmind import KEY
from rekontext.contract import STEPS_DEFAULT
from rekontext.database import EndpointId, JobId
from rekontext.jobs import Endpoint, Page, State, endpoints, history, queries
from rekontext.models import SLUG
from rekontext.moments import day_end, day_start, moment

WINDOW_DAYS_MAX: Final = 31
_WINDOW_DAYS: Final = 7
_RECENT: Final = 20
_SORTS: Final[dict[str, Literal["accepted_at", "model", "price"]]] = {
    "model_created": "accepted_at",
    "model_name": "model",
    "credits_deduction": "price",
}


class WebhookEvents(BaseModel):
    types: EventTypes


class WebhookToAdd(BaseModel):
    webhook_url: Url
    event: WebhookEvents


class WebhookToUpdate(WebhookToAdd):
    webhook_id: str


def router(parts: Parts) -> APIRouter:
    """Credits, models, account, history and webhooks, as the SDK asks for them."""
    routes = APIRouter(tags=["account and history, as Segmind's SDK asks for them"], responses=openapi.REFUSALS)
    _add_models(routes, parts)
    keyed = APIRouter(dependencies=[Security(KEY)], route_class=keyed_route(parts))
    _add_account(keyed, parts)
    _add_history(keyed, parts)
    _add_webhooks(keyed, parts)
    routes.include_router(keyed)
    return routes


def _add_models(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/inference-model-information/list", summary="The models")
    async def models() -> dict[str, Any]:
        """The one model that is served. No key needed."""
        row = {
            "title": "FLUX.1 Kontext [dev]",
            "slug": SLUG,
            "type": "imageToImage",
            "description": "Edits a picture as an instruction says, and leaves the rest as it is.",
            "parameters": schema(as_form=False),
            "is_depreciated": False,
            "price": usd(parts.edits.price_micros(steps=STEPS_DEFAULT)),
            **parts.documents.model(),
        }
        return {"Inference Segmind Model Information List With Details": [row]}


def _add_account(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/v1/get-user-credits", summary="What is left")
    async def credits(caller: Reader) -> dict[str, float]:
        """US dollars, paid and given; what is held for unfinished edits is in neither."""
        balance = await parts.database.read(lambda tx: ledger.balance(tx, caller.account))
        return {"credits": usd(balance.paid_micros), "free-credits": usd(balance.free_micros)}

    @routes.get("/api/auth/authenticate", summary="The account of a key")
    async def authenticate(caller: Anybody) -> dict[str, Any]:
        account, balance = await parts.database.read(
            lambda tx: (registry.get(tx, caller.account), ledger.balance(tx, caller.account))
        )
        key = caller.key
        return {
            "id": account.id,
            "name": account.name,
            "created_at": moment(account.created_at),
            "credits": usd(balance.paid_micros),
            "free_credits": usd(balance.free_micros),
            "api_key": {
                "id": key.id,
                "name": key.policy.name,
                "hint": key.hint,
                "scopes": sorted(key.policy.scopes),
            },
        }


def _add_history(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/inference-request/request-history", summary="Requests, failed ones too")
    async def request_history(
        request: Request,
        caller: Reader,
        page_number: Annotated[PageNumber, Query(alias="page")] = 1,
        per_page: PageSize = 20,
        from_date: Day | None = None,
        to_date: Day | None = None,
        model_name: str | None = None,
        status: Literal["COMPLETED", "FAILED", "CANCELLED", "PENDING"] | None = None,
        sort_by: Literal["model_created", "model_name", "credits_deduction"] = "model_created",
        sort_order: Literal["desc", "asc"] = "desc",
    ) -> dict[str, object]:
        """The last 7 days, or at most 31 that are named."""
        last = to_date or parts.clock.now().date()
        first = from_date or max(last, date.min + timedelta(days=_WINDOW_DAYS)) - timedelta(days=_WINDOW_DAYS)
        if not 0 <= (last - first).days <= WINDOW_DAYS_MAX:
            allowed = f"a window of at most {WINDOW_DAYS_MAX} days that begins before it ends"
            reason = f"is {first}, {(last - first).days} days before to_date; allowed is {allowed}"
            raise ParametersRefused(
                [
                    Problem(
                        parameter="from_date",
                        value=str(first),
                        reason=reason,
                        says_allowed=True,
                        allowed_text=allowed,
                    )
                ]
            )
        found = await parts.database.read_long(
            lambda tx: history(
                tx,
                caller.account,
                states=states_named(status) if status else (),
                model_contains=model_name,
                accepted_from=day_start(first),
                accepted_before=day_end(last),
                sort_by=_SORTS[sort_by],
                descending=sort_order == "desc",
                page=page_number,
                per_page=per_page,
            )
        )
        return _page(found, request, page_number, per_page)

    @routes.get("/inference-request/request-history/{request_id}", summary="One request")
    async def one_request(request: Request, caller: Reader, request_id: str) -> dict[str, object]:
        job = await parts.database.read(lambda tx: queries.get(tx, JobId(request_id), account=caller.account))
        return _rows(request).segmind(job)

    @routes.get("/inference-request/generations", summary="Requests that made a picture")
    async def generations(
        request: Request,
        caller: Reader,
        page_number: Annotated[PageNumber, Query(alias="page")] = 1,
        model_name: str | None = None,
        start_date: Day | None = None,
        end_date: Day | None = None,
    ) -> dict[str, object]:
        found = await parts.database.read_long(
            lambda tx: history(
                tx,
                caller.account,
                states=(State.COMPLETED,),
                model_contains=model_name,
                accepted_from=None if start_date is None else day_start(start_date),
                accepted_before=None if end_date is None else day_end(end_date),
                page=page_number,
            )
        )
        return _page(found, request, page_number, 20)

    @routes.get("/inference-request/recent-generations", summary="The newest pictures of a model")
    async def recent_generations(request: Request, caller: Reader, model_name: str) -> dict[str, object]:
        found = await parts.database.read_long(
            lambda tx: history(
                tx, caller.account, states=(State.COMPLETED,), model_contains=model_name, per_page=_RECENT
            )
        )
        return _page(found, request, 1, _RECENT)

    def _rows(request: Request) -> Rows:
        return Rows(documents=parts.documents, origin=parts.origins.of(request))

    def _page(found: Page, request: Request, number: int, size: int) -> dict[str, object]:
        return page(found, _rows(request).segmind, number=number, size=size)


def _add_webhooks(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/webhook/get", summary="The account's webhooks")
    async def get_webhooks(caller: Reader) -> dict[str, object]:
        found = await parts.database.read(lambda tx: endpoints.of_account(tx, caller.account))
        return {"webhooks": [_shown(each) for each in found]}

    @routes.post("/webhook/add", summary="Tell a URL of the account's edits")
    async def add_webhook(caller: Editor, wanted: WebhookToAdd) -> dict[str, object]:
        made = await new_endpoint(parts, caller, url=wanted.webhook_url, event_types=wanted.event.types)
        return _shown(made) | {"secret": made.secret}

    @routes.post("/webhook/update", summary="Change a webhook")
    async def update_webhook(caller: Editor, wanted: WebhookToUpdate) -> dict[str, object]:
        changed = await changed_endpoint(
            parts, caller, wanted.webhook_id, url=wanted.webhook_url, event_types=wanted.event.types
        )
        return _shown(changed)

    @routes.get("/webhook/inactive", summary="Switch a webhook off")
    async def switch_webhook_off(caller: Editor, webhook_id: str) -> dict[str, object]:
        changed = await changed_endpoint(parts, caller, webhook_id, active=False)
        return _shown(changed)

    @routes.head("/webhook/inactive", include_in_schema=False)
    async def webhook_left_on(caller: Editor, webhook_id: str) -> dict[str, object]:
        """As GET, and nothing is switched off."""
        return _shown(await changed_endpoint(parts, caller, webhook_id))

    @routes.get("/webhook/dispatch-logs", summary="What a webhook was sent")
    async def dispatch_logs(caller: Reader, webhook_id: str) -> dict[str, object]:
        found = await parts.database.read_long(
            lambda tx: endpoints.deliveries(tx, caller.account, endpoint=EndpointId(webhook_id))
        )
        return {"logs": [described_delivery(each) for each in found]}


def _shown(endpoint: Endpoint) -> dict[str, object]:
    """A webhook in the SDK's words."""
    own = endpoint_json(endpoint)
    return {
        "webhook_id": own["id"],
        "webhook_url": own["url"],
        "event": {"types": own["event_types"]},
        "is_active": own["is_active"],
        "created_at": own["created_at"],
    }
