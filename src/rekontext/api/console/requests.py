"""The account's requests: a page of them, one of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field

from rekontext.api.keyed import Operator, Reader
from rekontext.api.parameters import Moment
from rekontext.api.parts import Parts
from rekontext.api.rows import PageNumber, PageSize, Rows, page
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job, Page, State, history, queries
from rekontext.moments import day_end, day_start


def _or_day(moment_of: Callable[[date], datetime]) -> BeforeValidator:
    """Reads a day as the moment that `moment_of` gives; all else is left to whatever reads moments."""

    def read(value: object) -> object:
        try:
            return moment_of(date.fromisoformat(str(value)))
        except ValueError:
            return value

    return BeforeValidator(read)


From = Annotated[Moment, _or_day(day_start)]
To = Annotated[Moment, _or_day(day_end)]


class Wanted(BaseModel):
    """Which of an account's requests are asked for, and which page of them."""

    status: State | None = None
    model: str | None = None
    accepted_from: Annotated[From | None, Field(alias="from", description="a moment, or a day in UTC")] = None
    accepted_before: Annotated[
        To | None, Field(alias="to", description="a moment, or a day in UTC, which is included")
    ] = None
    search: Annotated[str | None, Field(max_length=200)] = None
    page_number: Annotated[PageNumber, Field(alias="page")] = 1
    per_page: PageSize = 20


class WantedOfAll(Wanted):
    """The same of everybody's requests."""

    account_id: Annotated[str | None, Field(max_length=64)] = None


def add(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/requests", summary="Requests, the newest first")
    async def requests(request: Request, caller: Reader, wanted: Annotated[Wanted, Query()]) -> dict[str, object]:
        found = await _found(caller.account, wanted)
        return page(found, _rows(request).console, number=wanted.page_number, size=wanted.per_page)

    @routes.get("/requests/{request_id}", summary="One request, whole")
    async def one_request(request: Request, caller: Reader, request_id: str) -> dict[str, object]:
        job = await parts.database.read(lambda tx: queries.get(tx, JobId(request_id), account=caller.account))
        return _rows(request).whole(job)

    @routes.get("/admin/requests", summary="Everybody's requests")
    async def all_requests(
        request: Request, _caller: Operator, wanted: Annotated[WantedOfAll, Query()]
    ) -> dict[str, object]:
        found = await _found(None if wanted.account_id is None else AccountId(wanted.account_id), wanted)
        rows = _rows(request)
        return page(
            found,
            lambda job: rows.console(job) | _for_operators(job),
            number=wanted.page_number,
            size=wanted.per_page,
        )

    @routes.get("/admin/requests/{request_id}", summary="Anybody's request, whole")
    async def any_request(request: Request, _caller: Operator, request_id: str) -> dict[str, object]:
        job = await parts.database.read(lambda tx: queries.get(tx, JobId(request_id)))
        return _rows(request).whole(job) | _for_operators(job)

    @routes.post("/admin/requests/{request_id}/cancel", summary="Cancel anybody's request")
    async def cancel_any(request: Request, caller: Operator, request_id: str) -> dict[str, object]:
        """It is free from this moment, as if its account had cancelled it; one that has ended stays as it is."""
        job = await parts.desk.cancel(JobId(request_id), account=None, actor=caller.key.id)
        return _rows(request).whole(job) | _for_operators(job)

    def _rows(request: Request) -> Rows:
        return Rows(documents=parts.documents, origin=parts.origins.of(request))

    async def _found(account: AccountId | None, wanted: Wanted) -> Page:
        return await parts.database.read_long(
            lambda tx: history(
                tx,
                account,
                states=() if wanted.status is None else (wanted.status,),
                model_contains=wanted.model,
                prompt_contains=wanted.search,
                or_is=JobId(wanted.search.strip()) if wanted.search else None,
                accepted_from=wanted.accepted_from,
                accepted_before=wanted.accepted_before,
                page=wanted.page_number,
                per_page=wanted.per_page,
            )
        )


def _for_operators(job: Job) -> dict[str, object]:
    """What an operator asks first of a request that is another account's. The worker is known while the job runs."""
    return {
        "account_id": job.account,
        "key_id": job.key,
        "attempt": job.attempt,
        "faults": job.faults,
        "worker": job.worker,
        "error_code": job.error_code,
        "cancelled": job.is_cancelled,
    }
