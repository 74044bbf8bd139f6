"""The playground at `/` and the console at `/console`: the files of `rekontext.web`, under its policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rekontext import web

_GZIP: Final = re.compile(r"\s*(x-)?gzip\s*(;.*)?")
_NOT_AT_ALL: Final = re.compile(r";\s*q\s*=\s*0(\.0*)?\s*(;|$)")
HEADERS: Final = {
    "content-security-policy": web.CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asked again each time, answered 304 by the file's own ETag
    "accept-ranges": "none",
}


def _whole(scope: Scope) -> Scope:
    """The request for the whole file. These are small, and Starlette refuses a bad range in words of its own."""
    return {**scope, "headers": [each for each in scope["headers"] if each[0] != b"range"]}


class _Files(StaticFiles):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_whole(scope), receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def mount(app: Starlette) -> None:
    """Serve the pages at their paths and what they need below `web.STATIC_PATH`."""
    app.router.routes += [_page("/", web.PLAYGROUND), _page("/console", web.CONSOLE)]
    app.router.routes += [_slashed("console"), _slashed("docs")]
    app.mount(web.STATIC_PATH, static(directory=web.STATIC), name="web")


def static(*, directory: Path | None = None, packages: list[str | tuple[str, str]] | None = None) -> ASGIApp:
    """Files for pages, under `HEADERS` and compressed."""
    return _Compressed(_Files(directory=directory, packages=packages))


class _Compressed:
    """Files for whoever takes gzip. To HEAD it says what it would to GET: Starlette's middleware takes "gzip;q=0" for a
    wish, and tells HEAD the length that the file has uncompressed."""

    def __init__(self, app: ASGIApp) -> None:
        self._gzip = GZipMiddleware(app, minimum_size=1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope.get("method") == "HEAD"

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        others = [each for each in scope["headers"] if each[0] != b"accept-encoding"]
        coding = b"gzip" if _takes_gzip(Headers(scope=scope)) else b"identity"
        asked = {**scope, "headers": [*others, (b"accept-encoding", coding)]} | ({"method": "GET"} if is_head else {})
        await self._gzip(asked, receive, send_head if is_head else send)


def _takes_gzip(headers: Headers) -> bool:
    codings = [each for line in headers.getlist("accept-encoding") for each in line.lower().split(",")]
    return any(_GZIP.fullmatch(each) and not _NOT_AT_ALL.search(each) for each in codings)


class _Page:
    """One file, at a path of its own."""

    def __init__(self, file: Path) -> None:
        self._files, self._name = _Files(directory=file.parent), file.name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._files.get_response(self._name, scope)
        await response(_whole(scope), receive, send)


def _page(path: str, file: Path) -> Route:
    return Route(path, _Compressed(_Page(file)), methods=["GET"], name="page")


def _slashed(name: str) -> Route:
    """Lead to a page whoever wrote a slash behind its name; below a proxy's prefix too, since the way is relative."""

    async def lead(_: Request) -> Response:
        return RedirectResponse(f"../{name}")

    return Route(f"/{name}/", lead)
