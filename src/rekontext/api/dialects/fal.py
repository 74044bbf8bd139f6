"""fal's dialect, all of it under `/fal`: calls that wait, a queue, streams, and one path that takes them all.

Its clients have a host for each of these; here each host is a folder. Uploads are in fal_uploads.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import wraps
from typing import Final
from urllib.parse import unquote, urlsplit

import orjson
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from rekontext.accounts import Scope
from rekontext.api import answers, sse, surfaces
from rekontext.api.auth import Caller
from rekontext.api.dialects import fal_uploads, terms
from rekontext.api.dialects.fal_documents import TARGET, refused, result_of, status_of
from rekontext.api.dialects.fal_order import VOCABULARY, read
from rekontext.api.documents import Documents, code
from rekontext.api.edits import (
    Busy,
    DeadlineExceeded,
    JobCancelled,
    JobFailed,
    ResultOutOfReach,
    Submitted,
    UnknownModel,
)
from rekontext.api.errors import Failure, told
from rekontext.api.links import FileGone
from rekontext.api.middleware import note
from rekontext.api.parts import Parts
from rekontext.api.problems import ParametersRefused
from rekontext.database import DatabaseUnavailable, JobId
from rekontext.jobs import Job, State

APP: Final = "fal-ai/flux-kontext"
"""By which its requests are asked for; its clients leave out what follows in the name of the endpoint."""
ENDPOINT: Final = f"{APP}/dev"
WITH_LORAS: Final = f"{APP}-lora"
"""The vendor's endpoint that takes them, and its app; here they are the same."""
WITH_MASKS: Final = f"{WITH_LORAS}/inpaint"
REQUEST_ID: Final = "x-fal-request-id"
_ROOT: Final = "/fal/"
_RUN: Final = "/fal/run"
_QUEUE: Final = "/fal/queue"
_REQUEST: Final = f"{_QUEUE}/{{owner}}/{{alias}}/requests/{{id}}"
_PROXY: Final = "/fal/proxy"
_HOSTS: Final[Mapping[str, str]] = {
    "fal.run": _RUN,
    "queue.fal.run": _QUEUE,
    "rest.fal.ai": fal_uploads.REST,
    "rest.alpha.fal.ai": fal_uploads.REST,  # of the JavaScript client's older releases
    "v3.fal.media": fal_uploads.CDN,
}
_Handler = Callable[[Request], Awaitable[Response]]


class Fal:
    """The dialect, as `fal-client` and `@fal-ai/client` speak it."""

    name: Final = "fal"
    vocabulary: Final = VOCABULARY

    def is_spoken(self, request: Request) -> bool:
        """By its path."""
        return str(request.scope["path"]).startswith(_ROOT)

    def refusal(self, failure: Failure, request_id: str) -> Response:
        """`detail` is what the Python client shows, `message` what the JavaScript one does."""
        status = status_of(failure)
        headers = {**failure.headers, REQUEST_ID: request_id, "x-fal-error-type": failure.code}
        if status == 504:
            headers["x-fal-request-timeout-type"] = "user"  # else one client orders the edit again by itself
        return answers.json_answer(refused(failure, request_id), status=status, headers=headers)

    def message(self, documents: Documents, job: Job) -> Mapping[str, object]:
        """The result, or what asking for it would say; the picture is behind a link in any case."""
        document: dict[str, object] = {"request_id": job.id, "gateway_request_id": job.id}
        if job.state is State.COMPLETED:
            result = result_of(documents, job, str(job.parameters["origin"]))
            return document | {"status": "OK", "payload": result, "error": None}
        failure = self._failure_of(job)
        return document | {"status": "ERROR", "payload": refused(failure, job.id), "error": failure.sentence}

    def routes(self, parts: Parts) -> list[BaseRoute]:
        """The vendor's paths."""

        async def fal_run_edit(request: Request) -> Response:
            caller, submitted, headers = await self._submit(request, parts)
            done = await surfaces.wait(request, caller, submitted, parts)
            result = await _whole_result(done.job, request, parts)
            return answers.json_answer(result, headers=headers | answers.facts(done.job, done.balance))

        async def fal_stream_run(request: Request) -> Response:
            caller, submitted, headers = await self._submit(request, parts)
            job = submitted.job.id
            frames = self._until_closing(self._steps(request, caller, job, parts), job, parts)
            hung_up = BackgroundTask(surfaces.abandon, request, caller, job, parts)  # of one that has ended: nothing
            return _stream(frames, headers, afterwards=hung_up)

        async def fal_submit_request(request: Request) -> Response:
            caller, submitted, headers = await self._submit(request, parts)
            return answers.json_answer(await self._status(request, caller, submitted.job.id, parts), headers=headers)

        async def fal_get_status(request: Request) -> Response:
            caller, job = await _asked(request, "read", parts)
            return answers.json_answer(await self._status(request, caller, job, parts), headers=_named(job))

        async def fal_stream_status(request: Request) -> Response:
            caller, job = await _asked(request, "read", parts)
            await parts.desk.job(job, account=caller.account)  # an unknown one is a 404, not a stream that breaks off
            frames = sse.stream(self._statuses(request, caller, job, parts), closing=parts.closing)
            return _stream(frames, _named(job))

        async def fal_get_result(request: Request) -> Response:
            caller, name = await _asked(request, "read", parts)
            job = await parts.desk.job(name, account=caller.account)
            if not job.state.is_terminal:
                waits = Failure(status=400, code="in_progress", sentence="Request is still in progress.")
                return self._refused(request, waits, job.id)
            if job.state is not State.COMPLETED:
                return self._refused(request, self._failure_of(job), job.id)
            return answers.json_answer(await _whole_result(job, request, parts), headers=_named(job.id))

        async def fal_cancel_request(request: Request) -> Response:
            caller, name = await _asked(request, "edit", parts)
            job = await parts.desk.job(name, account=caller.account)
            if not job.state.is_terminal:
                job = await parts.desk.cancel(name, account=caller.account)
                if job.is_cancelled:
                    asked = {"status": "CANCELLATION_REQUESTED"}
                    return answers.json_answer(asked, status=202, headers=_named(name))
            ended = refused(Failure(status=400, code="ended", sentence="The request has ended already."), name)
            return answers.json_answer(ended | {"status": "ALREADY_COMPLETED"}, status=400, headers=_named(name))

        own = [
            Route(f"{_RUN}/{{app:path}}/stream", fal_stream_run, methods=["POST"]),
            Route(f"{_RUN}/{{app:path}}", fal_run_edit, methods=["POST"]),
            Route(f"{_REQUEST}/status/stream", fal_stream_status),
            Route(f"{_REQUEST}/status", _patient(fal_get_status)),
            Route(f"{_REQUEST}/cancel", _patient(fal_cancel_request), methods=["PUT"]),
            Route(_REQUEST, _patient(fal_get_result)),
            Route(f"{_QUEUE}/{{app:path}}", fal_submit_request, methods=["POST"]),
            *fal_uploads.routes(parts),
        ]
        called = Router(own, redirect_slashes=False)

        async def fal_proxy(request: Request) -> ASGIApp:
            """Each of the others, by the URL that it would have at the vendor's. That is read, never called."""
            await parts.caller(request, None)  # each of them asks for what it needs
            request.scope.update(_target(request.headers.get(TARGET)))
            return called

        return [*own, Route(_PROXY, fal_proxy, methods=["GET", "POST", "PUT"])]

    async def _submit(self, request: Request, parts: Parts) -> tuple[Caller, Submitted, dict[str, str]]:
        """A new job, whose it is, and the headers that tell of it."""
        caller = await parts.caller(request, "edit")
        _check_app(request.path_params["app"], known=(ENDPOINT, WITH_LORAS, WITH_MASKS))
        allowed = await parts.edits.allow(caller)
        body = await parts.orders.json(request)
        asked = read(
            body,
            webhook=request.query_params.get("fal_webhook"),
            priority=request.headers.get("x-fal-queue-priority", ""),
        )
        remembered = {"name": self.name, "is_inline": asked.is_inline}
        draft = await terms.draft_of(asked, parts.orders, dialect=remembered)
        submitted = await surfaces.submit(request, caller, draft, parts)
        return caller, submitted, surfaces.headers(submitted, allowed, parts) | _named(submitted.job.id)

    async def _status(self, request: Request, caller: Caller, job: JobId, parts: Parts) -> dict[str, object]:
        """Where a job stands. There are three words for that: one that failed is COMPLETED, too."""
        standing = await parts.desk.standing(job, account=caller.account)
        found = standing.job
        url = f"{parts.origins.of(request)}{_QUEUE}/{APP}/requests/{job}"
        document: dict[str, object] = {
            "status": "COMPLETED" if found.state.is_terminal else "IN_PROGRESS",
            "request_id": job,
            "response_url": url,
            "status_url": f"{url}/status",
            "cancel_url": f"{url}/cancel",
            "logs": [],  # programs go through them unasked
            "metrics": {"inference_time": found.inference_s} if found.state.is_terminal else {},
        }
        if found.state is State.QUEUED:
            estimate = parts.forecast.of_job(found, ahead=standing.ahead)
            place = standing.ahead or 0 if estimate is None else estimate.position
            return document | {"status": "IN_QUEUE", "queue_position": place}
        why = terms.why(found, self.vocabulary)
        return document if why is None else document | {"error": why, "error_type": code(found)}

    async def _statuses(
        self, request: Request, caller: Caller, job: JobId, parts: Parts
    ) -> AsyncGenerator[bytes, None]:
        """Each change of a job's status, up to its end."""
        last = None
        async for event in parts.desk.listen(job, account=caller.account):
            if event.kind in ("queued", "processing", "ended"):
                document = await self._status(request, caller, job, parts)
                if document != last:
                    yield _frame(document)
                last = document

    async def _steps(self, request: Request, caller: Caller, job: JobId, parts: Parts) -> AsyncGenerator[bytes, None]:
        """Each step of a job, then its result, or what asking for that would say."""
        async for event in parts.desk.listen(job, account=caller.account):
            if event.kind == "progress":
                yield _frame({"request_id": job, **sse.progress(event), "status": "IN_PROGRESS"})
            elif event.kind == "ended":
                yield _frame(await self._end(request, caller, job, parts))

    async def _end(self, request: Request, caller: Caller, job: JobId, parts: Parts) -> dict[str, object]:
        """The result of a job that has ended, or why there is none (now): a stream that breaks off says nothing."""
        try:
            found = await parts.desk.job(job, account=caller.account)
            if found.state is not State.COMPLETED:
                return refused(self._failure_of(found), job)
            return await _whole_result(found, request, parts)
        except DatabaseUnavailable:
            return refused(told(ResultOutOfReach(job), self.vocabulary), job)
        except (FileGone, ResultOutOfReach) as fault:
            return refused(told(fault, self.vocabulary), job)

    async def _until_closing(
        self, frames: AsyncGenerator[bytes, None], job: JobId, parts: Parts
    ) -> AsyncGenerator[bytes, None]:
        """All frames of a job, or that it goes on: clients take the last frame for the result."""
        async with aclosing(sse.stream(frames, closing=parts.closing)) as heard:
            async for frame in heard:
                yield frame
        newest = parts.desk.newest(job)
        if newest is None or newest.kind != "ended":
            yield _frame(refused(told(DeadlineExceeded(job, deadline_s=None), self.vocabulary), job))

    def _refused(self, request: Request, failure: Failure, job: JobId) -> Response:
        """A failure that is the answer which was asked for."""
        note(request.scope, code=failure.code)
        return self.refusal(failure, job)

    def _failure_of(self, job: Job) -> Failure:
        """Why a job that has ended has no result."""
        fault = JobCancelled(job) if job.state is State.CANCELLED else JobFailed(job)
        return told(fault, self.vocabulary)


def _patient(handler: _Handler) -> _Handler:
    """A call that may be repeated, while the database is away: after a 503 the Python client gives its edit up."""

    @wraps(handler)
    async def asked_again(request: Request) -> Response:
        try:
            return await handler(request)
        except DatabaseUnavailable as fault:
            away = told(fault)
            raise Busy(away.sentence, code=away.code, retry_after_s=1) from fault

    return asked_again


async def _asked(request: Request, scope: Scope, parts: Parts) -> tuple[Caller, JobId]:
    """Who asks, and for which job."""
    caller = await parts.caller(request, scope)
    named = request.path_params
    _check_app(f"{named['owner']}/{named['alias']}", known=(APP, WITH_LORAS))
    return caller, JobId(named["id"])


def _check_app(app: str, *, known: Sequence[str]) -> None:
    if app not in known:
        raise UnknownModel(app, known=known[:1])


def _target(url: str | None) -> dict[str, object]:
    """Where a request is to go, as ASGI says it.

    Raises:
        ParametersRefused: to none of the vendor's hosts that are known here.
    """
    try:
        parts = urlsplit(url or "")
    except ValueError:
        parts = urlsplit("")
    folder = _HOSTS.get(parts.netloc) if parts.scheme == "https" else None
    if folder is None:
        reason = "is missing" if url is None else "is no URL that is answered here"
        hosts = f"an https URL at {', '.join(_HOSTS)}"
        raise ParametersRefused([terms.problem(TARGET, url, reason, allowed=hosts)])
    path = f"{folder}{parts.path}"
    return {"path": unquote(path), "raw_path": path.encode(), "query_string": parts.query.encode()}


async def _whole_result(job: Job, request: Request, parts: Parts) -> dict[str, object]:
    """The result of a job that has ended well, with the picture in it where its caller asked for that.

    Raises:
        ResultOutOfReach, FileGone: there is no picture (now, or any more).
    """
    if not parts.documents.hands_out(job):
        raise FileGone
    result = result_of(parts.documents, job, parts.origins.of(request))
    if terms.remembered(job).get("is_inline") and job.outputs:
        result["images"] = await parts.threads.run(answers.inline, job, await surfaces.pictures_of(job, parts))
    return result


def _named(job: JobId) -> dict[str, str]:
    return {REQUEST_ID: job}


def _frame(document: Mapping[str, object]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(document)


def _stream(
    frames: AsyncGenerator[bytes, None], headers: Mapping[str, str], *, afterwards: BackgroundTask | None = None
) -> Response:
    return StreamingResponse(
        frames, media_type=sse.MEDIA_TYPE, headers={**sse.HEADERS, **headers}, background=afterwards
    )
