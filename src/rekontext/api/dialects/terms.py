"""What several dialects say alike: fields that can't be heeded, shapes by pixels. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Final

import orjson
from starlette.requests import Request

from rekontext.api.documents import error
from rekontext.api.errors import Failure
from rekontext.api.orders import RATIO_OFF_MAX, Draft, OrderReader
from rekontext.api.problems import Problem, shown
from rekontext.api.vocabulary import Vocabulary
from rekontext.contract import ASPECT_RATIOS, AspectRatio
from rekontext.jobs import Job
from rekontext.pictures import Marks

_UNPAID: Final = 402
_UNPROCESSABLE: Final = 422
_OURS_FOR_UNPAID: Final = 406
_SHAPES: Final[Mapping[float, AspectRatio]] = {
    int(width) / int(height): ratio
    for ratio in ASPECT_RATIOS
    for width, colon, height in [ratio.partition(":")]
    if colon
}
PROPORTIONS: Final = f"one of the proportions {', '.join(ASPECT_RATIOS[1:])}"
_NONE: Final[Mapping[str, AspectRatio]] = {}
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a call asks for.

    Attributes:
        given: the edit's parameters under our names, unchecked.
        wrong: problems with other fields, by name.
        shaped_by: as `Draft` has it.
    """

    given: Mapping[str, object]
    wrong: Mapping[str, Problem]
    shaped_by: str = "aspect_ratio"


def is_sent_by(request: Request, agents: re.Pattern[str]) -> bool:
    """Whether its client calls itself so: at a path that is nobody's, or not only theirs, nothing else tells."""
    return agents.match(request.headers.get("user-agent", "")) is not None


def problem(name: str, value: object, reason: str, *, allowed: str) -> Problem:
    """What is wrong with a field that is none of our parameters."""
    return Problem(parameter=name, value=shown(value), reason=reason, allowed_text=allowed)


def unheeded(given: Mapping[str, object], allowed: Mapping[str, object]) -> dict[str, Problem]:
    """Problems with fields that would change the picture and that nothing here can heed.

    Args:
        allowed: by name, the value that asks for nothing; beside it null and what is empty do too.
    """
    return {
        name: problem(
            name,
            given[name],
            "can't be heeded here",
            allowed="nothing" if value in ("", None) else f"{orjson.dumps(value).decode()}, or nothing",
        )
        for name, value in allowed.items()
        if given.get(name) not in (None, "", [], value)
    }


async def draft_of(
    asked: Asked, orders: OrderReader, *, dialect: Mapping[str, object], marks: Marks = "white"
) -> Draft:
    """A call's order, as `OrderReader.draft_of` makes it."""
    return await orders.draft_of(
        asked.given, wrong=asked.wrong, dialect=dialect, marks=marks, shaped_by=asked.shaped_by
    )


def shape_of(size: object) -> AspectRatio | None:
    """The aspect ratio that a size comes close to, if one: WIDTHxHEIGHT, or an object with a width and a height."""
    match size:
        case {"width": int(width), "height": int(height)}:
            pass
        case str() if found := _SIZE.fullmatch(size):
            width, height = int(found[1]), int(found[2])
        case _:
            return None
    if min(width, height) < 1:
        return None
    off, shape = min((abs(log(ratio * height / width)), shape) for ratio, shape in _SHAPES.items())
    return shape if off <= RATIO_OFF_MAX else None


def asked_shape(
    size: object, name: str, wrong: dict[str, Problem], *, named: Mapping[str, AspectRatio] = _NONE
) -> AspectRatio | None:
    """The aspect ratio that the size in a field comes close to; None for no size, and a new problem for any other.

    Args:
        named: sizes that have names.
    """
    if size in (None, ""):
        return None
    shape = named.get(size) if isinstance(size, str) and size in named else shape_of(size)
    if shape is None:
        names = ", ".join(named)
        allowed = f"a width and a height close to {PROPORTIONS}"
        allowed = f"{allowed}, or one of {names}" if names else allowed
        wrong[name] = problem(name, size, "has no shape of ours", allowed=allowed)
    return shape


def status_of(failure: Failure) -> int:
    """As these vendors say it: wrong parameters are 422, and who can't pay gets a 402, on which none tries again."""
    if failure.problems and failure.status == 400:
        return _UNPROCESSABLE
    return _UNPAID if failure.status == _OURS_FOR_UNPAID else failure.status


def remembered(job: Job) -> Mapping[str, Any]:
    """What a job knows of the dialect that it came in: its "name", and what that dialect gave it to keep."""
    found: Any = job.parameters.get("dialect", {})
    return dict(found)


def why(job: Job, vocabulary: Vocabulary) -> str | None:
    """Why a job has no picture, in a vendor's words."""
    sentence = error(job)
    return None if sentence is None else vocabulary.renamed(sentence)
