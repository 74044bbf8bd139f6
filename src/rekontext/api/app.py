"""The HTTP application, put together from explicit parts. It reads no settings and starts nothing by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from fastapi import FastAPI

from rekontext import __version__
from rekontext.api import errors, health, openapi, segmind
from rekontext.api.auth import Keys
from rekontext.api.edits import Edits
from rekontext.api.middleware import BodyLimit, RequestIds
from rekontext.api.orders import OrderReader
from rekontext.contract import Fleet
from rekontext.pictures import CodecThreads, PhotoReader

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_TITLE: Final = "Rekontext"
_OPENAPI_URL: Final = "/openapi.json"


def create_app(
    *,
    edits: Edits,
    keys: Keys,
    fleet: Fleet,
    photos: PhotoReader,
    threads: CodecThreads,
    body_bytes_max: int,
    draw_seed: Callable[[], int],
    new_id: Callable[[], str],
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """The application with every surface.

    Args:
        edits: runs what the surfaces ask for.
        fleet: asked only what model it serves and whether it is ready.
        draw_seed, new_id: the sources of random seeds and of request ids.
        lifespan: opens and closes the parts, when the application is what owns them.
    """
    app = FastAPI(
        title=_TITLE,
        summary="FLUX.1 Kontext [dev] as an image-editing API on your own machines",
        version=__version__,
        openapi_url=_OPENAPI_URL,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # clients of these surfaces take a redirect for a success
        lifespan=lifespan,
    )
    errors.install(app)
    app.add_middleware(BodyLimit, bytes_max=body_bytes_max)
    app.add_middleware(RequestIds, new_id=new_id)  # added last, so it is the outer one

    orders = OrderReader(photos=photos, threads=threads, draw_seed=draw_seed, body_bytes_max=body_bytes_max)
    app.include_router(segmind.router(edits=edits, keys=keys, orders=orders, threads=threads))
    app.include_router(health.router(fleet))
    app.include_router(openapi.router(title=_TITLE, openapi_url=_OPENAPI_URL))
    openapi.mount_assets(app)
    return app
