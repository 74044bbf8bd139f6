"""OpenAI's dialect: `POST /v1/images/edits`, which waits for the picture or streams early looks, and `GET /v1/models`.

Its clients post again by themselves after 408, 409, 429 and 5xx: each of these answers says when, or not to.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from rekontext.api import answers, errors, sse, surfaces
from rekontext.api.auth import Caller
from rekontext.api.connection import CallerGone
from rekontext.api.dialects import openai_order, replicate_catalogue, terms
from rekontext.api.dialects.openai_order import Manner
from rekontext.api.documents import Documents
from rekontext.api.edits import DeadlineExceeded, JobCancelled, JobFailed, ResultOutOfReach, Submitted, UnknownModel
from rekontext.api.errors import Failure
from rekontext.api.links import FileGone
from rekontext.api.parts import Parts
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import Event, Job, JobUnknown
from rekontext.models import SLUG
from rekontext.safety import PictureWithheld

_FOLDER: Final = "/v1/images/"
_MODELS: Final = "/v1/models"
_IS_MODELS: Final = re.compile(rf"{_MODELS}(/[^/]*)?")
_MODEL: Final[Mapping[str, object]] = {"id": SLUG, "object": "model", "created": 0, "owned_by": "rekontext"}
"""`created` must be there; when it was isn't known."""
_AGENTS: Final = re.compile(r"(Async)?OpenAI/")

_UNKNOWN_MODEL: Final = "unknown_model"
_CODES: Final[Mapping[str, str]] = {
    _UNKNOWN_MODEL: "model_not_found",
    "rate_limited": "rate_limit_exceeded",
    PictureWithheld.code: "moderation_blocked",
}
"""Where the vendor has a code. Others are ours."""
_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_RETRIED: Final = (408, 409, 429)
_ENDED_OTHERWISE: Final = (JobFailed, JobCancelled, DeadlineExceeded, ResultOutOfReach, FileGone)


class OpenAI:
    """The dialect, as the packages `openai` for Python and JavaScript speak it."""

    name: Final = "openai"
    vocabulary: Final = openai_order.VOCABULARY

    def is_spoken(self, request: Request) -> bool:
        """By its path, or by its client, which shows no other error's sentence."""
        path = str(request.scope["path"])
        is_here = path.startswith(_FOLDER) or _IS_MODELS.fullmatch(path) is not None
        return is_here or terms.is_sent_by(request, _AGENTS)

    def refusal(self, failure: Failure, request_id: str) -> Response:
        """Where it isn't said when to come again, a retry would order another edit, or be in vain."""
        status = _status(failure)
        headers = dict(failure.headers)
        if (status in _RETRIED or status >= 500) and "retry-after" not in headers:
            headers["x-should-retry"] = "false"
        return answers.json_answer({"error": _error(failure)}, status=status, headers=headers)

    def message(self, _documents: Documents, _job: Job) -> None:
        """As any webhook is told: the vendor's calls have none."""

    def routes(self, parts: Parts) -> list[BaseRoute]:
        """The vendor's paths."""

        async def openai_edit_picture(request: Request) -> Response:
            caller = await parts.caller(request, "edit")
            allowed = await parts.edits.allow(caller)
            submitted, manner = await self._submit(request, caller, parts)
            headers = surfaces.headers(submitted, allowed, parts)
            if manner.is_streamed:
                headers |= sse.HEADERS | answers.when(submitted.estimate)
                events = _events(request, caller, submitted, parts, looks=manner.looks)
                return _Stream(events, media_type=sse.MEDIA_TYPE, headers=headers)
            done = await surfaces.wait(request, caller, submitted, parts)
            headers |= answers.facts(done.job, done.balance)
            if manner.is_linked:
                images = parts.documents.images(done.job, parts.origins.of(request))
                document = _document(done.job, [{"url": image["url"]} for image in images])
                return answers.json_answer(document, headers=headers)
            pictures = await surfaces.pictures_of(done.job, parts)
            return await parts.threads.run(_inline, done.job, pictures, headers)

        async def openai_list_models(request: Request) -> Response:
            await parts.caller(request, None)
            # Replicate's clients ask for their list here, too.
            return answers.json_answer({"object": "list", "data": [_MODEL], **replicate_catalogue.models(parts)})

        async def openai_get_model(request: Request) -> Response:
            await parts.caller(request, None)
            if (slug := request.path_params["id"]) != SLUG:
                raise UnknownModel(slug, known=[SLUG])
            return answers.json_answer(_MODEL)

        return [
            Route(f"{_FOLDER}edits", openai_edit_picture, methods=["POST"]),
            Route(_MODELS, openai_list_models),
            Route(f"{_MODELS}/{{id}}", openai_get_model),
        ]

    async def _submit(self, request: Request, caller: Caller, parts: Parts) -> tuple[Submitted, Manner]:
        """The job, and how its end is wanted. Nothing of the body outlasts this call, however long that takes."""
        asked = openai_order.read(await parts.orders.body(request))
        draft = await terms.draft_of(asked, parts.orders, dialect={"name": self.name}, marks="transparency")
        draft = openai_order.with_looks(draft, looks=asked.manner.looks)
        return await surfaces.submit(request, caller, draft, parts), asked.manner


class _Stream(StreamingResponse):
    """An answer whose events see by themselves whether the caller is still there.

    Starlette's own watch would break them off before they have cancelled the edit.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


async def _events(
    request: Request, caller: Caller, submitted: Submitted, parts: Parts, *, looks: int
) -> AsyncGenerator[bytes, None]:
    """Early looks, and the picture or why there is none."""
    is_over = asyncio.Event()
    waiting = asyncio.create_task(surfaces.wait(request, caller, submitted, parts))
    waiting.add_done_callback(lambda _: is_over.set())
    try:
        async with aclosing(sse.stream(_looks(submitted.job, parts, looks, is_over), closing=is_over)) as frames:
            async for frame in frames:
                yield frame
        job = (await waiting).job
        picture = await surfaces.picture_of(job, parts)
    except CallerGone:
        return
    except _ENDED_OTHERWISE as fault:
        yield sse.frame("error", {"type": "error", "error": _error(errors.told(fault, openai_order.VOCABULARY))})
    else:
        yield await parts.threads.run(_completed, job, picture)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def _looks(job: Job, parts: Parts, most: int, is_over: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """The early looks, until it is over: between them the stream is kept alive."""
    seen = 0
    with suppress(DatabaseUnavailable, JobUnknown):  # of which whoever waits for the picture hears, if it lasts
        async for event in parts.desk.listen(job.id, account=job.account):
            if event.kind != "preview":
                continue
            if openai_order.is_due(seen, looks=most, step=sse.step(event), steps=sse.steps(event)):
                yield await parts.threads.run(_look, event, seen, int(parts.clock.now().timestamp()))
                seen += 1
    await is_over.wait()


def _look(event: Event, index: int, now_s: int) -> bytes:
    preview = sse.preview(event)
    kind = "image_edit.partial_image"
    document = {
        "type": kind,
        "b64_json": str(preview["image"]).partition(",")[2],
        "partial_image_index": index,
        "created_at": now_s,
        "size": f"{preview['width']}x{preview['height']}",
        "output_format": "jpeg",
        "background": "opaque",
        "quality": "auto",
    }
    return sse.frame(kind, document)


def _completed(job: Job, picture: bytes) -> bytes:
    """The last event. Takes milliseconds for a large picture."""
    kind = "image_edit.completed"
    document = {
        "type": kind,
        "b64_json": base64.b64encode(picture).decode(),
        "created_at": _ended_s(job),
        **_described(job),
        "quality": "auto",
        "usage": None,  # the package's event has no default for it
    }
    return sse.frame(kind, document)


def _inline(job: Job, pictures: Sequence[bytes], headers: dict[str, str]) -> Response:
    """The answer with the pictures in it. Takes milliseconds for a large one."""
    document = _document(job, [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures])
    return answers.json_answer(document, headers=headers)


def _document(job: Job, pictures: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {"created": _ended_s(job), "data": pictures, **_described(job)}


def _described(job: Job) -> dict[str, object]:
    assert job.outputs, f"job {job.id} is {job.state} and has no picture"
    output = job.outputs[0]
    return {
        "size": f"{output.width}x{output.height}",
        "output_format": output.content_type.removeprefix("image/"),
        "background": "opaque",
    }


def _ended_s(job: Job) -> int:
    """Unix seconds."""
    assert job.finished_at is not None, f"job {job.id} is {job.state} and has no end"
    return int(job.finished_at.timestamp())


def _status(failure: Failure) -> int:
    """Of wrong parameters, and of pictures that a check withholds, it is 400 here."""
    if failure.code == PictureWithheld.code:
        return 400
    return failure.status if failure.problems else terms.status_of(failure)


def _error(failure: Failure) -> dict[str, object]:
    status = _status(failure)
    message, param = failure.sentence, None
    if failure.job is not None:
        message += f" Ask for it at /v2/requests/{failure.job}."
    if failure.problems:
        param = failure.problems[0].parameter
    elif failure.code == _UNKNOWN_MODEL:
        param = "model"
    return {
        "message": message,
        "type": "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error"),
        "param": param,
        "code": _CODES.get(failure.code, failure.code),
    }
