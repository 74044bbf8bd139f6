"""Replicate's dialect: `POST /v1/models/{owner}/{name}/predictions`, then `GET /v1/predictions/{id}`.

A prediction is a job, and goes on when its caller hangs up. What is asked for beside them is in replicate_catalogue.py.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rekontext.api import answers, sse, surfaces
from rekontext.api.auth import Caller
from rekontext.api.connection import unless_gone
from rekontext.api.dialects import replicate_order, terms
from rekontext.api.dialects.replicate_catalogue import ONE_MODEL, Catalogue, named, page, served, version_id
from rekontext.api.dialects.replicate_order import MODEL, VOCABULARY, check_model, check_reference, told
from rekontext.api.documents import Documents, as_sentence, metrics
from rekontext.api.edits import ResultOutOfReach, Submitted
from rekontext.api.errors import Failure
from rekontext.api.links import FileGone
from rekontext.api.parts import Parts
from rekontext.contract import Progress
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job, State, queries
from rekontext.moments import moment

_PATHS: Final = re.compile(r"/v1/((predictions|files|account|webhooks)(/.*)?|models/[^/]+/.*)", re.DOTALL)
_AGENTS: Final = re.compile(r"(?i:(async)?replicate)[/-]")
_PREDICTIONS: Final = "/v1/predictions"
_PAGE: Final = 100
_HELD_S_MAX: Final = 55
"""Clients give up after a minute, and one of them then orders the edit again."""
_HIDDEN: Final = "hidden"
"""The vendor's word for a version that isn't told: while the model loads, nobody knows it."""
_METRICS: Final = {"predict_time": "inference_time", "total_time": "total_time"}


class Replicate:
    """The dialect, as the vendor's packages and the AI SDK's provider speak it."""

    name: Final = "replicate"
    vocabulary: Final = VOCABULARY

    def is_spoken(self, request: Request) -> bool:
        """By its path, or by its client, which shows no other error's sentence."""
        return _PATHS.fullmatch(request.scope["path"]) is not None or terms.is_sent_by(request, _AGENTS)

    def refusal(self, failure: Failure, request_id: str) -> Response:
        """As RFC 7807 has it."""
        status = terms.status_of(failure)
        document = {
            "title": failure.code.replace("_", " ").capitalize(),
            "detail": failure.sentence,
            "status": status,
            "code": failure.code,
            "request_id": request_id,
        }
        return answers.json_answer(document, status=status, headers=dict(failure.headers))

    def message(self, documents: Documents, job: Job) -> Mapping[str, object]:
        """The prediction, its picture behind a link."""
        return _with_link(documents, job, str(job.parameters["origin"]))

    def routes(self, parts: Parts) -> list[BaseRoute]:
        """The vendor's paths."""
        return [*_Predictions(parts, dialect=self.name).routes(), *Catalogue(parts).routes()]


class _Predictions:
    """The handlers, sharing their parts."""

    def __init__(self, parts: Parts, *, dialect: str) -> None:
        self._parts = parts
        self._dialect = dialect

    def routes(self) -> list[Route]:
        one = f"{_PREDICTIONS}/{{id}}"
        return [
            Route(f"{ONE_MODEL}/predictions", self.replicate_create_prediction, methods=["POST"]),
            Route(_PREDICTIONS, self.replicate_create_prediction, methods=["POST"]),
            Route(_PREDICTIONS, self.replicate_list_predictions),
            Route(one, self.replicate_get_prediction),
            Route(f"{one}/cancel", self.replicate_cancel_prediction, methods=["POST"]),
            Route(f"{one}/stream", self.replicate_stream_prediction),
        ]

    async def replicate_create_prediction(self, request: Request) -> Response:
        """Order an edit, and wait for its end as long as the caller prefers to."""
        parts = self._parts
        caller = await parts.caller(request, "edit")
        if "name" in request.path_params:
            check_model(named(request))
        allowed = await parts.edits.allow(caller)
        submitted, came_s = await self._submit(request, caller)
        job, held_s = submitted.job, _held_s(request.headers.get("prefer", ""))
        if held_s:
            left_s = came_s + held_s - parts.clock.monotonic_s()
            waiting = parts.desk.wait(job.id, account=caller.account, timeout_s=left_s, known=job)
            job = await unless_gone(request, waiting)
        try:
            document = await self._document(request, job)
        except ResultOutOfReach:
            if submitted.job.state.is_terminal:
                raise
            # Who is told of a failure orders another edit; who asks for this one again gets its picture.
            document = _prediction(parts.documents, submitted.job, parts.origins.of(request), output=None)
        if held_s and document["status"] == "processing":
            document["status"] = "starting"  # any other word is taken for the end
        headers = surfaces.headers(submitted, allowed, parts)
        return await parts.threads.run(partial(answers.json_answer, document, status=201, headers=headers))

    async def replicate_list_predictions(self, request: Request) -> Response:
        """The account's, newest first, a page at a time. A cursor is the id of the last one on the page before."""
        parts = self._parts
        caller = await parts.caller(request, "read")
        cursor, origin = request.query_params.get("cursor"), parts.origins.of(request)
        before = None if cursor is None else JobId(cursor)
        found = await parts.database.read_long(
            lambda tx: queries.newest(tx, caller.account, before=before, most=_PAGE + 1)
        )
        rows = [_with_link(parts.documents, job, origin) for job in found[:_PAGE]]
        following = f"{origin}{_PREDICTIONS}?cursor={found[_PAGE - 1].id}" if len(found) > _PAGE else None
        return answers.json_answer(page(rows, following=following))

    async def replicate_get_prediction(self, request: Request) -> Response:
        """One of them."""
        caller = await self._parts.caller(request, "read")
        return await self._answer(request, await self._parts.desk.job(_id(request), account=caller.account))

    async def replicate_cancel_prediction(self, request: Request) -> Response:
        """Stop one; from now on it is free."""
        caller = await self._parts.caller(request, "edit")
        return await self._answer(request, await self._parts.desk.cancel(_id(request), account=caller.account))

    async def replicate_stream_prediction(self, request: Request) -> Response:
        """How far one is, and its end. The URL that its document names needs no key: scripts show none there."""
        parts, query = self._parts, request.query_params
        account: AccountId | None = None
        if "signature" in query:
            parts.links.check_path(request.scope["path"], query)
        else:
            account = (await parts.caller(request, "read")).account
        job = await parts.desk.job(_id(request), account=account)
        return await sse.answer(self._frames(request, job), has_ended=job.state.is_terminal, closing=parts.closing)

    async def _submit(self, request: Request, caller: Caller) -> tuple[Submitted, float]:
        """The job, and when all of its request was here, by the clock's seconds: so long clients wait already.

        Nothing of the body outlasts this call, however long the answer to it is held.
        """
        parts = self._parts
        body = await parts.orders.json(request)
        came_s = parts.clock.monotonic_s()
        if "name" not in request.path_params:
            check_reference(body, served=lambda: version_id(served(parts).title))
        asked = replicate_order.read(body)
        draft = await terms.draft_of(asked, parts.orders, dialect={"name": self._dialect})
        return await surfaces.submit(request, caller, draft, parts), came_s

    async def _answer(self, request: Request, job: Job) -> Response:
        return await self._parts.threads.run(answers.json_answer, await self._document(request, job))

    async def _document(self, request: Request, job: Job) -> dict[str, object]:
        """A prediction with its picture.

        Raises:
            ResultOutOfReach: that can't be read just now.
        """
        documents, origin = self._parts.documents, self._parts.origins.of(request)
        output = await self._output(request, job)
        return _prediction(documents, job, origin, output=output, progress=self._parts.forecast.progress(job))

    async def _output(self, request: Request, job: Job) -> str | None:
        """The URI of a job's picture: a link, or on plain http, of which clients make no file, the picture itself.

        Raises:
            ResultOutOfReach: it can't be read just now.
        """
        parts = self._parts
        origin = parts.origins.of(request)
        link = parts.documents.output_url(job, origin)
        if link is None or origin.startswith("https:"):
            return link
        try:
            data = await surfaces.picture_of(job, parts)
        except FileGone:
            return None
        assert job.outputs, f"job {job.id} has a picture of no type"
        return await parts.threads.run(answers.data_uri, data, job.outputs[0].content_type)

    async def _frames(self, request: Request, job: Job) -> AsyncGenerator[bytes, None]:
        """Clients drop what has no id. Only the last one's says that all was heard."""
        desk, after = self._parts.desk, request.headers.get("last-event-id")
        async for event in desk.listen(job.id, account=job.account, after=after):
            if event.kind == "progress":
                yield sse.text_frame("logs", _logs(sse.step(event), sse.steps(event)).encode(), event.id)
            elif event.kind == "ended":
                ended = await desk.job(job.id, account=job.account)
                output, why = None, terms.why(ended, VOCABULARY)
                try:
                    output = await self._output(request, ended)
                except ResultOutOfReach as fault:
                    why = as_sentence(str(fault))
                if output is not None:
                    yield sse.text_frame("output", output.encode(), f"{event.id}:output")
                reason = {}
                if ended.state is State.CANCELLED:
                    reason = {"reason": "canceled"}
                elif why is not None:
                    reason = {"reason": "error"}
                    yield sse.frame("error", {"detail": why}, f"{event.id}:error")
                yield sse.frame("done", reason, event.id)


def _prediction(
    documents: Documents, job: Job, origin: str, *, output: str | None, progress: Progress | None = None
) -> dict[str, object]:
    """A job.

    Args:
        output: the URI of its picture, if there is one.
        progress: of one that runs.
    """
    path, measured, links = f"{_PREDICTIONS}/{job.id}", metrics(job), documents.links
    made = job.made or documents.model()
    title = made.get("served", made.get("model"))  # what a version is of, without what was merged for one edit
    return {
        "id": job.id,
        "model": MODEL,
        "version": _HIDDEN if title is None else version_id(str(title)),
        "status": _status(job),
        "input": told(job.parameters),
        "output": output,
        "data_removed": job.state is State.COMPLETED and output is None,
        "logs": "" if progress is None else _logs(progress.step, progress.steps),
        "error": terms.why(job, VOCABULARY),
        "metrics": {theirs: measured[ours] for theirs, ours in _METRICS.items() if ours in measured},
        "created_at": moment(job.accepted_at),
        "started_at": moment(job.started_at),
        "completed_at": moment(job.finished_at),
        "source": "api",
        "urls": {
            "get": f"{origin}{path}",
            "cancel": f"{origin}{path}/cancel",
            "stream": links.to_path(
                origin, f"{path}/stream", until=job.accepted_at + timedelta(seconds=links.outputs_s)
            ),
            "web": f"{origin}/console#requests?search={job.id}",
        },
    }


def _with_link(documents: Documents, job: Job, origin: str) -> dict[str, object]:
    """A prediction among many, or one that is sent: without the picture itself."""
    return _prediction(documents, job, origin, output=documents.output_url(job, origin))


def _logs(step: int, steps: int) -> str:
    """How far an edit is, as a line that clients find it in."""
    return f"{100 * step // steps}%|{'#' * (10 * step // steps):<10}| {step}/{steps}"


def _status(job: Job) -> str:
    match job.state:
        case _ if job.is_cancelled:
            return "canceled"
        case State.QUEUED:
            return "starting"
        case State.PROCESSING:
            return "processing"
        case State.COMPLETED:
            return "succeeded"
        case State.FAILED | State.CANCELLED:
            return "failed"


def _held_s(prefer: str) -> int:
    """How long an answer is to wait for the end by the header Prefer (RFC 7240), at most; 0 for not at all."""
    for preference in prefer.split(","):
        name, _, value = preference.strip().partition("=")
        if name.lower() == "wait":
            return min(int(value), _HELD_S_MAX) if value.isdecimal() and len(value) < 9 else _HELD_S_MAX
    return 0


def _id(request: Request) -> JobId:
    return JobId(request.path_params["id"])
