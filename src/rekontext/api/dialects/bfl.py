"""Black Forest Labs' dialect: `POST /v1/flux-kontext-...` with the key in `x-key`, then `GET /v1/get_result`.

Only that header tells it from Segmind's surface, whose path it shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from rekontext.api import answers, surfaces
from rekontext.api.auth import OTHER_HEADER
from rekontext.api.bodies import JsonObject
from rekontext.api.dialects import terms
from rekontext.api.documents import Documents, maker
from rekontext.api.edits import UnknownModel
from rekontext.api.errors import Failure
from rekontext.api.parts import Parts
from rekontext.api.vocabulary import Vocabulary
from rekontext.contract import Progress
from rekontext.database import JobId
from rekontext.jobs import Job, JobUnknown, State
from rekontext.models import SLUG
from rekontext.safety import PictureWithheld

MODELS: Final = (SLUG, "flux-kontext-pro")
"""The second is the only one that the vendor's own package lets through. The model is the one that is served."""
_RESULT: Final = "/v1/get_result"
_DEFAULTS: Final[Mapping[str, object]] = {"num_inference_steps": 30, "guidance": 2.5}
_UNHEEDED: Final[Mapping[str, object]] = {
    "prompt_upsampling": False,
    "negative_prompt": "",
    "input_image_2": None,
    "input_image_3": None,
    "input_image_4": None,
    "webhook_secret": None,  # messages are signed with the account's
}
VOCABULARY: Final = Vocabulary(
    names={
        "input_image": "input_image",
        "mask_image": "mask",
        "prompt": "prompt",
        "aspect_ratio": "aspect_ratio",
        "num_inference_steps": "steps",
        "guidance": "guidance",
        "loras": "loras",
        "seed": "seed",
        "output_format": "output_format",
        "webhook_url": "webhook_url",
    },
    values={"output_format": {"jpeg": "jpg"}},
    allowed={"output_format": "one of png, jpeg, webp"},
)


class BlackForestLabs:
    """The dialect, as the vendor's package `blackforest` and the AI SDK's provider speak it."""

    name: Final = "bfl"
    vocabulary: Final = VOCABULARY

    def is_spoken(self, request: Request) -> bool:
        """Whoever shows a key so, where it means something, and on the one path that nobody else has."""
        path = str(request.scope["path"])
        return path == _RESULT or (path.startswith("/v1/") and _shows_key(request.scope))

    def refusal(self, failure: Failure, request_id: str) -> Response:
        """`detail` is what some of its clients show, `message` what others do."""
        document: dict[str, object] = {
            "detail": failure.sentence,
            "message": failure.sentence,
            "code": failure.code,
            "request_id": request_id,
        }
        if failure.code == JobUnknown.code:
            document |= {"status": "Task not found", "result": None}
        return answers.json_answer(document, status=terms.status_of(failure), headers=dict(failure.headers))

    def message(self, documents: Documents, job: Job) -> Mapping[str, object]:
        """As the result is asked for."""
        return self._document(documents, job, str(job.parameters["origin"]), progress=None)

    def routes(self, parts: Parts) -> list[BaseRoute]:
        """The vendor's paths."""

        async def bfl_submit_task(request: Request) -> Response:
            caller = await parts.caller(request, "edit")
            if (model := request.path_params["model"]) not in MODELS:
                raise UnknownModel(model, known=MODELS)
            allowed = await parts.edits.allow(caller)
            body = await parts.orders.json(request)
            draft = await terms.draft_of(_read(body), parts.orders, dialect={"name": self.name})
            submitted = await surfaces.submit(request, caller, draft, parts)
            job = submitted.job.id
            document = {"id": job, "polling_url": f"{parts.origins.of(request)}{_RESULT}?id={job}"}
            return answers.json_answer(document, headers=surfaces.headers(submitted, allowed, parts))

        async def bfl_get_result(request: Request) -> Response:
            caller = await parts.caller(request, "read")
            job = await parts.desk.job(JobId(request.query_params.get("id", "")), account=caller.account)
            progress = parts.forecast.progress(job)
            document = self._document(parts.documents, job, parts.origins.of(request), progress=progress)
            return answers.json_answer(document)

        return [_KeyedRoute("/v1/{model}", bfl_submit_task, methods=["POST"]), Route(_RESULT, bfl_get_result)]

    def _document(self, documents: Documents, job: Job, origin: str, *, progress: Progress | None) -> dict[str, object]:
        document: dict[str, object] = {"id": job.id, "status": _status(job), "result": None, "progress": None}
        if job.state is State.COMPLETED:
            document["result"] = {
                "sample": documents.output_url(job, origin),
                "prompt": job.parameters["prompt"],
                "seed": job.parameters["seed"],
                "start_time": job.started_at.timestamp() if job.started_at else None,
                "end_time": job.finished_at.timestamp() if job.finished_at else None,
                "duration": job.inference_s,
                **maker(job),  # since the name that it is asked for by may be another model's
            }
        elif progress is not None:
            document["progress"] = round(progress.step / progress.steps, 3)
        why = terms.why(job, self.vocabulary)
        return document | {"error": why, "details": None if why is None else {"error": why}, "preview": None}


class _KeyedRoute(Route):
    """A route for those only whose key is in the vendor's header; others are left to the routes after it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if _shows_key(scope) else (Match.NONE, {})


def _shows_key(scope: Scope) -> bool:
    return scope["type"] == "http" and any(name == OTHER_HEADER.encode() for name, _ in scope["headers"])


def _status(job: Job) -> str:
    match job.state:
        case State.QUEUED | State.PROCESSING:
            return "Pending"
        case State.COMPLETED:
            return "Ready"
        case State.FAILED | State.CANCELLED:
            return "Content Moderated" if job.error_code == PictureWithheld.code else "Error"


def _read(body: JsonObject) -> terms.Asked:
    """Find all that a body asks for, and what is wrong with how it does."""
    given, wrong = {**_DEFAULTS, **VOCABULARY.ours(body)}, terms.unheeded(body, _UNHEEDED)
    if "aspect_ratio" in given:  # beside which the AI SDK sends a size
        return terms.Asked(given=given, wrong=wrong)
    size = {name: body[name] for name in ("width", "height") if body.get(name) is not None}
    given["aspect_ratio"] = terms.asked_shape(size or None, "width", wrong)
    return terms.Asked(given=given, wrong=wrong, shaped_by="width")
