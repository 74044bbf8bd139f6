"""What several dialects say alike: their names for our parameters, shapes by pixels, pictures as data URIs. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final

import orjson
from starlette.requests import Request

from rekontext.api.documents import error
from rekontext.api.errors import Failure
from rekontext.api.parameters import Problem, shown
from rekontext.contract import ASPECT_RATIOS, AspectRatio
from rekontext.jobs import Job

_UNPAID: Final = 402
_UNPROCESSABLE: Final = 422
_OURS_FOR_UNPAID: Final = 406
_SHAPES: Final[Mapping[float, AspectRatio]] = {
    int(width) / int(height): ratio
    for ratio in ASPECT_RATIOS
    for width, colon, height in [ratio.partition(":")]
    if colon
}
_NONE: Final[Mapping[str, AspectRatio]] = {}
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")


def is_sent_by(request: Request, agents: re.Pattern[str]) -> bool:
    """Whether its client calls itself so: at a path that is nobody's, or not only theirs, nothing else tells."""
    return agents.match(request.headers.get("user-agent", "")) is not None


def ours(given: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """What was given under a vendor's names, under ours; only what we have a name for.

    Args:
        names: ours -> theirs, for every parameter that the dialect has.
    """
    return {our: given[their] for our, their in names.items() if given.get(their) is not None}


def unheeded(given: Mapping[str, object], allowed: Mapping[str, object]) -> dict[str, Problem]:
    """Problems with fields that would change the picture and that nothing here can heed.

    Args:
        allowed: by name, the value that asks for nothing; beside it null and what is empty do too.
    """
    return {
        name: Problem(
            parameter=name,
            value=shown(given[name]),
            reason="can't be heeded here",
            allowed_text=f"{orjson.dumps(value).decode()}, or nothing" if value not in ("", None) else "nothing",
        )
        for name, value in allowed.items()
        if given.get(name) not in (None, "", [], value)
    }


def shape_of(size: object) -> AspectRatio | None:
    """The aspect ratio that a size has, if it is one of ours: WIDTHxHEIGHT, or an object with a width and a height."""
    match size:
        case {"width": int(width), "height": int(height)}:
            pass
        case str() if found := _SIZE.fullmatch(size):
            width, height = int(found[1]), int(found[2])
        case _:
            return None
    return _SHAPES.get(width / height) if height > 0 else None


def asked_shape(
    given: Mapping[str, object], name: str, wrong: dict[str, Problem], *, named: Mapping[str, AspectRatio] = _NONE
) -> AspectRatio | None:
    """The aspect ratio of the size in a field, or None, and a new problem if that is none of ours.

    Args:
        named: sizes that have names.
    """
    size = given.get(name)
    if size in (None, ""):
        return None
    shape = named.get(size) if isinstance(size, str) and size in named else shape_of(size)
    if shape is None:
        names = ", ".join(named)
        allowed = f"a width and a height in one of the proportions {', '.join(ASPECT_RATIOS[1:])}"
        wrong[name] = Problem(
            parameter=name,
            value=shown(size),
            reason="has no shape of ours",
            allowed_text=f"{allowed}, or one of {names}" if names else allowed,
        )
    return shape


def status_of(failure: Failure) -> int:
    """As these vendors say it: wrong parameters are 422, and who can't pay gets a 402, on which none tries again."""
    if failure.problems and failure.status == 400:
        return _UNPROCESSABLE
    return _UNPAID if failure.status == _OURS_FOR_UNPAID else failure.status


def why(job: Job, names: Mapping[str, str]) -> str | None:
    """Why a job has no picture, under a vendor's names."""
    sentence = error(job)
    if sentence is None:
        return None
    first, space, rest = sentence.partition(" ")
    return f"{names.get(first, first)}{space}{rest}"


def data_uri(data: bytes, content_type: str) -> str:
    """A picture as text. Takes milliseconds for a large one: not for the event loop."""
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"
