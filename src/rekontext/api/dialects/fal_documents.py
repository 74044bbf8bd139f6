"""What fal's clients read: a result, and a failure. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rekontext.api.dialects import terms
from rekontext.api.documents import Documents, maker
from rekontext.api.errors import Failure
from rekontext.jobs import Job

TARGET: Final = "x-fal-target-url"
_PLACES: Final[Mapping[str, str]] = {TARGET: "header", "fal_webhook": "query"}
_UNPROCESSABLE: Final = 422


def result_of(documents: Documents, job: Job, origin: str) -> dict[str, object]:
    """What a job that has ended well made, behind links."""
    images = documents.images(job, origin)
    return {
        "images": images,
        "seed": (job.made or {}).get("seed"),
        "prompt": job.parameters["prompt"],
        "has_nsfw_concepts": [False] * len(images),  # else it would have been withheld
        "timings": {"inference": job.inference_s},
        **maker(job),
    }


def refused(failure: Failure, request_id: str) -> dict[str, object]:
    """A failure as JSON; wrong parameters are listed as their client's own types have them."""
    detail: object = failure.sentence
    if failure.problems and status_of(failure) == _UNPROCESSABLE:
        detail = [
            {
                "loc": [_PLACES.get(each.parameter, "body"), each.parameter],
                "msg": each.sentence,
                "type": "missing" if each.reason == "is missing" else "value_error",
            }
            for each in failure.problems
        ]
    return {
        "detail": detail,
        "message": failure.sentence,
        "error_type": failure.code,
        "code": failure.code,
        "request_id": request_id,
    }


def status_of(failure: Failure) -> int:
    """Not 409, after which the Python client asks ten times, nor 503 for an edit that the other one would repeat."""
    match terms.status_of(failure):
        case 409:
            return 499 if failure.code == "cancelled" else 400
        case 503 if failure.job is not None:
            return 500
        case status:
            return status
