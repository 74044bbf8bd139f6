"""Segmind's surface: `POST /v1/flux-kontext-dev`, which waits, and `POST /v2/flux-kontext-dev`, which doesn't.

A handler is a translation: the request into one checked order, one job, its end into an answer. What can be asked
of a job afterwards is in requests.py.
"""

from __future__ import annotations

import re
from typing import Final

from fastapi import APIRouter, Request, Response, Security
from fastapi.security import APIKeyHeader
from starlette.convertors import StringConvertor, register_url_convertor

from rekontext.api import answers, openapi, surfaces
from rekontext.api.auth import KEY_HEADER, Caller
from rekontext.api.edits import Submitted, UnknownModel
from rekontext.api.parts import Parts
from rekontext.models import SLUG

KEY: Final = APIKeyHeader(  # for the documentation; `caller_of` is what checks
    name=KEY_HEADER, auto_error=False, description="The key that the server printed at its first start, or a later one."
)
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
        by_key = caller.key.policy.sync_response == "json"
        is_json = answers.prefers_json(request.headers.get("accept", ""), otherwise=by_key)
        submitted = await _submit(request, caller, parts, has_room_for_several=is_json)
        headers = surfaces.headers(submitted, allowed, parts)
        done = await surfaces.wait(request, caller, submitted, parts)
        headers |= answers.facts(done.job, done.balance)
        if not is_json:
            return answers.picture_answer(done.job, await surfaces.picture_of(done.job, parts), headers)
        found = (done.job, await surfaces.pictures_of(done.job, parts), done.balance)
        origin = parts.origins.of(request)
        return await parts.threads.run(answers.inline_answer, parts.documents, *found, origin, headers)

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
        headers = surfaces.headers(submitted, allowed, parts) | answers.when(submitted.estimate)
        headers["x-remaining-credits"] = answers.money(submitted.balance.available_micros)
        document = parts.documents.submitted(submitted.job, parts.origins.of(request), submitted.estimate)
        return answers.json_answer(document, headers=headers)

    @routes.api_route("/v1/{slug:unknown_slug}", methods=_METHODS, include_in_schema=False)
    @routes.api_route("/v2/{slug:unknown_slug}", methods=_METHODS, include_in_schema=False)
    async def unknown(request: Request, slug: str) -> Response:
        await parts.caller(request, None)
        raise UnknownModel(slug, known=[SLUG])

    return routes


async def _submit(request: Request, caller: Caller, parts: Parts, *, has_room_for_several: bool = True) -> Submitted:
    """The job. Nothing of the body outlasts this call, however long the job takes."""
    draft = await parts.orders.draft(request)
    if not has_room_for_several:
        draft = draft.of_one_picture("an answer that is a picture is one (Accept: application/json has them all)")
    return await surfaces.submit(request, caller, draft, parts)
