"""The HTTP application, put together from explicit parts. It reads no settings and starts nothing by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from fastapi import FastAPI

from rekontext import __version__
from rekontext.api import answers, console, dialects, errors, files, health, metrics, openapi, sdk, segmind, web
from rekontext.api.metrics import Metrics
from rekontext.api.middleware import BodyLimit, HeadAsGet, NotKept, OpenToPages, RequestIds, Sight, WholeTargets
from rekontext.api.parts import Parts
from rekontext.api.requests import RequestRoutes
from rekontext.api.room import BodyRoom, RoomForBodies

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_TITLE: Final = "Rekontext"
_OPENAPI_URL: Final = "/openapi.json"
_FOR_PAGES: Final = (
    "/v1/",
    "/v2/",
    "/upload-asset",
    "/files/",
    "/inference-model-information/",
    "/inference-request/",
    "/webhook/",
    "/api/auth/",
    "/hf/",
    "/fal/",
)
"""The surfaces. Not the console's, which has a page of its own, nor `/metrics`, which asks this machine for no key."""


def create_app(parts: Parts, *, metrics_of: Metrics, lifespan: Lifespan | None = None) -> FastAPI:
    """The application with every surface.

    Args:
        lifespan: opens and closes the parts, when the application is what owns them.
    """
    app = FastAPI(
        title=_TITLE,
        summary="FLUX.1 Kontext [dev] as an image-editing API on your own machines",
        version=__version__,
        openapi_url=_OPENAPI_URL,
        openapi_tags=[{"name": "edits"}, {"name": "files"}],  # what most come for stands first
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # clients of these surfaces take a redirect for a success
        lifespan=lifespan,
    )
    errors.install(app, parts.origins, dialects=dialects.DIALECTS)
    app.add_middleware(
        BodyLimit,
        bytes_max=parts.limits.body_bytes_max,
        others={files.SENT_LORAS: parts.limits.lora_bytes_max},
    )
    app.add_middleware(RoomForBodies, room=BodyRoom(bytes_max=parts.limits.bodies_bytes_max), besides=files.SENT_LORAS)
    app.add_middleware(NotKept)
    app.add_middleware(OpenToPages, prefixes=_FOR_PAGES, headers=answers.HEADERS)
    app.add_middleware(Sight, answered=metrics_of.answered, client_of=parts.origins.client_of)
    app.add_middleware(RequestIds, new_id=parts.ids)
    app.add_middleware(HeadAsGet)
    app.add_middleware(WholeTargets)  # added last, so it is the outermost

    # The fixed paths first: the surface ends in /v1/{slug}, which takes what is left.
    app.router.routes += RequestRoutes(parts).routes()
    app.router.routes += [files.link_route(parts), metrics.route(parts, metrics_of)]
    # FastAPI would make the routes of a router that is included a second time, at the first request.
    app.router.routes += files.router(parts).routes
    app.router.routes += sdk.router(parts).routes
    app.router.routes += console.router(parts).routes
    app.router.routes += dialects.routes(parts)
    app.router.routes += segmind.router(parts).routes
    app.router.routes += health.router(parts.fleet, parts.database, parts.disk).routes
    app.router.routes += openapi.router(title=_TITLE, openapi_url=_OPENAPI_URL).routes
    openapi.mount_assets(app)
    openapi.describe(app)
    web.mount(app)
    return app
