"""The OpenAPI description of the plain routes, which FastAPI doesn't see, and of the documents that they answer.

Knows no handler: the tests hold it against what is really served.
"""

from __future__ import annotations

from typing import Any, Final

from rekontext.contract import STEPS_MAX
from rekontext.jobs import State

_Schema = dict[str, Any]

_TEXT: Final[_Schema] = {"type": "string"}
_URL: Final[_Schema] = {"type": "string", "format": "uri"}
_NUMBER: Final[_Schema] = {"type": "number"}
_INTEGER: Final[_Schema] = {"type": "integer"}
_ERROR: Final[_Schema] = {"$ref": "#/components/schemas/ErrorBody"}


def _or_null(schema: _Schema) -> _Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: _Schema, *, required: tuple[str, ...] = ()) -> _Schema:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


_URLS: Final[_Schema] = dict.fromkeys(("poll_url", "status_url", "response_url", "cancel_url", "events_url"), _URL)
_STANDING: Final[_Schema] = {
    "request_id": _TEXT,
    "status": {"type": "string", "enum": [state.value for state in State]},
    "queue_position": _or_null(_INTEGER),
    "eta_seconds": _or_null(_NUMBER),
}
_METRICS: Final = _object(
    {
        "inference_time": _or_null(_NUMBER),
        "queue_time": _or_null(_NUMBER),
        "total_time": _or_null(_NUMBER),
        "retry_count": _INTEGER,
        "cost": _NUMBER,
        "remaining_credits": _NUMBER,
        "steps": _INTEGER,
        "passes": _INTEGER,
        "acceleration": _TEXT,
    }
)
_IMAGE: Final = _object(
    {
        "url": _URL,
        "content_type": _TEXT,
        "file_name": _TEXT,
        "file_size": _INTEGER,
        "width": _INTEGER,
        "height": _INTEGER,
    }
)

SUBMITTED: Final = _object(_STANDING | _URLS, required=(*_STANDING, *_URLS))
STATUS: Final = _object(
    _STANDING
    | {
        "progress": _or_null(_object({"step": _INTEGER, "steps": _INTEGER})),
        "cancel_requested": {"type": "boolean"},
        "error": _or_null(_TEXT),
        "code": _or_null(_TEXT),
        "metrics": _METRICS,
    }
    | _URLS,
    required=("request_id", "status"),
)
CANCELLED: Final = STATUS | {"properties": STATUS["properties"] | {"cancelled": {"type": "boolean"}}}
RESULT: Final = _object(
    {
        "status": _STANDING["status"],
        "request_id": _TEXT,
        "error": _or_null(_TEXT),
        "code": _TEXT,
        "output": _or_null(_URL),
        "images": {"type": "array", "items": _IMAGE},
        "seed": _INTEGER,
        "prompt": _TEXT,
        "timings": {"type": "object", "additionalProperties": _NUMBER},
        "metrics": _METRICS,
        "model": _TEXT,
        "notice": _TEXT,
    },
    required=("status", "request_id", "error", "metrics"),
)
INLINE: Final = RESULT | {"properties": RESULT["properties"] | {"status_url": _URL, "response_url": _URL}}


def headers(**said: str) -> _Schema:
    """The headers of an answer, each with what it says; underscores stand for dashes."""
    return {name.replace("_", "-"): {"description": text, "schema": _TEXT} for name, text in said.items()}


WHEN: Final = headers(
    x_eta_seconds="Seconds until the picture is there; missing where that isn't known.",
    x_queue_position="How many edits come before this one; missing where that isn't known.",
)


def _answer(description: str, schema: _Schema, content_type: str = "application/json") -> _Schema:
    return {"description": description, "content": {content_type: {"schema": schema}}}


def _parameter(name: str, where: str, schema: _Schema, description: str = "", *, is_required: bool = False) -> _Schema:
    is_required |= where == "path"
    return {"name": name, "in": where, "required": is_required, "schema": schema, "description": description}


_ID: Final = _parameter("id", "path", _TEXT, "The request_id that the submit answered.")
_STRANGERS: Final = {
    "401": _answer("No key, or a wrong one.", _ERROR),
    "403": _answer("The key lacks the scope.", _ERROR),
}
_UNABLE: Final = {"5XX": _answer("Our fault, or not now.", _ERROR)}
_REFUSED: Final = _STRANGERS | {"404": _answer("No such request.", _ERROR)} | _UNABLE
_KEYED: Final[_Schema] = {"tags": ["edits"], "security": [{"APIKeyHeader": []}]}


def _call(operation: str, summary: str, answers: _Schema, *more: _Schema) -> _Schema:
    """One operation on a job."""
    return _KEYED | {
        "operationId": operation,
        "summary": summary,
        "parameters": [_ID, *more],
        "responses": answers | _REFUSED,
    }


def _result(operation: str) -> _Schema:
    answers = {
        "200": _answer("COMPLETED.", RESULT),
        "202": _answer("Not yet; where it stands.", STATUS) | {"headers": WHEN},
        "422": _answer("FAILED or CANCELLED; it cost nothing.", RESULT),
    }
    return {"get": _call(operation, "What came of an edit", answers)}


PATHS: Final[_Schema] = {
    "/v2/requests/{id}/status": {
        "get": _call(
            "status",
            "Where an edit stands",
            {
                "200": _answer("QUEUED, PROCESSING or COMPLETED.", STATUS) | {"headers": WHEN},
                "422": _answer("FAILED or CANCELLED; it cost nothing.", STATUS),
            },
        )
    },
    "/v2/requests/{id}": _result("result"),
    "/v1/requests/{id}": _result("result_v1"),
    "/v2/requests/{id}/cancel": {
        "post": _call(
            "cancel",
            "Cancel an edit",
            {"200": _answer("Where it stands; `cancelled` is false if it had ended before.", CANCELLED)},
        )
    },
    "/v2/requests/{id}/events": {
        "get": _call(
            "events",
            "Follow an edit",
            {
                "200": _answer("Server-sent events up to `done`.", _TEXT, "text/event-stream"),
                "204": {"description": "Everything was heard already."},
                "400": _answer("`previews` is wrong.", _ERROR),
            },
            _parameter("Last-Event-ID", "header", _TEXT, "Go on after this event."),
            _parameter(
                "previews",
                "query",
                {"type": "integer", "minimum": 0, "maximum": STEPS_MAX},
                "Only previews of steps that this divides; 0 for none.",
            ),
        )
    },
    "/files/{key}": {
        "get": {
            "tags": ["files"],
            "operationId": "file",
            "summary": "Open a link",
            "description": "Made by other answers; takes no key.",
            "parameters": [
                _parameter("key", "path", _TEXT, "May have slashes in it."),
                _parameter("expires", "query", _TEXT, is_required=True),
                _parameter("signature", "query", _TEXT, is_required=True),
                _parameter("If-None-Match", "header", _TEXT),
            ],
            "responses": {
                "200": {
                    "description": "The file.",
                    "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
                },
                "304": {"description": "The caller has it already."},
                "403": _answer("Forged or expired.", _ERROR),
                "404": _answer("Gone.", _ERROR),
                **_UNABLE,
            },
        }
    },
    "/metrics": {
        "get": {
            "tags": ["health"],
            "operationId": "metrics",
            "summary": "Figures for Prometheus",
            "description": "From other machines with a key of the scope admin.",
            "security": [{}, {"APIKeyHeader": []}],
            "responses": {"200": _answer("Prometheus text.", _TEXT, "text/plain")} | _STRANGERS | _UNABLE,
        }
    },
}
