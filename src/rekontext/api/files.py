"""Files: uploads that edits may use, and the links that open uploads and results without a key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response, Security
from starlette.routing import Route

from rekontext.api import openapi, uploads
from rekontext.api.bodies import MalformedBody, Upload, pieces, read_body
from rekontext.api.brought import NAME_CHARACTERS_MAX, BringingRefused, lora_json
from rekontext.api.parameters import FILES_MAX, nameless_file
from rekontext.api.parts import Parts
from rekontext.api.problems import ParametersRefused, Problem, quoted, shown
from rekontext.api.segmind import KEY
from rekontext.jobs import ASSETS_FOLDER
from rekontext.models import LORA_NAME
from rekontext.pictures import Photo, sniff

SENT_LORAS: Final = "/v1/loras/"
"""Files under it go to the disk as they come, and may be larger than what is held in memory."""
_UNKNOWN_TYPE: Final = "application/octet-stream"
_HEADERS: Final = {
    # Whatever the bytes are, a browser takes them for nothing but a picture.
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
}
_LASTING: Final = {"cache-control": "private, max-age=3600, immutable"}
_ASKED_FOR_AGAIN: Final = {"cache-control": "private, no-cache"}
"""Of uploads, which their owner may delete."""


def router(parts: Parts) -> APIRouter:
    """`/upload-asset`."""
    routes = APIRouter(tags=["files"], dependencies=[Security(KEY)])

    @routes.post(
        "/upload-asset",
        summary="Upload pictures",
        responses=openapi.UPLOADED,
        openapi_extra=openapi.UPLOAD,
    )
    async def upload_asset(request: Request) -> dict[str, object]:
        """Send pictures as data URIs or as files; use the URLs in the answer as `input_image` within their time."""
        caller = await parts.caller(request, "edit")
        await parts.edits.allow(caller)
        photos = await _photos(await _sources(request, parts), parts)
        origin = parts.origins.of(request)
        kept = await uploads.keep(photos, caller, parts)
        urls = [parts.links.to_upload(origin, asset) for asset in kept]
        return {"file_urls": urls, "message": "Files uploaded successfully"}

    @routes.put(f"{SENT_LORAS}{{name}}", summary="Send a LoRA", responses=openapi.LORA_KEPT, openapi_extra=openapi.LORA)
    async def send_lora(request: Request, name: str) -> dict[str, object]:
        """The body is a .safetensors file, as it is; edits ask for it by the name in the answer."""
        caller = await parts.caller(request, "edit")
        await parts.edits.allow(caller)
        called = name.removesuffix(".safetensors")
        if not LORA_NAME.fullmatch(called) or len(called) > NAME_CHARACTERS_MAX:
            allowed = f"1 to {NAME_CHARACTERS_MAX} letters, digits, _, . and -, a letter or a digit first"
            raise ParametersRefused(
                [Problem(parameter="name", value=shown(name), reason=f"is {quoted(name)}", allowed_text=allowed)]
            )
        try:
            return lora_json(await parts.brought.take(called, pieces(request), account=caller.account))
        except BringingRefused as fault:
            problem = Problem(
                parameter="file",
                value=None,
                reason=str(fault),
                says_allowed=True,
                code=fault.code,
                allowed_text="a .safetensors file with a LoRA in it",
            )
            raise ParametersRefused([problem]) from fault

    return routes


def link_route(parts: Parts) -> Route:
    """`/files/...`: whoever has a link may open it."""

    async def file(request: Request) -> Response:
        key = request.path_params["key"]
        headers = _HEADERS | {"etag": _tag(key)}
        headers |= _ASKED_FOR_AGAIN if key.startswith(f"{ASSETS_FOLDER}/") else _LASTING
        if _is_known(headers["etag"], request.headers.get("if-none-match", "")):
            await parts.links.check(key, request.query_params)
            return Response(status_code=304, headers=headers)
        data = await parts.links.open(key, request.query_params)
        kind = sniff(data)
        media_type = _UNKNOWN_TYPE if kind is None else f"image/{kind}"
        return Response(data, media_type=media_type, headers=headers)

    return Route("/files/{key:path}", file)


async def _sources(request: Request, parts: Parts) -> list[tuple[str, str | Upload]]:
    """The files of a request and where each stands: a list of data URIs in JSON, or every file of a form."""
    body = await read_body(request, parts.threads, bytes_max=parts.limits.body_bytes_max)
    sources: list[tuple[str, str | Upload]]
    if isinstance(body, dict):
        given = body.get("data_urls")
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise ParametersRefused([uploads.problem(given, "is missing" if given is None else "is no list of texts")])
        sources = [(f"data_urls[{index}]", each) for index, each in enumerate(given)]
    else:
        fields = ((name, value if isinstance(value, Upload) else nameless_file(value)) for name, value in body)
        sources = [(name, file) for name, file in fields if file is not None]
    if not 1 <= len(sources) <= FILES_MAX:
        raise MalformedBody(f"the request has {len(sources)} files; allowed: 1 to {FILES_MAX}")
    return sources


async def _photos(sources: Sequence[tuple[str, str | Upload]], parts: Parts) -> list[tuple[Photo, str]]:
    """All of them, or all that is wrong."""
    photos: list[tuple[Photo, str]] = []
    problems: list[Problem] = []
    for where, source in sources:
        try:
            photos.append(await uploads.read(where, source, parts))
        except ParametersRefused as fault:
            problems += fault.problems
    if problems:
        raise ParametersRefused(problems)
    return photos


def _tag(key: str) -> str:
    """Of the file with this key: a key is written once, so it says which bytes these are as well as they would."""
    return f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'


def _is_known(etag: str, if_none_match: str) -> bool:
    """Whether the caller has this very file (RFC 9110, 13.1.2: tags are compared without their weakness)."""
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in known or "*" in known
