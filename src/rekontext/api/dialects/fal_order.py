"""The body of a call of fal's, with what stands beside it, -> our parameters, and how its result is wanted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rekontext.api.bodies import JsonObject
from rekontext.api.dialects import terms
from rekontext.api.problems import Problem, shown
from rekontext.api.vocabulary import Vocabulary
from rekontext.contract import ASPECT_RATIOS, LORA_STRENGTH_MAX, LORAS_MAX, AspectRatio

_DEFAULTS: Final[Mapping[str, object]] = {"num_inference_steps": 30, "guidance": 2.5}
_UNHEEDED: Final[Mapping[str, object]] = {
    "enhance_prompt": False,
    "negative_prompt": "",
    "image_urls": None,
    "strength": 1,
}
_REFERENCE: Final = "reference_image_url"
"""What its endpoint for masks calls the photo that the model looks at, beside the one that it edits."""
_OF_A_LORA: Final[Mapping[str, str]] = {"path": "name", "scale": "strength"}
"""In an entry of `loras`, theirs -> ours."""
_SIZES: Final[Mapping[str, AspectRatio]] = {
    "square_hd": "1:1",
    "square": "1:1",
    "portrait_4_3": "3:4",
    "portrait_16_9": "9:16",
    "landscape_4_3": "4:3",
    "landscape_16_9": "16:9",
}
_MATCHES_INPUT: Final = "match_input_image"
_PRIORITIES: Final[Mapping[str, int]] = {"low": -1}
VOCABULARY: Final = Vocabulary(
    names={
        "input_image": "image_url",
        "mask_image": "mask_url",
        "prompt": "prompt",
        "aspect_ratio": "resolution_mode",
        "num_inference_steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "num_images": "num_images",
        "seed": "seed",
        "output_format": "output_format",
        "acceleration": "acceleration",
        "loras": "loras",
        "webhook_url": "fal_webhook",
    },
    values={
        "output_format": {"jpeg": "jpg"},
        "aspect_ratio": {"match_input": _MATCHES_INPUT, "auto": _MATCHES_INPUT},
    },
    allowed={
        "output_format": "one of png, jpeg, webp",
        "aspect_ratio": f"one of match_input, {', '.join(ASPECT_RATIOS[1:])}",
        "loras": f'a list of at most {LORAS_MAX}, each once, as {{"path": WHERE, "scale": NUMBER}}, where WHERE is its '
        f"address or a name on offer; a scale is from {-LORA_STRENGTH_MAX:g} to {LORA_STRENGTH_MAX:g}, and not 0",
    },
)


@dataclass(frozen=True, kw_only=True)
class Asked(terms.Asked):
    """What a call asks for; `is_inline`: the result is to have the picture in itself."""

    is_inline: bool


def read(body: JsonObject, *, webhook: str | None, priority: str) -> Asked:
    """Find all that a call asks for, and what is wrong with how it does.

    Args:
        webhook: as its query has it.
        priority: as its header has it.
    """
    wrong = terms.unheeded(body, _UNHEEDED)
    if (reference := body.get(_REFERENCE)) not in (None, "", body.get("image_url")):
        allowed = "the same as image_url, or nothing"
        wrong[_REFERENCE] = terms.problem(_REFERENCE, reference, "is another photo", allowed=allowed)
    shape = terms.asked_shape(body.get("image_size"), "image_size", wrong, named=_SIZES)
    ratio = body.get("resolution_mode") or body.get("aspect_ratio")
    shaped_by = "aspect_ratio" if ratio else "image_size"
    given = {
        **_DEFAULTS,
        **VOCABULARY.ours(
            {**body, "resolution_mode": ratio or shape, "loras": _in_ours(body.get("loras")), "fal_webhook": webhook}
        ),
        "disable_safety_checker": not _flag(body, "enable_safety_checker", wrong, default=True),
        "priority": _PRIORITIES.get(priority, 0),
    }
    is_inline = _flag(body, "sync_mode", wrong, default=False)
    return Asked(given=given, wrong=wrong, shaped_by=shaped_by, is_inline=is_inline)


def _in_ours(loras: object) -> object:
    """LoRAs with the names in each entry as we have them. What an entry has under both is left to be refused."""
    if not isinstance(loras, list):
        return loras
    return [_renamed(each) if isinstance(each, dict) else each for each in loras]


def _renamed(entry: Mapping[str, object]) -> dict[str, object]:
    return {
        name if _OF_A_LORA.get(name) in entry else _OF_A_LORA.get(name, name): value for name, value in entry.items()
    }


def _flag(body: Mapping[str, object], name: str, wrong: dict[str, Problem], *, default: bool) -> bool:
    """A switch of the vendor's, or its default and a new problem."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        wrong[name] = terms.problem(name, value, f"is {shown(value)}", allowed="true or false")
        return default
    return value
