"""What can be asked of a job: status, result, cancel, events.

Plain Starlette routes: clients poll these, so they do as little as there is to do, and nothing here is rate limited.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rekontext.accounts import ledger
from rekontext.api import answers, sse
from rekontext.api.auth import Caller
from rekontext.api.documents import forecast
from rekontext.api.parts import Parts
from rekontext.api.problems import ParametersRefused, Problem
from rekontext.contract import STEPS_MAX, Estimate
from rekontext.database import JobId
from rekontext.jobs import Event, Job, State, queries


class RequestRoutes:
    """The handlers, sharing their parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """To be put into the app's own."""
        return [
            Route("/v2/requests/{id}/status", self.status),
            Route("/v2/requests/{id}", self.result),
            Route("/v1/requests/{id}", self.result),
            Route("/v2/requests/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/v2/requests/{id}/events", self.events),
        ]

    async def status(self, request: Request) -> Response:
        """Where the job stands."""
        caller = await self._parts.caller(request, "read")
        document, estimate = await self._status(request, caller)
        is_bad = document["status"] in (State.FAILED, State.CANCELLED)
        return answers.json_answer(document, status=422 if is_bad else 200, headers=answers.when(estimate))

    async def result(self, request: Request) -> Response:
        """What came of the job, or where it stands."""
        caller = await self._parts.caller(request, "read")
        job, document = await self._result(request, caller)
        if document is None:
            standing, estimate = await self._status(request, caller)
            if not State(str(standing["status"])).is_terminal:
                return answers.json_answer(standing, status=202, headers=answers.when(estimate))
            job, document = await self._result(request, caller)  # it ended between the two looks
        assert document is not None, f"job {job.id} is {job.state} and has no result"
        return answers.json_answer(document, status=200 if job.state is State.COMPLETED else 422)

    async def cancel(self, request: Request) -> Response:
        """Stop the job; from now on it is free."""
        caller = await self._parts.caller(request, "edit")
        job = await self._parts.desk.cancel(_job(request), account=caller.account)
        document = self._parts.documents.status(job, self._parts.origins.of(request), estimate=None, progress=None)
        return answers.json_answer(document | {"cancelled": job.is_cancelled})

    async def events(self, request: Request) -> Response:
        """The job's events as they happen."""
        parts = self._parts
        caller = await parts.caller(request, "read")
        job = _job(request)
        # Looked up first: an unknown job is a 404, not a stream that breaks off.
        found = await parts.desk.job(job, account=caller.account)
        every = _previews(request.query_params.get("previews"))
        coming = parts.desk.listen(job, account=caller.account, after=request.headers.get("last-event-id"))
        frames = self._frames(request, caller, found, coming, every)
        return await sse.answer(frames, has_ended=found.state.is_terminal, closing=parts.closing)

    async def _frames(
        self, request: Request, caller: Caller, found: Job, coming: AsyncIterator[Event], every: int
    ) -> AsyncGenerator[bytes, None]:
        parts = self._parts
        about: dict[str, object] = {"request_id": _job(request)}
        last = _said_last(parts.desk.newest(_job(request)), about)
        async for event in coming:
            match event.kind:
                case "queued":
                    ahead = event.data["ahead"]
                    place = {"queue_position": ahead, "eta_seconds": None}
                    if event is parts.desk.newest(_job(request)):  # else it is old: where the job was, not where it is
                        assert ahead is None or isinstance(ahead, int), f"event {event.id} has {ahead!r} ahead"
                        place = forecast(parts.forecast.at_place(found, ahead=ahead or 0))
                    yield sse.frame("queued", about | {"status": "QUEUED"} | place, event.id)
                case "processing":
                    standing = await parts.desk.standing(_job(request), account=caller.account)
                    place = forecast(parts.forecast.of_job(standing.job, ahead=standing.ahead))
                    last = "processing", about | {"status": "PROCESSING"} | dict(event.data) | place
                    yield sse.frame(*last, event.id)
                case "progress":
                    last = "progress", about | sse.progress(event)
                    if sse.step(event) == 0:  # prepared: others' steps may come before its first
                        standing = await parts.desk.standing(_job(request), account=caller.account)
                        place = forecast(parts.forecast.of_job(standing.job, ahead=standing.ahead))
                        last = "progress", last[1] | place
                    yield sse.frame(*last, event.id)
                case "quiet":
                    place = forecast(parts.forecast.at_place(found))
                    if last is not None and last[1]["queue_position"] != place["queue_position"]:
                        last = last[0], last[1] | place
                        yield sse.frame(*last, event.id)
                case "preview":
                    if every and sse.step(event) % every == 0:
                        picture = await parts.threads.run(sse.preview, event)
                        yield sse.frame("preview", about | picture, event.id)
                case "ended":
                    _, document = await self._result(request, caller)
                    yield sse.frame("done", document or about, event.id)

    async def _status(self, request: Request, caller: Caller) -> tuple[dict[str, object], Estimate | None]:
        """Where the job stands, and when it will be done."""
        parts = self._parts
        standing = await parts.desk.standing(_job(request), account=caller.account)
        estimate = parts.forecast.of_job(standing.job, ahead=standing.ahead)
        document = parts.documents.status(
            standing.job,
            parts.origins.of(request),
            estimate=estimate,
            progress=parts.forecast.progress(standing.job),
        )
        return document, estimate

    async def _result(self, request: Request, caller: Caller) -> tuple[Job, dict[str, object] | None]:
        """The job, and its result if it has ended."""

        def look(tx: Connection) -> tuple[Job, dict[str, object] | None]:
            job = queries.get(tx, _job(request), account=caller.account)
            if not job.state.is_terminal:
                return job, None
            balance = ledger.balance(tx, caller.account) if job.state is State.COMPLETED else None
            return job, self._parts.documents.result(job, self._parts.origins.of(request), balance=balance)

        return await self._parts.database.read(look)


def _said_last(heard: Event | None, about: Mapping[str, object]) -> tuple[str, dict[str, object]] | None:
    """What a stream that is taken up again said last of a running job; its place is yet to be told."""
    match heard:
        case Event(kind="processing"):
            return "processing", {**about, "status": "PROCESSING", **heard.data, **forecast(None)}
        case Event(kind="progress"):
            return "progress", {**about, **sse.progress(heard)}
    return None


def _job(request: Request) -> JobId:
    return JobId(request.path_params["id"])


def _previews(text: str | None) -> int:
    """Every how many steps a preview is wanted; 0 for never."""
    if text is None:
        return 1
    every = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1
    if not 0 <= every <= STEPS_MAX:
        raise ParametersRefused([Problem(parameter="previews", value=text[:20], reason=f'is "{text[:20]}"')])
    return every
