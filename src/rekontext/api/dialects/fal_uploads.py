"""fal's uploads: a raw body with the key, or a URL for one PUT without it. They are kept as all uploads are."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rekontext.accounts import keys
from rekontext.api import answers, uploads
from rekontext.api.auth import Caller, make_known, shown_key
from rekontext.api.bodies import Upload, read_raw
from rekontext.api.parts import Parts
from rekontext.database import KeyId
from rekontext.jobs import AssetUnknown, asset_key, assets
from rekontext.pictures import Photo

REST: Final = "/fal/rest"
CDN: Final = "/fal/cdn"
_UPLOADS: Final = "/fal/uploads"
_OPEN_FOR: Final = timedelta(minutes=30)
"""How long a token is good, and a URL for a PUT."""


def routes(parts: Parts) -> list[BaseRoute]:
    """Their paths."""

    async def fal_create_token(request: Request) -> Response:
        """The caller's own key: it opens what a token would, and is known to who asks."""
        await parts.caller(request, "edit")
        return answers.json_answer(
            {
                "token": shown_key(request.headers),
                "token_type": "Bearer",
                "base_url": f"{parts.origins.of(request)}{CDN}",
                "expires_at": (parts.clock.now() + _OPEN_FOR).isoformat(),
            }
        )

    async def fal_upload_file(request: Request) -> Response:
        caller = await parts.caller(request, "edit")
        await parts.edits.allow(caller)
        photo = await _read(request, request.headers.get("x-fal-file-name", ""), parts)
        [asset] = await uploads.keep([photo], caller, parts)
        return answers.json_answer({"access_url": parts.links.to_upload(parts.origins.of(request), asset)})

    async def fal_initiate_upload(request: Request) -> Response:
        """Where to put one picture, and where it will be."""
        caller = await parts.caller(request, "edit")
        await parts.edits.allow(caller)
        body = await parts.orders.json(request)
        upload, origin = parts.ids(), parts.origins.of(request)
        path = f"{_UPLOADS}/{caller.key.id}/{upload}"
        to = parts.links.to_path(origin, path, until=parts.clock.now() + _OPEN_FOR)
        called: Any = body.get("file_name")
        name = quote(called[-uploads.NAME_CHARACTERS_MAX :]) if isinstance(called, str) else ""
        return answers.json_answer(
            {
                "upload_url": f"{to}&name={name}",  # only what it is called, so it needs no signature
                "file_url": parts.links.to_coming_upload(origin, asset_key(upload)),
            }
        )

    async def fal_put_upload(request: Request) -> Response:
        """One picture from whoever has the URL, for the account of the key that it was made for."""
        key, upload = KeyId(request.path_params["key"]), request.path_params["id"]
        query, now = request.query_params, parts.clock.now()
        parts.links.check_path(request.scope["path"], query)

        def look(tx: Connection) -> tuple[Caller, bool]:
            caller = Caller(key=keys.get(tx, key))
            keys.check_open(tx, key, now=now)
            try:
                assets.get(tx, upload, account=caller.account)
            except AssetUnknown:
                return caller, False
            return caller, True

        caller, is_there = await parts.database.read(look)
        make_known(request, caller)
        if not is_there:  # else it is sent again by a client that missed our answer
            photo, name = await _read(request, query.get("name", ""), parts)
            await uploads.keep_as(upload, photo, name, caller, parts)
        return Response(status_code=200)

    return [
        Route(f"{REST}/storage/auth/token", fal_create_token, methods=["POST"]),
        Route(f"{REST}/storage/upload/initiate", fal_initiate_upload, methods=["POST"]),
        Route(f"{CDN}/files/upload", fal_upload_file, methods=["POST"]),
        Route(f"{_UPLOADS}/{{key}}/{{id}}", fal_put_upload, methods=["PUT"]),
    ]


async def _read(request: Request, name: str, parts: Parts) -> tuple[Photo, str]:
    """The picture that is a request's body, and its name.

    Raises:
        ParametersRefused: it is none.
    """
    return await uploads.read("file", Upload(data=await read_raw(request), name=name), parts)
