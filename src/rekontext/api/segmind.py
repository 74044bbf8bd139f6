"""Segmind's surface: `POST /v1/flux-kontext-dev`, which waits, and `POST /v2/flux-kontext-dev`, which doesn't.

A handler is a translation: the request into one checked order, one job, its end into an answer. What can be asked
of a job afterwards is in requests.py.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from functools import partial
from typing import Final

from fastapi import APIRouter, Request, Response, Security
from fastapi.security import APIKeyHeader
from starlette.convertors import StringConvertor, register_url_convertor

from rekontext.accounts import Allowance
from rekontext.api import answers, openapi
from rekontext.api.auth import KEY_HEADER, Caller
from rekontext.api.connection import CallerGone, unless_gone
from rekontext.api.edits import ResultOutOfReach, Submitted, UnknownModel
from rekontext.api.links import FileGone
from rekontext.api.middleware import rename, request_id
from rekontext.api.parts import Parts
from rekontext.database import DatabaseUnavailable, JobId
from rekontext.models import SLUG
from rekontext.pictures import ObjectMissing, StoreUnavailable

KEY: Final = APIKeyHeader(  # for the documentation; `caller_of` is what checks
    name=KEY_HEADER, auto_error=False, description="The key that the server printed at its first start, or a later one."
)
_CANCEL_AGAIN_S: Final = 1.0
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class _UnknownSlug(StringConvertor):
    """What stands where a model's name would and is neither one nor another path of ours."""

    regex = f"(?!(?:{re.escape(SLUG)}|get-user-credits)$)[^/]+"


register_url_convertor("unknown_slug", _UnknownSlug())


def router(parts: Parts) -> APIRouter:
    """The surface's routes."""
    routes = APIRouter(tags=["edits"], dependencies=[Security(KEY)])

    @routes.post(
        f"/v1/{SLUG}",
        summary="Edit a picture",
        response_class=Response,
        responses=openapi.WAITED,
        openapi_extra=openapi.REQUEST,
    )
    async def edit(request: Request) -> Response:
        """Send a picture and an instruction, wait, and get the edited picture.

        The answer is the picture itself, or JSON with the picture as a data URI for those who send
        `Accept: application/json`. An edit whose caller hangs up is cancelled, unless it has an `Idempotency-Key`.
        """
        caller = await parts.caller(request, "edit")
        allowed = await parts.edits.allow(caller)
        submitted = await _submit(request, caller, parts)
        return await _waited(request, caller, submitted, headers=_headers(submitted, allowed, parts), parts=parts)

    @routes.post(
        f"/v2/{SLUG}",
        summary="Submit an edit",
        response_class=Response,
        responses=openapi.SUBMITTED,
        openapi_extra=openapi.REQUEST,
    )
    async def submit(request: Request) -> Response:
        """Send a picture and an instruction; the answer says where to ask for the edited picture. It can't get lost."""
        caller = await parts.caller(request, "edit")
        allowed = await parts.edits.allow(caller)
        submitted = await _submit(request, caller, parts)
        headers = _headers(submitted, allowed, parts) | answers.when(submitted.estimate)
        headers["x-remaining-credits"] = answers.money(submitted.balance.available_micros)
        document = parts.documents.submitted(submitted.job, parts.origins.of(request), submitted.estimate)
        return answers.json_answer(document, headers=headers)

    @routes.api_route("/v1/{slug:unknown_slug}", methods=_METHODS, include_in_schema=False)
    @routes.api_route("/v2/{slug:unknown_slug}", methods=_METHODS, include_in_schema=False)
    async def unknown(request: Request, slug: str) -> Response:
        await parts.caller(request, None)
        raise UnknownModel(slug, known=[SLUG])

    return routes


async def _submit(request: Request, caller: Caller, parts: Parts) -> Submitted:
    """Read the request and make a job of it, once per idempotency key."""
    key = request.headers.get("idempotency-key")
    origin = parts.origins.of(request)
    draft = await parts.orders.draft(request)
    submitted = None
    if key is not None:
        submitted = await parts.edits.earlier(caller, key, body_digest=draft.body_digest)
    if submitted is None:
        own = partial(parts.links.read_own, origin=origin)
        order = await parts.orders.finish(draft, account=caller.account, shortcut=own)
        job = JobId(request_id(request.scope))
        submitted = await parts.edits.submit(caller, order, job=job, origin=origin, idempotency_key=key)
    rename(request.scope, submitted.job.id)
    return submitted


async def _waited(
    request: Request, caller: Caller, submitted: Submitted, *, headers: dict[str, str], parts: Parts
) -> Response:
    job = submitted.job.id
    try:
        done, balance = await unless_gone(request, parts.edits.wait(submitted))
    except CallerGone:
        if "idempotency-key" not in request.headers:  # whoever sent one may come back for the result
            await asyncio.shield(_cancel(job, caller, parts))
        raise
    assert done.outputs, f"job {job} is COMPLETED without a picture"
    headers |= answers.facts(done, balance)
    if submitted.replayed and not parts.documents.hands_out(done):
        raise FileGone
    try:
        data = await parts.objects.get(done.outputs[0].key)
    except ObjectMissing as fault:
        raise FileGone from fault
    except StoreUnavailable as fault:
        raise ResultOutOfReach(job) from fault
    by_key = caller.key.policy.sync_response == "json"
    if answers.prefers_json(request.headers.get("accept", ""), otherwise=by_key):
        origin = parts.origins.of(request)
        return await parts.threads.run(answers.inline_answer, parts.documents, done, data, balance, origin, headers)
    return answers.picture_answer(done, data, headers)


async def _cancel(job: JobId, caller: Caller, parts: Parts) -> None:
    """Cancel an edit that nobody waits for. It was promised: if the database is away, again until it is back."""
    while not parts.closing.is_set():
        try:
            await parts.desk.cancel(job, account=caller.account)
        except DatabaseUnavailable:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_AGAIN_S):
                    await parts.closing.wait()
        else:
            return


def _headers(submitted: Submitted, allowed: Allowance, parts: Parts) -> dict[str, str]:
    reset_s = max(0, round((allowed.reset_at - parts.clock.now()).total_seconds()))
    headers = answers.allowance(allowed, reset_s=reset_s)
    if submitted.replayed:
        headers["idempotency-replayed"] = "true"
    return headers
