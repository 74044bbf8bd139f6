"""The body of Replicate's predictions -> our parameters, and which model it means. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from rekontext.api.bodies import JsonObject
from rekontext.api.dialects import terms
from rekontext.api.edits import UnknownModel
from rekontext.api.loras import lora_strength
from rekontext.api.problems import ParametersRefused, Problem, quoted
from rekontext.api.vocabulary import Vocabulary
from rekontext.contract import LORA_STRENGTH_MAX
from rekontext.models import SLUG

OWNER: Final = "black-forest-labs"
MODEL: Final = f"{OWNER}/{SLUG}"
WITH_LORAS: Final = f"{MODEL}-lora"
"""What the vendor calls the one that takes them; here it is the same."""
INPUT: Final = (
    "prompt",
    "input_image",
    "aspect_ratio",
    "num_inference_steps",
    "guidance",
    "seed",
    "output_format",
    "output_quality",
    "disable_safety_checker",
    "acceleration",
)
"""Our parameters that an input may have; they have the same names there."""
DEFAULTS: Final[Mapping[str, object]] = {
    "num_inference_steps": 30,
    "guidance": 2.5,
    "output_format": "webp",
    "output_quality": 80,
}
"""Of an input, where they aren't ours."""
MASK: Final = "mask"
LORA: Final = "lora_weights"
LORA_STRENGTH: Final = "lora_strength"
"""An input may have one LoRA, in two parameters."""
VOCABULARY: Final = Vocabulary(
    names={**{name: name for name in INPUT}, "mask_image": MASK, "loras": LORA, "webhook_url": "webhook"},
    allowed={"loras": "the address of a LoRA, or the name of one that is on offer"},
)
_UNHEEDED: Final[Mapping[str, object]] = {
    "num_outputs": 1,
    "megapixels": "1",
    "width": None,
    "height": None,
    "negative_prompt": None,
    "input_image_2": None,
}
_EVENTS: Final = "webhook_events_filter"
_COMPLETED: Final = "completed"


def read(body: JsonObject) -> terms.Asked:
    """Find all that a body asks for, and what is wrong with how it does.

    Raises:
        ParametersRefused: it has no input.
    """
    asked: Any = body.get("input")
    if not isinstance(asked, dict):
        raise refused("input", asked, "is no object", allowed="the edit's parameters by name")
    wrong = terms.unheeded(asked, _UNHEEDED)
    shape = terms.asked_shape(asked.get("size"), "size", wrong)
    if "auth" in asked:  # one client sends itself as the input when it is to send files as data URIs
        reason = "has a key in it, which is none of an edit's"
        wrong["auth"] = terms.problem("auth", None, reason, allowed="an input without it")
    events: Any = body.get(_EVENTS)
    if not (events is None or isinstance(events, list)):
        allowed = f'a list, with "{_COMPLETED}" in it to be told'
        wrong[_EVENTS] = terms.problem(_EVENTS, events, "is no list", allowed=allowed)
    is_told = not isinstance(events, list) or _COMPLETED in events
    photo = asked.get("input_image")
    found = {
        **asked,
        "input_image": asked.get("image") if photo is None else photo,
        LORA: _lora(asked, wrong),
        "webhook": body.get("webhook") if is_told else None,
    }
    shaped_by = "size" if asked.get("aspect_ratio") is None else "aspect_ratio"
    given = {**DEFAULTS, "aspect_ratio": shape, **VOCABULARY.ours(found)}
    return terms.Asked(given=given, wrong=wrong, shaped_by=shaped_by)


def told(parameters: Mapping[str, Any]) -> dict[str, object]:
    """A job's parameters as an input."""
    found = {name: parameters[name] for name in INPUT if name in parameters}
    mask = {MASK: parameters["mask_image"]} if "mask_image" in parameters else {}
    return found | mask | _loras_told(parameters)


def _loras_told(parameters: Mapping[str, Any]) -> dict[str, object]:
    """LoRAs; more than one, which no input can have, under our name."""
    match parameters.get("loras", []):
        case []:
            return {}
        case [{"name": name, "strength": strength}]:
            return {LORA: name, LORA_STRENGTH: strength}
        case several:
            return {"loras": several}


def _lora(asked: Mapping[str, object], wrong: dict[str, Problem]) -> object:
    """The LoRA of an input, in our words, and new problems: for a strength that is none, and for several."""
    name, strength = asked.get(LORA), asked.get(LORA_STRENGTH)
    if asked.get("loras") not in (None, "", []):
        several = "input.loras"  # under our own name it would be told as what stands for it here
        wrong[several] = terms.problem(
            several, asked["loras"], "can't be heeded here", allowed=f"one LoRA, as {LORA} and {LORA_STRENGTH}"
        )
    if name in (None, ""):
        return None
    if strength is not None and lora_strength(strength) is None:
        allowed = f"a number from {-LORA_STRENGTH_MAX:g} to {LORA_STRENGTH_MAX:g}, and not 0"
        wrong[LORA_STRENGTH] = terms.problem(LORA_STRENGTH, strength, f"is {quoted(strength)}", allowed=allowed)
        strength = None
    return [{"name": name, "strength": strength}]


def check_model(name: str) -> None:
    """Return if this model is here.

    Raises:
        UnknownModel: it isn't.
    """
    if name not in (MODEL, WITH_LORAS):
        raise UnknownModel(name, known=[MODEL])


def check_reference(body: JsonObject, *, served: Callable[[], str]) -> None:
    """Return if a body means the model that is here: owner/name, a version, or both as owner/name:version.

    Args:
        served: the version that is here; asked only where one is meant, since it may not be known yet.

    Raises:
        UnknownModel: it means another model.
        ParametersRefused: it means none, or another version.
    """
    parameter = "model" if body.get("version") is None else "version"
    reference = body.get(parameter)
    if not isinstance(reference, str):
        raise refused("version", reference, "names no model", allowed=f"a version, or {MODEL}")
    model, _, version = reference.partition(":") if "/" in reference else (MODEL, "", reference)
    check_model(model)
    if version and version != (here := served()):
        raise refused("version", version, "is not the one that is served", allowed=here)


def refused(parameter: str, value: object, reason: str, *, allowed: str) -> ParametersRefused:
    """One parameter that is wrong, though it is none of an edit's."""
    return ParametersRefused([terms.problem(parameter, value, reason, allowed=allowed)])
