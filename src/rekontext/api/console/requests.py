"""The account's requests: a page of them, one of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator

from rekontext.api.console.keys import Moment
from rekontext.api.keyed import Operator, Reader
from rekontext.api.parts import Parts
from rekontext.api.rows import PageNumber, PageSize, Rows, day_end, day_start, page
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job, State, history, queries

Search = Annotated[str | None, Query(max_length=200)]


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


def add(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/requests", summary="Requests, the newest first")
    async def requests(
        request: Request,
        caller: Reader,
        status: State | None = None,
        model: str | None = None,
        accepted_from: Annotated[From | None, Query(alias="from", description="a moment, or a day in UTC")] = None,
        accepted_before: Annotated[
            To | None, Query(alias="to", description="a moment, or a day in UTC, which is included")
        ] = None,
        search: Search = None,
        page_number: Annotated[PageNumber, Query(alias="page")] = 1,
        per_page: PageSize = 20,
    ) -> dict[str, object]:
        return await _page(
            request, caller.account, status, model, accepted_from, accepted_before, search, page_number, per_page
        )

    @routes.get("/requests/{request_id}", summary="One request, whole")
    async def one_request(request: Request, caller: Reader, request_id: str) -> dict[str, object]:
        job = await parts.database.read(lambda tx: queries.get(tx, JobId(request_id), account=caller.account))
        return _rows(request).whole(job)

    @routes.get("/admin/requests", summary="Everybody's requests")
    async def all_requests(
        request: Request,
        _caller: Operator,
        account_id: Annotated[str | None, Query(max_length=64)] = None,
        status: State | None = None,
        model: str | None = None,
        accepted_from: Annotated[From | None, Query(alias="from", description="a moment, or a day in UTC")] = None,
        accepted_before: Annotated[
            To | None, Query(alias="to", description="a moment, or a day in UTC, which is included")
        ] = None,
        search: Search = None,
        page_number: Annotated[PageNumber, Query(alias="page")] = 1,
        per_page: PageSize = 20,
    ) -> dict[str, object]:
        return await _page(
            request,
            None if account_id is None else AccountId(account_id),
            status,
            model,
            accepted_from,
            accepted_before,
            search,
            page_number,
            per_page,
            is_operator=True,
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

    async def _page(
        request: Request,
        account: AccountId | None,
        status: State | None,
        model: str | None,
        accepted_from: datetime | None,
        accepted_before: datetime | None,
        search: str | None,
        number: int,
        size: int,
        *,
        is_operator: bool = False,
    ) -> dict[str, object]:
        found = await parts.database.read_long(
            lambda tx: history(
                tx,
                account,
                states=() if status is None else (status,),
                model_contains=model,
                prompt_contains=search,
                or_is=JobId(search.strip()) if search else None,
                accepted_from=accepted_from,
                accepted_before=accepted_before,
                page=number,
                per_page=size,
            )
        )
        rows = _rows(request)
        if is_operator:
            return page(found, lambda job: rows.console(job) | _for_operators(job), number=number, size=size)
        return page(found, rows.console, number=number, size=size)


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
