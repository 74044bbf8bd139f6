"""What the generated OpenAPI document can't know by itself: bodies, answers, headers; and a page to read it on."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.responses import HTMLResponse

from rekontext.api import plain, web
from rekontext.api.parameters import FILES_MAX, schema
from rekontext.web import CONTENT_SECURITY_POLICY

_ASSETS: Final = "/docs/assets"


class WrongParameter(BaseModel):
    parameter: str
    value: Any = Field(description="As given, cut short; null when it is missing.")
    allowed: str
    reason: str = Field(description="What is wrong, as a clause that follows the parameter's name.")


class ErrorBody(BaseModel):
    """Every error, whatever its status."""

    error: str = Field(description="One sentence that says what is wrong.")
    code: str = Field(description="Stable, for programs.")
    request_id: str
    errors: list[WrongParameter] = Field(default=[], description="Every wrong parameter; only when some are.")
    not_ready: list[str] = Field(default=[], description="What isn't there yet; only with the code not_ready.")
    status_url: str | None = Field(default=None, description="Only where the edit that it is about goes on or is done.")
    response_url: str | None = Field(default=None, description="The same: where its result will be.")


_EXAMPLE: Final = {
    "input_image": "https://example.com/photo.jpg",
    "prompt": "make it night",
    "seed": 42,
    "output_format": "webp",
}
_TEXT: Final = {"schema": {"type": "string"}}


_LIMITS: Final = plain.headers(
    ratelimit_limit="Requests per minute that this key may send.",
    ratelimit_remaining="How many of them are left.",
    ratelimit_reset="Seconds until the oldest request of the last minute no longer counts: then there is one more.",
    x_rate_limit_remaining="As ratelimit-remaining.",
    x_rate_limit_reset_at_utc="The moment that ratelimit-reset comes to.",
)
_SUBMITTED: Final = _LIMITS | plain.headers(
    x_request_id="Name of this request and of its job.",
    x_remaining_credits="US dollars that are left.",
    idempotency_replayed="true when an earlier request made this job.",
)
_FACTS: Final = _SUBMITTED | plain.headers(
    x_generation_time="Seconds of engine time.",
    x_cost="US dollars.",
    x_seed_value="The seed that was used.",
    x_output_metadata='JSON: {"width": …, "height": …}.',
    x_rekontext_model="The model that answered.",
    x_rekontext_notice="Sent when the small embedded model answered.",
)
_FILES: Final = {"minItems": 1, "maxItems": FILES_MAX}
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}

REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema(as_form=False), "example": _EXAMPLE},
            "multipart/form-data": {"schema": schema(as_form=True)},
        },
    },
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "The same key with the same body is the same job, charged once.",
            **_TEXT,
        }
    ],
}
_REFUSED: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorBody, "description": "Parameters are wrong (all of them are listed), or the body is."},
    401: {"model": ErrorBody, "description": "No key, or a wrong one."},
    403: {"model": ErrorBody, "description": "The key is not good for this."},
    404: {"model": ErrorBody, "description": "No such model or path."},
    406: {"model": ErrorBody, "description": "Not enough credits."},
    409: {"model": ErrorBody, "description": "The Idempotency-Key came with another body, or the edit was cancelled."},
    413: {"model": ErrorBody, "description": "The body, or the picture once unpacked, is too large."},
    415: {"model": ErrorBody, "description": "The body is neither JSON nor a multipart form."},
    429: {
        "model": ErrorBody,
        "description": "Too many requests or unfinished edits.",
        "headers": plain.headers(retry_after="Seconds to wait."),
    },
    500: {"model": ErrorBody, "description": "Our fault."},
    503: {"model": ErrorBody, "description": "Not now."},
}
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "Refused; the code in the body says why."},
    "5XX": {"model": ErrorBody, "description": "Our fault, or not now."},
}
WAITED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The edited picture.",
        "headers": _FACTS,
        "content": {
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "image/webp": _BINARY,
            "application/json": {"schema": plain.INLINE},
        },
    },
    **_REFUSED,
    422: {"model": ErrorBody, "description": "The server's safety check withholds the picture; it cost nothing."},
    504: {"model": ErrorBody, "description": "The edit takes too long to wait for; the body says where it will be."},
}
SUBMITTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The job: where to ask for its status, its result and its events.",
        "headers": _SUBMITTED | plain.WHEN,
        "content": {"application/json": {"schema": plain.SUBMITTED}},
    },
    **_REFUSED,
}


UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["data_urls"],
                    "properties": {
                        "data_urls": {"type": "array", "items": {"type": "string", "pattern": "^data:"}} | _FILES
                    },
                }
            },
            "multipart/form-data": {  # a field may have any name
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": _BINARY["schema"]} | _FILES},
                    "additionalProperties": _BINARY["schema"],
                }
            },
        },
    }
}
LORA: Final[dict[str, Any]] = {"requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}}}
LORA_KEPT: Final[dict[int | str, dict[str, Any]]] = {
    status: answer for status, answer in _REFUSED.items() if status in (400, 401, 403, 413, 415, 429, 500, 503)
}
UPLOADED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Links to the pictures, in their order.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file_urls": {"type": "array", "items": {"type": "string"}},
                        "message": {"type": "string"},
                    },
                }
            }
        },
    },
    409: {"model": ErrorBody, "description": "The account keeps as many uploads as it may."},
    **LORA_KEPT,
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

    page.headers.update(web.HEADERS | {"content-security-policy": _policy(page.body)})

    @routes.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return page

    return routes


def _policy(page: bytes | memoryview) -> str:
    """The pages' own policy, and what this one needs besides: its one inline script, by its hash, and inline styles."""
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page), re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts]
    more = {"script-src": hashes, "style-src": ["'unsafe-inline'"]}
    rules = [rule.split() for rule in CONTENT_SECURITY_POLICY.split("; ")]
    return "; ".join(" ".join([*rule, *more.get(rule[0], [])]) for rule in rules)


def describe(app: FastAPI) -> None:
    """Add to the app's OpenAPI document what FastAPI doesn't see."""
    generate = app.openapi

    def whole() -> dict[str, Any]:
        document = generate()  # made once, and the same object each time
        document["paths"].update(plain.PATHS)
        return document

    app.openapi = whole  # type: ignore[method-assign]  # FastAPI's own way of extending it


def mount_assets(app: Starlette) -> None:
    app.mount(_ASSETS, web.static(packages=[("fastapi_offline", "static")]), name="docs-assets")
