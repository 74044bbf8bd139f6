"""What each parameter may be, and what is wrong with one that isn't: for people, under the parameter's name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from rekontext.api.bodies import Upload
from rekontext.contract import (
    ACCELERATIONS,
    ASPECT_RATIOS,
    GUIDANCE_MAX,
    GUIDANCE_MIN,
    LORA_STRENGTH_MAX,
    LORAS_MAX,
    PICTURES_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    SEED_MAX,
    STEPS_MAX,
    STEPS_MIN,
)
from rekontext.jobs.endpoints import URL_CHARACTERS_MAX
from rekontext.pictures import OUTPUT_FORMATS, QUALITY_MAX, QUALITY_MIN

PROMPT_CHARACTERS_MAX: Final = 10_000
DEADLINE_S_MAX: Final = 86_400
_SHOWN_CHARACTERS: Final = 80

ALLOWED: Final[Mapping[str, str]] = {
    "input_image": "a jpeg, png, gif or webp picture: an http(s) URL, a data URI, base64, or a file in a form",
    "mask_image": "a picture of the photo's shape, in any form that it may have: "
    "white where it may change, black where it stays",
    "prompt": f"UTF-8 text of 1 to {PROMPT_CHARACTERS_MAX} characters, neither blank nor with NUL in it",
    "aspect_ratio": "one of " + ", ".join(ASPECT_RATIOS),
    "disable_safety_checker": "true or false",
    "guidance": f"a number from {GUIDANCE_MIN:g} to {GUIDANCE_MAX:g}",
    "num_inference_steps": f"an integer from {STEPS_MIN} to {STEPS_MAX}",
    "output_format": "one of " + ", ".join(OUTPUT_FORMATS),
    "output_quality": f"an integer from {QUALITY_MIN} to {QUALITY_MAX}",
    "seed": f"an integer from 0 to {SEED_MAX}, or -1 or nothing for a random one",
    "num_images": f"an integer from 1 to {PICTURES_MAX}",
    "acceleration": "one of " + ", ".join(ACCELERATIONS),
    "loras": f"at most {LORAS_MAX}, each once, in a list or separated by commas: NAME, NAME:STRENGTH or, in a list, "
    f'{{"name": NAME, "strength": NUMBER}}, where NAME is on offer, brought before, or the address of one; '
    f"a strength is from {-LORA_STRENGTH_MAX:g} to {LORA_STRENGTH_MAX:g}, and not 0",
    "priority": f"an integer from {PRIORITY_MIN} to {PRIORITY_MAX}",
    "deadline_s": f"a number of seconds above 0, at most {DEADLINE_S_MAX}",
    "previews": f"an integer from 0 to {STEPS_MAX}: steps between two previews, 0 for none",
    "webhook_url": f"an http(s) URL without a user in it, at most {URL_CHARACTERS_MAX} characters, "
    "at a public address or one that the operator opened",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One parameter that is wrong.

    Attributes:
        value: as given, cut short; None when it is missing.
        reason: a clause that follows the parameter's name in a sentence.
        says_allowed: the reason tells by itself what would be right.
        code: for the answer when this is the only problem.
        allowed_text: what would be right, for a parameter that is none of an edit's.
    """

    parameter: str
    value: object
    reason: str
    says_allowed: bool = False
    code: str = "invalid_parameters"
    allowed_text: str | None = None

    @property
    def allowed(self) -> str:
        return ALLOWED[self.parameter] if self.allowed_text is None else self.allowed_text

    @property
    def sentence(self) -> str:
        allowed = "" if self.says_allowed else f" (allowed: {self.allowed})"
        return f"{self.parameter} {self.reason}{allowed}"


class ParametersRefused(ValueError):
    """One parameter or more is wrong; all of them are in `problems`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "refused without a problem"
        listed = "; ".join(each.sentence for each in problems)
        super().__init__(f"wrong parameters: {listed}" if len(problems) > 1 else f"wrong parameter: {listed}")
        self.problems = tuple(problems)
        self.code = problems[0].code if len(problems) == 1 else "invalid_parameters"


def shown(value: object) -> object:
    """A caller's value for a message: as it is when short and when our own JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # as from a command line; JSON has none
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and value.bit_length() < 64):
        return value
    if isinstance(value, Upload):
        return f"a file of {len(value.data)} bytes"
    text = value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else _spelled(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def quoted(value: object) -> str:
    """A caller's value in a sentence: as `shown`, and a text in quotes."""
    short = shown(value)
    return orjson.dumps(short).decode() if value is None or isinstance(value, (str, bool, float)) else str(short)


def _spelled(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # orjson reads deeper than it writes
        return "(nested too deeply)"
