"""Who I am, what I have, what I used, what I uploaded."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection

from rekontext import __version__
from rekontext.accounts import Account, ApiKey, Balance, ledger, registry, usd
from rekontext.accounts.described import described_account, described_balance, described_key
from rekontext.api import uploads
from rekontext.api.brought import lora_json
from rekontext.api.edits import NotReady
from rekontext.api.keyed import Anybody, Editor, Reader
from rekontext.api.parts import Parts
from rekontext.contract import STEPS_DEFAULT
from rekontext.jobs import Asset, Lora, assets, loras, usage
from rekontext.jobs.usage import Percentiles, Usage
from rekontext.models import SLUG
from rekontext.moments import moment

DAYS_MAX: Final = 92


def add(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/me", summary="The account and key that ask")
    async def me(caller: Anybody) -> dict[str, object]:
        now = parts.clock.now()

        def look(tx: Connection) -> tuple[Account, Balance, int]:
            spent = ledger.spent_since(tx, caller.account, ledger.month_start(now))
            return registry.get(tx, caller.account), ledger.balance(tx, caller.account), spent

        account, balance, spent = await parts.database.read(look)
        return {
            "account": account_json(account, parts),
            "key": described_for(caller.key, caller.key),
            "balance": described_balance(balance),
            "spent_this_month": usd(spent),
            "price_per_edit": _price(parts),
            "model": await described_model(parts),
            "version": __version__,
            "requests_per_minute": parts.edits.requests_per_minute(caller.key.policy),
            "picture_bytes_max": parts.limits.picture_bytes_max,
            "lora_bytes_max": parts.limits.lora_bytes_max,
            "idempotency_s": parts.limits.idempotency_s,
        }

    @routes.get("/usage", summary="What the account did, day by day")
    async def account_usage(caller: Reader, days: Annotated[int, Query(ge=1, le=DAYS_MAX)] = 30) -> dict[str, object]:
        now = parts.clock.now()
        by_day, total = await parts.database.read_long(lambda tx: usage.by_day(tx, caller.account, days=days, now=now))
        return {
            "days": [{"date": day.isoformat(), **_usage(its)} for day, its in by_day.items()],
            "total": _usage(total),
        }

    @routes.get("/files", summary="What the account uploaded")
    async def files(
        request: Request, caller: Reader, limit: Annotated[int, Query(ge=1, le=assets.PAGE_MAX)] = 50
    ) -> dict[str, object]:

        def look(tx: Connection) -> tuple[list[Asset], int]:
            return assets.of_account(tx, caller.account, limit=limit), assets.kept_bytes(tx, caller.account)

        found, kept = await parts.database.read(look)
        origin = parts.origins.of(request)
        return {
            "files": [
                {
                    "id": asset.id,
                    "url": parts.links.to_upload(origin, asset),
                    "file_name": asset.file_name,
                    "content_type": asset.content_type,
                    "bytes": asset.bytes,
                    "created_at": moment(asset.created_at),
                }
                for asset in found
            ],
            "bytes_kept": kept,
            "bytes_max": parts.limits.uploads_bytes_max,
        }

    @routes.delete("/files/{file_id}", summary="Delete an upload")
    async def delete_file(caller: Editor, file_id: str) -> dict[str, object]:
        """Its link opens nothing any more. Edits that were accepted with it go on: each has a copy."""
        await uploads.delete(file_id, caller, parts)
        return {"id": file_id, "deleted": True}

    @routes.get("/loras", summary="LoRAs that the account brought")
    async def brought(caller: Reader, limit: Annotated[int, Query(ge=1, le=loras.PAGE_MAX)] = 50) -> dict[str, object]:
        """Those first that it used last. An edit may ask for them by name, without their address."""

        def look(tx: Connection) -> tuple[list[Lora], int]:
            return loras.of_account(tx, caller.account, limit=limit), loras.kept_bytes(tx, caller.account)

        found, kept = await parts.database.read(look)
        return {
            "loras": [lora_json(lora) for lora in found],
            "bytes_kept": kept,
            "bytes_max": parts.limits.loras_bytes_max,
        }

    @routes.delete("/loras/{lora_id}", summary="Delete a LoRA that the account brought")
    async def delete_lora(caller: Editor, lora_id: str) -> dict[str, object]:
        """Edits that were accepted with it and haven't begun fail, free of charge. Its address may bring it again."""
        await parts.brought.remove(lora_id, account=caller.account)
        return {"id": lora_id, "deleted": True}


def account_json(account: Account, parts: Parts) -> dict[str, object]:
    """Its own limit of edits in flight is null where it follows the service's."""
    own = account.in_flight_max
    in_flight_max = parts.limits.in_flight_max if own is None else own
    return described_account(account) | {"in_flight_max": in_flight_max, "own_in_flight_max": own}


def described_for(caller: ApiKey, key: ApiKey) -> dict[str, object]:
    """A key, and whether it is the one that asks."""
    return described_key(key) | {"is_current": key.id == caller.id}


async def described_model(parts: Parts) -> dict[str, Any]:
    """The model that is served, or that it is still loading, and the LoRAs that edits may ask for."""
    card = parts.fleet.card if parts.fleet.is_ready else None
    return {
        "slug": SLUG,
        "name": None if card is None else card.title,
        "is_mini": None if card is None else card.is_mini,
        "ready": card is not None,
        "knows": [] if card is None else list(card.knows),
        "loras": list(await parts.fleet.offers()),
        "device": None if card is None else card.device,
    }


def _price(parts: Parts) -> float | None:
    try:
        return usd(parts.edits.price_micros(steps=STEPS_DEFAULT))
    except NotReady:
        return None


def _usage(its: Usage) -> dict[str, object]:
    return {
        "edits": its.edits,
        "completed": its.completed,
        "failed": its.failed,
        "cancelled": its.cancelled,
        "cost": usd(its.cost_micros),
        "latency_ms": _percentiles(its.latency_s),
        "inference_ms": _percentiles(its.inference_s),
    }


def _percentiles(found: Percentiles | None) -> dict[str, int] | None:
    return None if found is None else {name: round(seconds * 1000) for name, seconds in vars(found).items()}
