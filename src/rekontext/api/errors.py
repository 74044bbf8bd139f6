"""Every failure of a request -> its answer. What can't become a request is answered in http1.py, in the same form.

The body is `{"error": sentence, "code": stable_code, "request_id": id}`, with `errors` beside them when parameters
are at fault. Clients of this surface show `error`; programs should branch on `code`. Other vendors' clients are
answered in their own dialect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from rekontext.accounts import (
    AccountRefused,
    AccountUnknown,
    Allowance,
    CorrectionTooLarge,
    InsufficientCredits,
    KeyRefused,
    KeyUnknown,
    NameTaken,
    PepperChanged,
    RateLimited,
    SpendCapReached,
    TooManyKeys,
)
from rekontext.api.answers import allowance
from rekontext.api.auth import MissingKey
from rekontext.api.bodies import MalformedBody, UnsupportedContentType
from rekontext.api.brought import TooManyLoras
from rekontext.api.connection import CallerGone
from rekontext.api.documents import as_sentence
from rekontext.api.edits import (
    AcceptInDoubt,
    Busy,
    DeadlineExceeded,
    InvalidIdempotencyKey,
    JobCancelled,
    JobFailed,
    NotReady,
    ResultOutOfReach,
    UnknownModel,
)
from rekontext.api.links import FileGone
from rekontext.api.middleware import REQUEST_ID_HEADER, BodyTooLarge, Unforeseen, note, request_id
from rekontext.api.orders import picture_problem
from rekontext.api.origins import Origins
from rekontext.api.problems import ParametersRefused, Problem, quoted, shown
from rekontext.api.room import BodiesFull, TooManyBodies
from rekontext.api.vocabulary import Vocabulary
from rekontext.contract import EditRefused, EngineFault, LoRARefused
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import (
    AssetUnknown,
    IdempotencyKeyReused,
    JobRefused,
    JobUnknown,
    LoraUnknown,
    TooManyMessages,
    UploadsFull,
    WebhookRefused,
    WebhookUnknown,
)
from rekontext.masks import MaskRefused
from rekontext.pictures import LinkRefused, PictureRefused, PictureTooLarge, StoreUnavailable
from rekontext.safety import PictureWithheld

_OURS: Final = Vocabulary()
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An answer that says what went wrong, before it is written as HTTP.

    Attributes:
        job: the job that the answer is about, if its result is still to come: the body then says where.
        not_ready: what is not there (yet), by name.
    """

    status: int
    code: str
    sentence: str
    problems: Sequence[Problem] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    job: str | None = None
    not_ready: Sequence[str] = ()


class Dialect(Protocol):
    """How the clients of another vendor are told what went wrong."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What they call our parameters."""
        ...

    def is_spoken(self, request: Request) -> bool:
        """Whether this request comes from one of them."""
        ...

    def refusal(self, failure: Failure, request_id: str) -> Response:
        """A failure, under their names, as they read one."""
        ...


_Answer = Callable[[Any], Failure]
_NONE: Final[Mapping[str, str]] = {}


def failure_of(fault: Exception) -> Failure:
    """The answer that a failure gets. Whatever is not listed is our own fault, and its text stays with us."""
    for kind in type(fault).__mro__:
        if kind in _ANSWERS:
            return _ANSWERS[kind](fault)
    return Failure(status=500, code="internal_error", sentence="Something failed here that should not have.")


def told(fault: Exception, vocabulary: Vocabulary = _OURS) -> Failure:
    """The answer to a caller who has these words for our parameters. What the caller isn't told goes to the log."""
    away = fault.__cause__ if isinstance(fault, ResultOutOfReach) else fault
    if isinstance(away, StoreUnavailable):  # which folder or host
        _log.error("store_unavailable", fault=str(away))
    if isinstance(fault, EngineFault):
        _log.error("engine_fault", fault=str(fault))
    failure = failure_of(fault)
    if not failure.problems or vocabulary is _OURS:
        return failure
    problems = [vocabulary.theirs(each) for each in failure.problems]
    return replace(failure, problems=problems, sentence=as_sentence(str(ParametersRefused(problems))))


def install(app: FastAPI, origins: Origins, *, dialects: Sequence[Dialect]) -> None:
    """Answer every failure of `app`. Before any middleware is added: its own is the innermost.

    Args:
        dialects: the first that a request is spoken in answers it; where none is, the answer is our own.
    """

    async def answer(request: Request, fault: Exception) -> Response:
        if isinstance(fault, HTTPException) and fault.status_code == 404:
            fault = HTTPException(404, str(shown(request.url.path)))
        if isinstance(fault, HTTPException) and fault.status_code == 405:
            fault = HTTPException(405, headers={"Allow": ", ".join(_methods_at(request))})
        if isinstance(fault, DataError):  # should it ever be our own value, the log tells
            _log.warning("value_refused_by_database", reason=str(fault.orig))
        dialect = next((each for each in dialects if each.is_spoken(request)), None)
        failure = told(fault, _OURS if dialect is None else dialect.vocabulary)
        note(request.scope, code=failure.code)
        name = request_id(request.scope)
        if dialect is None:
            return error_answer(failure, name, origins.of(request))
        response = dialect.refusal(failure, name)
        response.headers[REQUEST_ID_HEADER] = name  # as in `error_answer`
        return response

    for kind in _ANSWERS:
        app.add_exception_handler(kind, answer)
    app.add_middleware(Unforeseen, answer=answer)
    app.add_exception_handler(Exception, answer)  # outermost, for faults of the middleware itself


def _methods_at(request: Request) -> list[str]:
    """What the path of a request takes. The router names the methods of one route only, static files none."""

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    if "app_root_path" in request.scope:  # below a mount, where there are static files
        return ["HEAD", "GET"]
    methods = [method for method in ("GET", "POST", "PUT", "PATCH", "DELETE") if takes(method)]
    return ["HEAD", *methods] if "GET" in methods else methods


def error_answer(failure: Failure, request_id: str, origin: str) -> Response:
    document: dict[str, object] = {"error": failure.sentence, "code": failure.code, "request_id": request_id}
    if failure.problems:
        document["errors"] = [
            {"parameter": each.parameter, "value": each.value, "allowed": each.allowed, "reason": each.reason}
            for each in failure.problems
        ]
    if failure.not_ready:
        document["not_ready"] = list(failure.not_ready)
    if failure.job is not None:
        url = f"{origin}/v2/requests/{failure.job}"
        document |= {"status_url": f"{url}/status", "response_url": url}
    # Named here too: a fault of the middleware itself is answered from outside the one that names the others.
    headers = {**failure.headers, REQUEST_ID_HEADER: request_id}
    return Response(orjson.dumps(document), failure.status, headers=headers, media_type="application/json")


_AROUND: Final = re.compile(r"^([\w ]+ should (be|have)|must be) |(, unable| after validation).*")
"""What stands around the clause that says what would be right."""

_STORE_RETRY_S: Final = 10
_MESSAGES_RETRY_S: Final = 60
_BODIES_RETRY_S: Final = 5
_LORAS_RETRY_S: Final = 10

# For an edit that goes on or is done, or may be: a client that posts again by itself would order another one.
_DO_NOT_RETRY: Final[Mapping[str, str]] = {"x-should-retry": "false"}

_CHALLENGE: Final[Mapping[str, str]] = {"www-authenticate": "Bearer"}  # RFC 9110 asks a 401 to name its scheme


def _in_its_words(status: int, code: str | None = None, *, headers: Mapping[str, str] = _NONE) -> _Answer:
    """What a failure says itself, under its own code unless there is another."""

    def failure(fault: Any) -> Failure:
        sentence = as_sentence(str(fault))
        return Failure(status=status, code=fault.code if code is None else code, sentence=sentence, headers=headers)

    return failure


def _parameters(fault: ParametersRefused) -> Failure:
    status = 413 if fault.code == PictureTooLarge.code else 400
    return Failure(status=status, code=fault.code, sentence=as_sentence(str(fault)), problems=fault.problems)


def _picture(fault: PictureRefused) -> Failure:
    return _parameters(ParametersRefused([picture_problem(fault)]))


def _query(fault: RequestValidationError) -> Failure:
    return _parameters(ParametersRefused([_query_problem(error) for error in fault.errors()]))


def _missing_key(fault: MissingKey) -> Failure:
    return Failure(status=401, code="missing_api_key", sentence=str(fault), headers=_CHALLENGE)


def _rate_limited(fault: RateLimited) -> Failure:
    none_left = Allowance(limit=fault.limit, remaining=0, reset_at=fault.reset_at)
    headers = _retry(fault.retry_after_s) | allowance(none_left, reset_s=fault.retry_after_s)
    return Failure(status=429, code=fault.code, sentence=as_sentence(str(fault)), headers=headers)


def _busy(fault: Busy) -> Failure:
    return Failure(status=429, code=fault.code, sentence=as_sentence(str(fault)), headers=_retry(fault.retry_after_s))


def _caller_gone(_fault: CallerGone) -> Failure:
    return Failure(status=499, code="caller_gone", sentence="The caller hung up.")


def _engine(_fault: EngineFault) -> Failure:
    return Failure(status=500, code="engine_fault", sentence="The engine failed on this edit; it may be retried.")


def _not_ready(fault: NotReady) -> Failure:
    sentence = as_sentence(str(fault))
    return Failure(status=503, code="not_ready", sentence=sentence, headers=_retry(1), not_ready=fault.missing)


def _unfit(_fault: DataError) -> Failure:
    unfit = "A value in this request can't be stored or looked up; text must not have NUL characters in it."
    return Failure(status=400, code="invalid_parameters", sentence=unfit)


def _database(fault: DatabaseUnavailable) -> Failure:
    said, headers = "The database can't be reached just now; nothing was changed. Retry later.", _retry(1)
    if fault.is_in_doubt:
        headers |= _DO_NOT_RETRY
        said = "The database broke off just as it was written to: it may have happened. Look before you retry"
        said += ", or send the same Idempotency-Key." if isinstance(fault, AcceptInDoubt) else "."
    return Failure(status=503, code="database_unavailable", sentence=said, headers=headers)


def _store(_fault: StoreUnavailable) -> Failure:
    away = "The picture store is full or can't be reached just now; nothing was held or charged. Retry later."
    return Failure(status=503, code="store_unavailable", sentence=away, headers=_retry(_STORE_RETRY_S))


def _goes_on(status: int, code: str) -> _Answer:
    """Of an edit whose result is still to be had."""

    def failure(fault: ResultOutOfReach | DeadlineExceeded) -> Failure:
        sentence = as_sentence(str(fault))
        return Failure(status=status, code=code, sentence=sentence, headers=_DO_NOT_RETRY, job=fault.job)

    return failure


def _failed_job(fault: JobFailed) -> Failure:
    """How a job failed, to the caller who waited for it."""
    sentence, code = as_sentence(str(fault)), fault.job.error_code or "engine_fault"
    match code:
        case PictureRefused.code:
            reason = str(fault).removeprefix("input_image ").rstrip(".")
            problem = Problem(parameter="input_image", value=None, reason=reason, says_allowed=True, code=code)
            return _parameters(ParametersRefused([problem]))
        case EditRefused.code | LoRARefused.code | MaskRefused.code:
            return Failure(status=400, code=code, sentence=sentence)
        case PictureWithheld.code:
            return Failure(status=422, code=code, sentence=sentence)
        case "edit_timeout" | "queue_timeout":
            return Failure(status=504, code=code, sentence=sentence)
    return Failure(status=500, code=code, sentence=sentence)


def _query_problem(error: Mapping[str, object]) -> Problem:
    """What FastAPI found wrong with one value of a query or of a JSON body."""
    where = error["loc"]
    assert isinstance(where, tuple)
    name = ".".join(str(part) for part in where[1:]) or "body"
    reason = str(error["msg"]).removeprefix("Value error, ")
    reason = reason if reason[:2].isupper() else reason[:1].lower() + reason[1:]
    if error["type"] == "missing":
        return Problem(parameter=name, value=None, reason="is missing", says_allowed=True, allowed_text="a value")
    given = error["input"]
    allowed = _allowed(str(error["type"]), reason)
    reason = f"is {quoted(given)}: {reason}"
    return Problem(parameter=name, value=shown(given), reason=reason, says_allowed=True, allowed_text=allowed)


def _allowed(kind: str, reason: str) -> str:
    """What would be right, of what pydantic or a validator of ours says."""
    if kind == "extra_forbidden":
        return "no field of this name"
    if kind.startswith("date_"):
        return "a date, YYYY-MM-DD"
    if kind.startswith(("datetime_", "timezone_")):
        return "a moment with its offset, such as 2026-05-01T00:00:00+02:00"
    return _AROUND.sub("", reason)


def _retry(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}


def _routing_failure(fault: HTTPException) -> Failure:
    headers = dict(fault.headers or {})
    match fault.status_code:
        case 404:
            # Its path, since whoever has given a client a wrong address hasn't seen what that makes of it.
            sentence = f"There is nothing at {fault.detail}; /docs lists what is."
            return Failure(status=404, code="not_found", sentence=sentence)
        case 405:
            sentence = f"This path does not take this method; it takes {headers['Allow']}."
            return Failure(status=405, code="method_not_allowed", sentence=sentence, headers=headers)
        case status:
            return Failure(status=status, code=f"http_{status}", sentence=as_sentence(fault.detail), headers=headers)


_ANSWERS: Final[Mapping[type, _Answer]] = {
    ParametersRefused: _parameters,
    PictureRefused: _picture,
    RequestValidationError: _query,
    EditRefused: _in_its_words(400),
    InvalidIdempotencyKey: _in_its_words(400, "invalid_idempotency_key"),
    MalformedBody: _in_its_words(400, "malformed_body"),
    DataError: _unfit,
    WebhookRefused: _in_its_words(400),
    MissingKey: _missing_key,
    KeyRefused: _in_its_words(401, headers=_CHALLENGE),
    AccountRefused: _in_its_words(403),
    JobRefused: _in_its_words(403),
    LinkRefused: _in_its_words(403, "link_refused"),
    UnknownModel: _in_its_words(404, "unknown_model"),
    FileGone: _in_its_words(404, "file_gone"),
    AccountUnknown: _in_its_words(404),
    KeyUnknown: _in_its_words(404),
    AssetUnknown: _in_its_words(404),
    LoraUnknown: _in_its_words(404),
    JobUnknown: _in_its_words(404),
    WebhookUnknown: _in_its_words(404),
    InsufficientCredits: _in_its_words(406),
    SpendCapReached: _in_its_words(406),
    JobCancelled: _in_its_words(409, "cancelled"),
    CorrectionTooLarge: _in_its_words(409),
    NameTaken: _in_its_words(409),
    TooManyKeys: _in_its_words(409),
    UploadsFull: _in_its_words(409),
    IdempotencyKeyReused: _in_its_words(409),
    BodyTooLarge: _in_its_words(413, "body_too_large"),
    TooManyLoras: _in_its_words(429, headers=_retry(_LORAS_RETRY_S)),
    TooManyBodies: _in_its_words(429, headers=_retry(_BODIES_RETRY_S)),
    BodiesFull: _in_its_words(503, headers=_retry(_BODIES_RETRY_S)),
    UnsupportedContentType: _in_its_words(415, "unsupported_content_type"),
    Busy: _busy,
    RateLimited: _rate_limited,
    TooManyMessages: _in_its_words(429, headers=_retry(_MESSAGES_RETRY_S)),
    CallerGone: _caller_gone,
    JobFailed: _failed_job,
    EngineFault: _engine,
    NotReady: _not_ready,
    PepperChanged: _in_its_words(503),  # ours, not the caller's: keys were reset under another secret while we run
    DatabaseUnavailable: _database,
    StoreUnavailable: _store,
    ResultOutOfReach: _goes_on(503, "store_unavailable"),
    DeadlineExceeded: _goes_on(504, "deadline_exceeded"),
    HTTPException: _routing_failure,
}
"""How each kind is answered: of a failure's class and those that it is made from, the nearest that is here."""
