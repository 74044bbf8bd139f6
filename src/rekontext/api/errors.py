"""Every failure -> its answer. The only file in which an error meets an HTTP status.

The body is always `{"error": sentence, "code": stable_code, "request_id": id}`, with `errors` beside them when
parameters are at fault. Clients of this surface show `error`; programs should branch on `code`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rekontext.api.auth import InvalidKey, MissingKey
from rekontext.api.bodies import MalformedBody, UnsupportedContentType
from rekontext.api.connection import CallerGone
from rekontext.api.edits import DeadlineExceeded, QueueFull, UnknownModel
from rekontext.api.health import NotReady
from rekontext.api.middleware import REQUEST_ID_HEADER, BodyTooLarge, request_id
from rekontext.api.orders import picture_problem
from rekontext.api.parameters import ParametersRefused, Problem
from rekontext.contract import EditRefused, EngineFault
from rekontext.pictures import PictureRefused, PictureTooLarge


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An answer that says what went wrong, before it is written as HTTP."""

    status: int
    code: str
    sentence: str
    problems: Sequence[Problem] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def failure_of(fault: Exception) -> Failure:
    """The answer that a failure gets. Whatever is not listed is our own fault, and its text stays with us."""
    match fault:
        case ParametersRefused():
            status = 413 if fault.code == PictureTooLarge.code else 400
            return Failure(status=status, code=fault.code, sentence=_sentence(str(fault)), problems=fault.problems)
        case PictureRefused():
            return failure_of(ParametersRefused([picture_problem(fault)]))
        case EditRefused():
            return Failure(status=400, code="edit_refused", sentence=_sentence(str(fault)))
        case MalformedBody():
            return Failure(status=400, code="malformed_body", sentence=_sentence(str(fault)))
        case MissingKey():
            return Failure(status=401, code="missing_api_key", sentence=str(fault))
        case InvalidKey():
            return Failure(
                status=401, code="invalid_api_key", sentence="Unauthorized. The key in x-api-key is invalid."
            )
        case UnknownModel():
            return Failure(status=404, code="unknown_model", sentence=_sentence(str(fault)))
        case BodyTooLarge():
            return Failure(status=413, code="body_too_large", sentence=_sentence(str(fault)))
        case UnsupportedContentType():
            return Failure(status=415, code="unsupported_content_type", sentence=_sentence(str(fault)))
        case QueueFull():
            retry = {"retry-after": str(fault.retry_after_s)}
            return Failure(status=429, code="queue_full", sentence=_sentence(str(fault)), headers=retry)
        case CallerGone():
            return Failure(status=499, code="caller_gone", sentence="The caller hung up.")
        case EngineFault():
            return Failure(
                status=500, code="engine_fault", sentence="The engine failed on this edit; it may be retried."
            )
        case NotReady():
            return Failure(status=503, code="not_ready", sentence=_sentence(str(fault)), headers={"retry-after": "1"})
        case DeadlineExceeded():
            return Failure(status=504, code="deadline_exceeded", sentence=_sentence(str(fault)))
        case HTTPException():
            return _routing_failure(fault)
        case _:
            return Failure(status=500, code="internal_error", sentence="Something failed here that should not have.")


def install(app: FastAPI) -> None:
    """Answer every failure of `app` in this file's words."""

    async def answer(request: Request, fault: Exception) -> Response:
        return error_answer(failure_of(fault), request_id(request.scope))

    for kind in _ANSWERED:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)  # outermost; the fault is raised on, for the log


def error_answer(failure: Failure, request_id: str) -> Response:
    document: dict[str, object] = {"error": failure.sentence, "code": failure.code, "request_id": request_id}
    if failure.problems:
        document["errors"] = [
            {"parameter": each.parameter, "value": each.value, "allowed": each.allowed} for each in failure.problems
        ]
    # Named here too: an answer to an unforeseen fault is sent from outside the middleware that names the others.
    headers = {**failure.headers, REQUEST_ID_HEADER: request_id}
    return Response(orjson.dumps(document), failure.status, headers=headers, media_type="application/json")


_ANSWERED: Final[tuple[type[Exception], ...]] = (
    ParametersRefused,
    PictureRefused,
    EditRefused,
    MalformedBody,
    MissingKey,
    InvalidKey,
    UnknownModel,
    BodyTooLarge,
    UnsupportedContentType,
    QueueFull,
    CallerGone,
    NotReady,
    DeadlineExceeded,
    HTTPException,
)


def _routing_failure(fault: HTTPException) -> Failure:
    headers = dict(fault.headers or {})
    match fault.status_code:
        case 404:
            return Failure(status=404, code="not_found", sentence="There is nothing at this path; /docs lists what is.")
        case 405:
            allowed = headers.get("Allow") or headers.get("allow", "another method")
            sentence = f"This path does not take this method; it takes {allowed}."
            return Failure(status=405, code="method_not_allowed", sentence=sentence, headers=headers)
        case status:
            return Failure(status=status, code=f"http_{status}", sentence=_sentence(fault.detail), headers=headers)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
