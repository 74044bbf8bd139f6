"""LoRAs as requests ask for them: one text, a list, or objects -> names and strengths."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from rekontext.api.problems import ParametersRefused, Problem, quoted, shown
from rekontext.contract import LORA_STRENGTH_MAX, LORAS_MAX
from rekontext.models import BROUGHT_LORA, LORA_NAME, STRENGTH, lora_and_strength
from rekontext.pictures import shown_address

ADDRESS_CHARACTERS_MAX: Final = 2000
_PIECES_MAX: Final = 16
"""Of a text that names LoRAs: it is taken apart at so many commas."""
LORAS_UNREAD: Final = "loras_unread"

Loras = tuple[tuple[str, float], ...]
"""Names and strengths, in the order of the names: two spellings of one request are one."""
_ONE_LORA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {
            "type": "string",
            "minLength": 1,
            "maxLength": ADDRESS_CHARACTERS_MAX,
            "description": "On offer, or brought before; or the URL of a .safetensors file, or owner/name on the hub.",
        },
        "strength": {
            "type": ["number", "null"],
            "minimum": -LORA_STRENGTH_MAX,
            "maximum": LORA_STRENGTH_MAX,
            "not": {"const": 0},
            "default": 1,
        },
    },
    "required": ["name"],
    "additionalProperties": False,
}
_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {
            "type": "array",
            "items": {"anyOf": [{"type": "string", "description": "NAME or NAME:STRENGTH."}, _ONE_LORA]},
            "maxItems": LORAS_MAX,
        },
        {"type": "string", "description": "The same, separated by commas."},
    ]
}


def loras_of(given: object) -> Loras:
    """LoRAs, in whichever way they are asked for. Of their names it is only looked whether they are texts.

    Raises:
        ParametersRefused: they can't be read.
    """
    try:
        return () if given is None else _read(given)
    except PydanticCustomError as fault:
        problem = Problem(parameter="loras", value=shown_loras(given), reason=fault.message())
        raise ParametersRefused([problem]) from fault


def shown_loras(given: object) -> object:
    """As `shown`, without the passwords and signatures of addresses."""
    return shown([_bare(each) for each in given[: LORAS_MAX + 1]] if isinstance(given, list) else _bare(given))


def lora_strength(value: object) -> float | None:
    """The strength at which a LoRA is to be merged; None for what can't be one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < abs(value) <= LORA_STRENGTH_MAX else None


def _read(given: object) -> Loras:
    entries = given
    if isinstance(given, str):  # as in the setting, nothing between two commas asks for nothing
        entries = [part.strip() for part in given.split(",", _PIECES_MAX) if part.strip()]
    if not isinstance(entries, list):
        raise _loras_unread(f"is {_quoted(given)}")
    if len(entries) > LORAS_MAX:
        raise _loras_unread(f"has more than {LORAS_MAX} entries")
    found: dict[str, float] = {}
    for name, strength in map(_lora, entries):
        if name in found:
            raise _loras_unread(f"has {_quoted(name)} twice")
        found[name] = strength
    return tuple(sorted(found.items()))


def _lora(entry: object) -> tuple[str, float]:
    name: object
    strength: object
    match entry:
        case str() if "/" in entry:  # an address, which has colons of its own
            name, strength = _address_and_strength(entry)
        case str():
            try:
                name, strength = lora_and_strength(entry)
            except ValueError as fault:
                raise _loras_unread(f"has {_quoted(entry)} in it") from fault
        case dict():
            if strange := entry.keys() - {"name", "strength"}:
                raise _loras_unread(f"has an entry with {quoted(min(strange))} in it")
            name, strength = entry.get("name"), entry.get("strength")
        case _:
            raise _loras_unread(f"has {_quoted(entry)} in it")
    if not isinstance(name, str) or not name:
        raise _loras_unread(f"has an entry whose name is {_quoted(name)}")
    by = lora_strength(1 if strength is None else strength)
    if by is None:
        raise _loras_unread(f"has {_quoted(name)} with a strength of {quoted(strength)}")
    return name, by


def _address_and_strength(entry: str) -> tuple[str, float]:
    address, colon, strength = entry.rpartition(":")
    if colon and "/" in address and STRENGTH.fullmatch(strength):
        return address, float(strength)
    return entry, 1.0


def _named(loras: Loras) -> Loras:
    for name, _ in loras:
        is_name = LORA_NAME.fullmatch(name) or BROUGHT_LORA.fullmatch(name)
        if not is_name and not ("/" in name and len(name) <= ADDRESS_CHARACTERS_MAX and name.isprintable()):
            raise _loras_unread(f"has {_quoted(name)}, which is neither a name nor an address of one")
    return loras


def _bare(entry: object) -> object:
    """An entry, or a text of several, without what stands behind an address's first ? or # or before its @."""
    match entry:
        case str() if "/" in entry:
            several = entry.partition("?")[0].partition("#")[0].split(",")
            return ",".join(shown_address(each) if "/" in each else each for each in several)
        case dict():
            return {name: _bare(value) if isinstance(value, str) else value for name, value in entry.items()}
    return entry


def _quoted(entry: object) -> str:
    return quoted(_bare(entry))


def _loras_unread(reason: str) -> PydanticCustomError:
    """Its message is the reason of a `Problem`."""
    return PydanticCustomError(LORAS_UNREAD, "{reason}", {"reason": reason})


AskedLoras = Annotated[Loras, BeforeValidator(_read), AfterValidator(_named), WithJsonSchema(_SCHEMA)]
"""The parameter. An error of type `LORAS_UNREAD` has in its message what is wrong."""
