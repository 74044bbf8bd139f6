"""The body of OpenAI's `POST /v1/images/edits` -> our parameters, and how its answer is wanted. Pure.

A form says everything in text, JSON in its own types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from rekontext.api.bodies import FormFields, JsonObject, Upload
from rekontext.api.dialects import terms
from rekontext.api.edits import UnknownModel
from rekontext.api.orders import Draft
from rekontext.api.parameters import from_form, nameless_file
from rekontext.api.problems import Problem, shown
from rekontext.api.vocabulary import Vocabulary
from rekontext.contract import PICTURES_MAX, AspectRatio
from rekontext.models import SLUG

T = TypeVar("T")

NAMES: Final[Mapping[str, str]] = {
    "input_image": "image",
    "mask_image": "mask",
    "prompt": "prompt",
    "aspect_ratio": "aspect_ratio",
    "num_inference_steps": "num_inference_steps",
    "guidance": "guidance",
    "num_images": "n",
    "seed": "seed",
    "output_quality": "output_compression",
    "acceleration": "acceleration",
    "loras": "loras",
    "disable_safety_checker": "disable_safety_checker",
    "priority": "priority",
    "deadline_s": "deadline_s",
    "webhook_url": "webhook_url",
}
VOCABULARY: Final = Vocabulary(
    names=NAMES,
    allowed={
        "mask_image": "a picture of the photo's shape, in any form that it may have: transparent where it may change"
    },
)
_ALSO: Final = {"steps": "num_inference_steps", "guidance_scale": "guidance"}
_OURS: Final = {
    their: our for our, their in NAMES.items() if our not in ("input_image", "mask_image", "num_images")
} | _ALSO
_PICTURE: Final = re.compile(r"images?(\[\d*\])?")
_MASK: Final = re.compile(r"mask(\[\d*\])?")
_LORA: Final = re.compile(r"loras\[\d*\]")
_SIZES: Final = f"auto, or WIDTHxHEIGHT close to {terms.PROPORTIONS}"
_UNHEEDED: Final[Mapping[str, object]] = {"markup": None, "negative_prompt": ""}
_LOOKS_MAX: Final = 3
_NOTHING: Final = ("", "null")


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the answer is wanted.

    Attributes:
        is_linked: with a link to the picture instead of the picture.
        is_streamed: as a stream of events.
        looks: the most early looks that are to be in that.
    """

    is_linked: bool
    is_streamed: bool
    looks: int


@dataclass(frozen=True, kw_only=True)
class Asked(terms.Asked):
    """What a body asks for, and how the answer is wanted."""

    manner: Manner


def read(body: JsonObject | FormFields) -> Asked:
    """Find all that a body asks for, and all that is wrong with how it does.

    Raises:
        UnknownModel: it wants another model than the one that is served.
    """
    repeated: dict[str, Problem] = {}
    if isinstance(body, dict):
        fields = body
        given = {_OURS[name]: value for name, value in body.items() if name in _OURS}
    else:
        fields = dict(body)
        given, repeated = from_form([(_OURS[name], value) for name, value in body if name in _OURS])
        _put_together(body, given, repeated)
    if (model := fields.get("model")) not in (None, "", SLUG):
        raise UnknownModel(str(shown(model)), known=[SLUG])
    others = _Others(fields, wrong=repeated | terms.unheeded(fields, _UNHEEDED))
    pictures = _pictures(body, _PICTURE)
    if pictures:
        given["input_image"] = pictures[0]
    masks = _pictures(body, _MASK)
    if masks:
        given["mask_image"] = masks[0]
    if len(masks) > 1:
        others.refuse("mask_image", f"has {len(masks)} pictures", allowed="one")
    if len(pictures) > 1:
        others.refuse("input_image", f"has {len(pictures)} pictures", allowed="one")
    shape, shaped_by = others.shape(), "aspect_ratio"
    if given.get("aspect_ratio") is None:
        given["aspect_ratio"], shaped_by = shape, "size"
    given["output_format"] = others.choice("output_format", {"png": "png", "jpeg": "jpg", "webp": "webp"})
    given["num_images"] = others.choice("n", {str(count): count for count in range(1, PICTURES_MAX + 1)})
    others.choice("background", {"auto": None, "opaque": None})
    is_linked = others.choice("response_format", {"b64_json": False, "url": True})
    is_streamed = others.choice("stream", {"false": False, "true": True})
    looks = others.choice("partial_images", {str(count): count for count in range(_LOOKS_MAX + 1)})
    if is_linked and is_streamed:
        others.refuse("response_format", "is url, and a stream has no links", allowed="b64_json")
    if is_streamed and given["num_images"] != 1:
        others.refuse("n", f"is {given['num_images']}, and a stream has one picture", allowed="1")
    manner = Manner(is_linked=is_linked, is_streamed=is_streamed, looks=looks if is_streamed else 0)
    return Asked(given=given, wrong=others.wrong, shaped_by=shaped_by, manner=manner)


def _put_together(body: FormFields, given: dict[str, object], wrong: dict[str, Problem]) -> None:
    """Add the LoRAs of a list that a client has made fields of, one for each; of an entry that isn't text it makes
    several, in which it can't be found again."""
    fields = [(name, value) for name, value in body if name.startswith("loras[")]
    if not fields:
        return
    if "loras" in given:
        wrong["loras"] = Problem(parameter="loras", value=shown(given["loras"]), reason="is given more than once")
    elif all(_LORA.fullmatch(name) and isinstance(value, str) for name, value in fields):
        given["loras"] = [value for _, value in fields]
    else:
        reason = f"is in pieces, {shown(fields[0][0])} for one"
        allowed = "in a form, a list of texts, each NAME or NAME:STRENGTH, or one text with commas between them"
        wrong["loras"] = terms.problem("loras", None, reason, allowed=allowed)


def with_looks(draft: Draft, looks: int) -> Draft:
    """The draft of an edit that can be looked at so many times on its way."""
    if draft.parameters is None or looks == 0:
        return draft
    every = _every(draft.parameters.num_inference_steps, looks)
    return replace(draft, parameters=draft.parameters.model_copy(update={"previews": every}))


def is_due(seen: int, *, looks: int, step: int, steps: int) -> bool:
    """Whether the preview at `step` is the next look, of so many that are spread evenly over the steps.

    Args:
        seen: the looks that were there already.
    """
    # From half a pause before its place on: the preview nearest to that, or a later one if it was missed.
    return seen < looks and (2 * step + _every(steps, looks)) * (looks + 1) >= 2 * steps * (seen + 1)


def _every(steps: int, looks: int) -> int:
    """Steps from one preview to the next."""
    return max(1, steps // (looks + 1))


def _pictures(body: JsonObject | FormFields, called: re.Pattern[str]) -> list[object]:
    """Every picture, under any name that one or a list of them is sent by."""
    found: list[object] = []
    for name, value in body.items() if isinstance(body, dict) else body:
        if called.fullmatch(name):
            found += [_source(each) for each in (value if isinstance(value, list) else [value])]
    return [source for source in found if source not in (None, "", Upload(data=b""))]


def _source(value: object) -> object:
    match value:
        case {"image_url": {"url": url}} | {"image_url": url}:
            return url
        case str():
            return nameless_file(value) or value
    return value


class _Others:
    """Reads the fields that are no parameters of an edit; `wrong` is what is wrong with any."""

    def __init__(self, fields: Mapping[str, object], *, wrong: dict[str, Problem]) -> None:
        self._fields = fields
        self.wrong = wrong

    def choice(self, name: str, choices: Mapping[str, T]) -> T:
        """The one that is named; the first if none is."""
        text = self._text(name)
        if text and text not in choices:
            named = ", ".join(choices)
            self.refuse(name, f"is {text}", allowed=f"one of {named}" if len(choices) > 1 else named)
        return choices.get(text, next(iter(choices.values())))

    def shape(self) -> AspectRatio | None:
        """That of `size`."""
        text = self._text("size")
        if text in ("", "auto"):
            return None
        shape = terms.shape_of(text)
        if shape is None:
            self.refuse("size", f"is {text}", allowed=_SIZES)
        return shape

    def refuse(self, name: str, reason: str, *, allowed: str) -> None:
        value = shown(self._fields.get(name))
        self.wrong[name] = Problem(parameter=name, value=value, reason=reason, allowed_text=allowed)

    def _text(self, name: str) -> str:
        value = self._fields.get(name)
        text = "" if value is None else str(shown(value)).strip().lower()
        return "" if text in _NOTHING else text
