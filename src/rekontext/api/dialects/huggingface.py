"""Hugging Face's dialect: `POST /hf/flux-kontext-dev`, an inference endpoint for the task image-to-image.

One call that waits. Its body is JSON with the photo in `inputs`, or the photo itself; its answer is the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rekontext.api import answers, surfaces
from rekontext.api.auth import Caller
from rekontext.api.bodies import MalformedBody, Upload, is_json, read_raw
from rekontext.api.dialects import terms
from rekontext.api.documents import Documents
from rekontext.api.edits import Submitted
from rekontext.api.errors import Failure
from rekontext.api.parts import Parts
from rekontext.api.vocabulary import Vocabulary
from rekontext.jobs import Job
from rekontext.models import SLUG

_FOLDER: Final = "/hf/"
_UNHEEDED: Final[Mapping[str, object]] = {"negative_prompt": "", "mask": None}
_FORMATS: Final = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
VOCABULARY: Final = Vocabulary(
    names={
        "input_image": "inputs",
        "mask_image": "mask_image",
        "prompt": "prompt",
        "aspect_ratio": "aspect_ratio",
        "num_inference_steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "seed": "seed",
        "acceleration": "acceleration",
        "loras": "loras",
    }
)


class HuggingFace:
    """The dialect, as `huggingface_hub`'s and `@huggingface/inference`'s image-to-image speak it."""

    name: Final = "huggingface"
    vocabulary: Final = VOCABULARY

    def is_spoken(self, request: Request) -> bool:
        """By its path."""
        return str(request.scope["path"]).startswith(_FOLDER)

    def refusal(self, failure: Failure, request_id: str) -> Response:
        """`error` is what its clients show. Not 503, on which one of them asks again without end or pause."""
        document = {"error": failure.sentence, "code": failure.code, "request_id": request_id}
        status = 500 if failure.status == 503 else terms.status_of(failure)
        return answers.json_answer(document, status=status, headers=dict(failure.headers))

    def message(self, _documents: Documents, _job: Job) -> None:
        """Nobody can ask for one."""

    def routes(self, parts: Parts) -> list[BaseRoute]:
        """The one path."""

        async def huggingface_edit_picture(request: Request) -> Response:
            caller = await parts.caller(request, "edit")
            allowed = await parts.edits.allow(caller)
            submitted = await self._submit(request, caller, parts)
            headers = surfaces.headers(submitted, allowed, parts)
            done = await surfaces.wait(request, caller, submitted, parts)
            picture = await surfaces.picture_of(done.job, parts)
            return answers.picture_answer(done.job, picture, headers | answers.facts(done.job, done.balance))

        return [Route(f"{_FOLDER}{SLUG}", huggingface_edit_picture, methods=["POST"])]

    async def _submit(self, request: Request, caller: Caller, parts: Parts) -> Submitted:
        """The job. Nothing of the body outlasts this call, however long the job takes."""
        photo, parameters = await _body(request, parts)
        asked = _read(photo, parameters, accept=request.headers.get("accept", ""))
        draft = await terms.draft_of(asked, parts.orders, dialect={"name": self.name})
        return await surfaces.submit(request, caller, draft, parts)


async def _body(request: Request, parts: Parts) -> tuple[object, Mapping[str, object]]:
    """The photo, and the parameters beside it."""
    if not is_json(request):
        return Upload(data=await read_raw(request)), {}
    body = await parts.orders.json(request)
    asked: Any = body.get("parameters") or {}
    if not isinstance(asked, dict):
        raise MalformedBody("parameters is no object; allowed: the edit's parameters by name")
    return body.get("inputs"), asked


def _read(photo: object, parameters: Mapping[str, object], *, accept: str) -> terms.Asked:
    """Find all that a call asks for, and what is wrong with how it does."""
    wrong = terms.unheeded(parameters, _UNHEEDED)
    given = VOCABULARY.ours({**parameters, "inputs": photo}) | {"output_format": _format(accept)}
    shape = terms.asked_shape(parameters.get("target_size"), "target_size", wrong)
    if shape is None:
        return terms.Asked(given=given, wrong=wrong)
    return terms.Asked(given=given | {"aspect_ratio": shape}, wrong=wrong, shaped_by="target_size")


def _format(accept: str) -> str:
    """What is asked for first."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return next((_FORMATS[kind] for kind in kinds if kind in _FORMATS), "png")
