"""Segmind's surface: `POST /v1/flux-kontext-dev`, as its API page describes it.

A handler is a translation: the request into one checked order, one call of `Edits.run`, its result into an answer.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response, Security
from fastapi.security import APIKeyHeader

from rekontext.api import openapi
from rekontext.api.answers import json_answer, picture_answer, prefers_json
from rekontext.api.auth import Caller, Keys, MissingKey
from rekontext.api.connection import unless_gone
from rekontext.api.edits import Edits, UnknownModel
from rekontext.api.middleware import request_id
from rekontext.api.orders import OrderReader
from rekontext.pictures import CodecThreads

SLUG: Final = "flux-kontext-dev"
_KEY_HEADER: Final = APIKeyHeader(  # for the documentation; `_caller` is what checks
    name="x-api-key", auto_error=False, description="The key that the server printed at its first start."
)


def router(*, edits: Edits, keys: Keys, orders: OrderReader, threads: CodecThreads) -> APIRouter:
    """The surface's routes."""
    routes = APIRouter(tags=["edits"], dependencies=[Security(_KEY_HEADER)])

    @routes.post(
        f"/v1/{SLUG}",
        summary="Edit a picture",
        response_class=Response,
        responses=openapi.ANSWERS,
        openapi_extra=openapi.REQUEST,
    )
    async def edit(request: Request) -> Response:
        """Send a picture and an instruction, wait, and get the edited picture.

        The answer is the picture itself, or JSON with the picture as a data URI for those who send
        `Accept: application/json`. An edit whose caller hangs up is stopped.
        """
        caller = await _caller(request, keys)
        order = await orders.read(request)
        name = request_id(request.scope)
        edited = await unless_gone(request, edits.run(caller, order, request_id=name))
        if prefers_json(request.headers.get("accept", "")):
            return await threads.run(json_answer, edited, order.prompt, name)
        return picture_answer(edited)

    @routes.post("/v1/{slug}", include_in_schema=False)
    async def unknown(request: Request, slug: str) -> Response:
        await _caller(request, keys)
        raise UnknownModel(slug, known=[SLUG])

    return routes


async def _caller(request: Request, keys: Keys) -> Caller:
    """Who sends this. Asked before the body is read, so that strangers can't make the server read one."""
    key = request.headers.get("x-api-key")
    if not key:
        raise MissingKey(has_authorization="authorization" in request.headers)
    return await keys.authenticate(key)
