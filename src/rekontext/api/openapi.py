"""What the generated OpenAPI document can't know by itself: bodies, answers, headers; and a page to read it on."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from rekontext.api.parameters import schema

_ASSETS: Final = "/docs/assets"


class WrongParameter(BaseModel):
    parameter: str
    value: Any = Field(description="As given, cut short; null when it is missing.")
    allowed: str


class ErrorBody(BaseModel):
    """Every error, whatever its status."""

    error: str = Field(description="One sentence that says what is wrong.")
    code: str = Field(description="Stable, for programs.")
    request_id: str
    errors: list[WrongParameter] = Field(default=[], description="Every wrong parameter; only when some are.")


_EXAMPLE: Final = {
    "input_image": "https://example.com/photo.jpg",
    "prompt": "make it night",
    "seed": 42,
    "output_format": "webp",
}
_TEXT: Final = {"schema": {"type": "string"}}
_HEADERS: Final = {
    "x-request-id": {"description": "Name of this request.", **_TEXT},
    "x-generation-time": {"description": "Seconds of engine time.", **_TEXT},
    "x-seed-value": {"description": "The seed that was used.", **_TEXT},
    "x-output-metadata": {"description": 'JSON: {"width": …, "height": …}.', **_TEXT},
    "x-rekontext-model": {"description": "The model that answered.", **_TEXT},
    "x-rekontext-notice": {"description": "Sent when the small embedded model answered.", **_TEXT},
}
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}

REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema(as_form=False), "example": _EXAMPLE},
            "multipart/form-data": {"schema": schema(as_form=True)},
        },
    }
}
ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The edited picture.",
        "headers": _HEADERS,
        "content": {
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "image/webp": _BINARY,
            "application/json": {"schema": {"type": "object"}},
        },
    },
    400: {"model": ErrorBody, "description": "Parameters are wrong (all of them are listed), or the body is."},
    401: {"model": ErrorBody, "description": "No key, or a wrong one."},
    404: {"model": ErrorBody, "description": "No such model or path."},
    413: {"model": ErrorBody, "description": "The body, or the picture once unpacked, is too large."},
    415: {"model": ErrorBody, "description": "The body is neither JSON nor a multipart form."},
    429: {
        "model": ErrorBody,
        "description": "The queue is full.",
        "headers": {"retry-after": {"description": "Seconds to wait.", **_TEXT}},
    },
    500: {"model": ErrorBody, "description": "Our fault."},
    504: {"model": ErrorBody, "description": "The edit took too long."},
}


def router(*, title: str, openapi_url: str) -> APIRouter:
    """`/docs`, with its script and style served from here, so that reading it calls no other host."""
    routes = APIRouter(include_in_schema=False)
    page = get_swagger_ui_html(
        openapi_url=openapi_url,
        title=title,
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )

    @routes.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return page

    return routes


def mount_assets(app: Starlette) -> None:
    app.mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
