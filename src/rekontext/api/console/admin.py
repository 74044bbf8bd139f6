"""What operators see and do, on every account. Each act is written to the audit log."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from sqlalchemy import Connection

from rekontext.accounts import audit, parse_usd, registry
from rekontext.accounts.described import described_balance
from rekontext.accounts.ledger import Source
from rekontext.accounts.money import PLAIN, is_plain
from rekontext.accounts.registry import AccountLimits
from rekontext.api.console.account import account_json, described_model
from rekontext.api.console.keys import acts_of
from rekontext.api.documents import forecast
from rekontext.api.keyed import Operator
from rekontext.api.parameters import Storable, Whole
from rekontext.api.parts import Parts
from rekontext.api.rows import PageNumber, PageSize, place
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job, State, queries, unfinished_by_state, workers
from rekontext.jobs.workers import Worker
from rekontext.moments import moment

_SHOWN_MAX: Final = 100
_USD_MAX: Final = 1_000_000_000


def _plain(value: object) -> object:
    """Pydantic reads a text as Python does, and books 1_5 as 15."""
    if isinstance(value, str) and not is_plain(value):
        raise ValueError("must be a number in plain digits, such as 10 or 0.04")
    return value


def _described(*, least: int) -> WithJsonSchema:
    """An amount, as a number or as a text."""
    number = {"type": "number", "minimum": least, "maximum": _USD_MAX}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": f"^{PLAIN.pattern}$"}]})


_Dollars = Annotated[Decimal, Field(le=_USD_MAX, decimal_places=6), BeforeValidator(_plain)]
Usd = Annotated[_Dollars, Field(ge=0), _described(least=0)]
UsdEitherWay = Annotated[_Dollars, Field(ge=-_USD_MAX), _described(least=-_USD_MAX)]


class AccountsWanted(BaseModel):
    """Which accounts are asked for, and which page of them."""

    search: Annotated[str | None, Field(max_length=registry.NAME_CHARACTERS_MAX)] = None
    page_number: Annotated[PageNumber, Field(alias="page")] = 1
    per_page: PageSize = 20


def _tellable(name: str) -> str:
    try:
        registry.check_name(name)
    except ValueError as fault:
        raise ValueError(f"must be {registry.NAME_ALLOWED}") from fault
    return name


class AccountWanted(BaseModel):
    """An account to be opened."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        str, Field(min_length=1, max_length=registry.NAME_CHARACTERS_MAX), Storable, AfterValidator(_tellable)
    ]
    credits: Usd = Decimal(0)


class LimitsWanted(BaseModel):
    """Limits of an account; null lifts one, and one that is left out stays."""

    model_config = ConfigDict(extra="forbid")

    monthly_cap: Usd | None = None
    in_flight_max: Annotated[int | None, Field(strict=True, ge=1, le=registry.IN_FLIGHT_MAX), Whole] = None

    def limits(self) -> AccountLimits:
        """Those that were sent."""
        limits = AccountLimits()
        if "monthly_cap" in self.model_fields_set:
            limits["monthly_cap_micros"] = None if self.monthly_cap is None else parse_usd(f"{self.monthly_cap:f}")
        if "in_flight_max" in self.model_fields_set:
            limits["in_flight_max"] = self.in_flight_max
        return limits


class CreditsWanted(BaseModel):
    """Credits to be put on an account. Only a correction may be negative."""

    model_config = ConfigDict(extra="forbid")

    kind: Source = "grant"
    amount: UsdEitherWay
    note: Annotated[str, Field(max_length=1000), Storable] = ""

    @field_validator("amount")
    @classmethod
    def _right_way(cls, amount: Decimal, known: ValidationInfo) -> Decimal:
        """By the kind, which comes first; a wrong one is told by itself."""
        if "kind" in known.data and (amount == 0 or (amount < 0 and known.data["kind"] != "correction")):
            raise ValueError("must be above 0, or not 0 for a correction")
        return amount


def add(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/admin/accounts", summary="Accounts, the newest first")
    async def list_accounts(_caller: Operator, wanted: Annotated[AccountsWanted, Query()]) -> dict[str, object]:
        found = await parts.database.read_long(
            lambda tx: registry.page_with_balance(
                tx,
                name_contains=wanted.search and wanted.search.strip(),
                page=wanted.page_number,
                per_page=wanted.per_page,
            )
        )
        return {
            "accounts": [
                account_json(account, parts) | {"balance": described_balance(balance)}
                for account, balance in found.accounts
            ],
            **place(number=wanted.page_number, size=wanted.per_page, total=found.total),
        }

    @routes.post("/admin/accounts", summary="Open an account", status_code=201)
    async def create_account(caller: Operator, wanted: AccountWanted) -> dict[str, object]:
        """The answer holds its first key, which is never shown again."""
        acts, micros = acts_of(parts, caller), parse_usd(f"{wanted.credits:f}")
        account, key = await parts.database.transact(
            lambda tx: acts.create_account(tx, wanted.name, credits_micros=micros)
        )
        return {"account": account_json(account, parts), "api_key": key.secret}

    @routes.patch("/admin/accounts/{account_id}", summary="Set an account's limits")
    async def set_limits(caller: Operator, account_id: str, wanted: LimitsWanted) -> dict[str, object]:
        acts, limits = acts_of(parts, caller), wanted.limits()
        changed = await parts.database.transact(lambda tx: acts.set_limits(tx, AccountId(account_id), **limits))
        return {"account": account_json(changed, parts)}

    @routes.post("/admin/accounts/{account_id}/credits", summary="Put credits on an account")
    async def add_credits(caller: Operator, account_id: str, wanted: CreditsWanted) -> dict[str, object]:
        acts, micros = acts_of(parts, caller), parse_usd(f"{wanted.amount:f}")
        balance = await parts.database.transact(
            lambda tx: acts.add_credits(tx, AccountId(account_id), micros, source=wanted.kind, note=wanted.note)
        )
        return {"balance": described_balance(balance)}

    @routes.get("/admin/queue", summary="What waits and what runs")
    async def queue(_caller: Operator) -> dict[str, object]:

        def look(tx: Connection) -> tuple[dict[State, int], list[Job], dict[JobId, int], list[Worker]]:
            unfinished = [*queries.running(tx, None, most=_SHOWN_MAX), *queries.waiting(tx, None, most=_SHOWN_MAX)]
            found = sorted(unfinished, key=lambda job: job.number)[:_SHOWN_MAX]
            alive = workers.alive(tx, since=parts.dispatcher.others.alive_since)
            return unfinished_by_state(tx), found, queries.places(tx), alive

        counts, found, places, alive = await parts.database.read_long(look)
        return {
            "queued": counts[State.QUEUED],
            "processing": counts[State.PROCESSING],
            "running_here": parts.dispatcher.running,
            "running_max": parts.limits.running_max,
            "queued_max": parts.limits.queued_max,
            "edit_s": round(parts.dispatcher.edit_s, 3),
            "model": await described_model(parts),
            "devices": dict(parts.fleet.devices),
            "worker": parts.dispatcher.worker,
            "workers": [
                {"name": each.name, "seen_at": moment(each.seen_at), "devices": dict(each.devices)} for each in alive
            ],
            "jobs": [_unfinished(job, places.get(job.id), parts) for job in found],
        }

    @routes.get("/admin/audit", summary="Who did what")
    async def audit_log(
        _caller: Operator,
        before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
        limit: Annotated[int, Query(ge=1, le=audit.PAGE_MAX)] = 100,
    ) -> dict[str, object]:
        found = await parts.database.read(lambda tx: audit.records(tx, before=before, limit=limit))
        return {"records": [vars(each) | {"at": moment(each.at)} for each in found]}


def _unfinished(job: Job, ahead: int | None, parts: Parts) -> dict[str, object]:
    progress = parts.forecast.progress(job)
    return {
        "request_id": job.id,
        "account_id": job.account,
        "status": job.state.value,
        "accepted_at": moment(job.accepted_at),
        "started_at": moment(job.started_at),
        "worker": job.worker,
        "attempt": job.attempt,
        "steps": job.parameters.get("num_inference_steps"),
        "progress": None if progress is None else asdict(progress),
        **forecast(parts.forecast.of_job(job, ahead=ahead)),
    }
