"""The parameters of `flux-kontext-dev` on Segmind's surface: names, types, ranges and defaults as its page states them.

`mask_image`, `num_images`, `acceleration` and those after it are our own.

How strict: JSON types are meant as they stand, so "35" is no number and true is no number; 35.0 is the integer 35,
because many clients have one number type. null stands for a parameter left out. A form has only text, which is read
as JSON would spell the value; there an empty field is one left out, and a file needs no name. Unknown parameters are
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rekontext.api.bodies import Upload
from rekontext.api.loras import LORAS_UNREAD, AskedLoras, shown_loras
from rekontext.api.problems import ALLOWED, DEADLINE_S_MAX, PROMPT_CHARACTERS_MAX, Problem, quoted, shown
from rekontext.contract import (
    GUIDANCE_DEFAULT,
    GUIDANCE_MAX,
    GUIDANCE_MIN,
    PICTURES_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    SEED_MAX,
    STEPS_DEFAULT,
    STEPS_MAX,
    STEPS_MIN,
    Acceleration,
    AspectRatio,
)
from rekontext.jobs import WebhookRefused
from rekontext.jobs.endpoints import URL_CHARACTERS_MAX, check_url
from rekontext.pictures import QUALITY_DEFAULT, QUALITY_MAX, QUALITY_MIN, OutputFormat, sniff

FILES_MAX: Final = 16
"""Uploads in one request."""
_JSON_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_JSON_LIST_CHARACTERS_MAX: Final = 2**14
"""In a field of a form."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must be text without NUL characters")
    return text


def _printable(text: str) -> str:
    if not text.strip():
        raise ValueError("must be text that isn't blank")
    return _without_nul(text)


def _callable(url: str) -> str:
    try:
        check_url(url)
    except WebhookRefused as fault:
        raise ValueError(str(fault)) from fault
    return url


def _no_number(kind: Literal["date", "datetime"]) -> BeforeValidator:
    """Pydantic reads a number as the seconds since 1970, and so a day without its dashes."""

    def refuse(value: object) -> object:
        try:
            float(str(value))
        except ValueError:
            return value
        raise PydanticCustomError(f"{kind}_number", "a number is none")

    return BeforeValidator(refuse)


def _in_utc(when: datetime) -> datetime:
    try:
        return when.astimezone(UTC)
    except OverflowError as fault:
        raise ValueError("must be in the years 1 to 9999, in UTC") from fault


Whole = BeforeValidator(_whole)
Storable = AfterValidator(_without_nul)
"""Of a text; PostgreSQL keeps none with NUL in it."""
Day = Annotated[date, _no_number("date")]
Moment = Annotated[AwareDatetime, _no_number("datetime"), AfterValidator(_in_utc)]


class KontextParameters(BaseModel):
    """One edit as the wire asks for it. A `seed` of None asks for a random one."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    input_image: str | Upload = Field(description="Reference picture: jpeg, png, gif (first frame) or webp.")
    prompt: Annotated[str, AfterValidator(_printable)] = Field(
        min_length=1, max_length=PROMPT_CHARACTERS_MAX, description="What to do to the picture, in plain words."
    )
    mask_image: str | Upload | None = Field(
        default=None, description="White where the picture may change; where it is black the photo stays as it is."
    )
    aspect_ratio: AspectRatio = Field(default="match_input_image", description="Shape of the answer.")
    disable_safety_checker: bool = Field(
        default=False, description="Skip the check of the finished picture, if this server has one and lets callers."
    )
    guidance: float = Field(
        default=GUIDANCE_DEFAULT, ge=GUIDANCE_MIN, le=GUIDANCE_MAX, description="How closely to follow the prompt."
    )
    num_inference_steps: Annotated[int, Whole] = Field(
        default=STEPS_DEFAULT, ge=STEPS_MIN, le=STEPS_MAX, description="More steps take longer and add detail."
    )
    output_format: OutputFormat = Field(default="png", description="Type of the answer.")
    output_quality: Annotated[int, Whole] = Field(
        default=QUALITY_DEFAULT, ge=QUALITY_MIN, le=QUALITY_MAX, description="For jpg and webp; png is lossless."
    )
    # The bounds stand on the integer itself: anywhere else they are checked, but not described.
    seed: Annotated[int, Field(ge=0, le=SEED_MAX), Whole] | None = Field(
        default=None, description="The same seed gives the same picture; -1 or nothing is random."
    )
    num_images: Annotated[int, Whole] = Field(
        default=1, ge=1, le=PICTURES_MAX, description="Each costs and takes what one does; their seeds count up."
    )
    acceleration: Acceleration = Field(default="none", description="Leave transformer passes out; none is exact.")
    loras: AskedLoras = Field(
        default=(), description="Of the LoRAs on offer, those to be merged into the model for this edit."
    )
    priority: Annotated[int, Whole] = Field(
        default=0, ge=PRIORITY_MIN, le=PRIORITY_MAX, description="Above 0 needs a key with the scope admin."
    )
    deadline_s: float | None = Field(
        default=None, gt=0, le=DEADLINE_S_MAX, description="Refuse at once what can't be done in so many seconds."
    )
    previews: Annotated[int, Whole] = Field(
        default=0, ge=0, le=STEPS_MAX, description="An early look after every so many steps, in the event stream."
    )
    webhook_url: Annotated[str, AfterValidator(_callable)] | None = Field(
        default=None, description="Told of the end of this one edit."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in given.items() if value is not None and not _is_random(name, value)}


def _is_random(name: str, value: object) -> bool:
    return name == "seed" and not isinstance(value, bool) and value in ("", -1)


def parse(given: Mapping[str, object]) -> tuple[KontextParameters | None, list[Problem]]:
    """Check every parameter. Either the parameters or the list of all that is wrong comes back."""
    try:
        return KontextParameters.model_validate(given), []
    except ValidationError as fault:
        found: dict[str, Problem] = {}
        for error in fault.errors(include_url=False, include_input=False):
            name = str(error["loc"][0])
            reason = error["msg"] if error["type"] == LORAS_UNREAD else None
            found.setdefault(name, _problem(name, given.get(name), reason))
        return None, list(found.values())


def from_form(fields: Sequence[tuple[str, str | Upload]]) -> tuple[dict[str, object], dict[str, Problem]]:
    """Form fields as the values that JSON would carry, and by name the fields that came more than once."""
    given: dict[str, object] = {}
    repeated: dict[str, Problem] = {}
    for name, value in fields:
        if name not in ALLOWED:
            continue
        if name in given:
            repeated[name] = Problem(parameter=name, value=_told(name, value), reason="is given more than once")
        given[name] = _from_text(name, value) if isinstance(value, str) else _from_file(name, value)
    return given, repeated


def nameless_file(text: str) -> Upload | None:
    """The picture in a form field that was read as text because its sender gave the file no name, or None.

    Some HTTP libraries leave the name out unless it is asked for. The form's parser reads bytes that are not UTF-8 as
    Latin-1, which loses none of them; and jpeg and png never are UTF-8, gif and webp hardly ever.
    """
    try:
        return Upload(data=text.encode("latin-1")) if sniff(text[:12].encode("latin-1")) else None
    except UnicodeEncodeError:
        return None


def _problem(name: str, value: object, reason: str | None = None) -> Problem:
    if value is None:
        return Problem(parameter=name, value=None, reason="is missing")
    return Problem(parameter=name, value=_told(name, value), reason=reason or f"is {quoted(value)}")


def _told(name: str, value: object) -> object:
    """A caller's value for a message; addresses without their secrets."""
    return shown_loras(value) if name == "loras" else shown(value)


def _from_text(name: str, text: str) -> object:
    if name in _PICTURES and (file := nameless_file(text)) is not None:
        return file
    if name in _REQUIRED:
        return text
    plain = text.strip()
    if plain in _NOTHING:
        return None
    if name in _TEXTS:
        return text
    if name == "loras":
        return _list(plain)
    if name == "disable_safety_checker":
        return {"true": True, "false": False}.get(plain.lower(), text)
    return _number(plain) if _JSON_NUMBER.fullmatch(plain) else text


def _from_file(name: str, file: Upload) -> Upload | None:
    """A page's form sends a file without name and bytes where none was chosen."""
    return file if name in _REQUIRED or file.name or file.data else None


def _list(text: str) -> object:
    """What a text says if it is the JSON of a list, else the text itself."""
    if text.startswith("[") and len(text) <= _JSON_LIST_CHARACTERS_MAX:
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return text


def _number(digits: str) -> object:
    try:
        return orjson.loads(digits)
    except orjson.JSONDecodeError:  # larger than any float
        return digits


_REQUIRED: Final = frozenset(name for name, field in KontextParameters.model_fields.items() if field.is_required())
_PICTURES: Final = ("input_image", "mask_image")
_TEXTS: Final = frozenset({"mask_image", "aspect_ratio", "output_format", "acceleration", "webhook_url"})
_NOTHING: Final = frozenset({"", "null"})  # a script's null becomes a form's "null"


_NULL: Final = {"type": "null"}


def schema(*, as_form: bool) -> dict[str, Any]:
    """JSON Schema of the parameters, for the API's documentation. In JSON, null stands for one that is left out."""
    document = KontextParameters.model_json_schema()
    for ours in ("$defs", "description"):  # what is written for whoever reads the code
        document.pop(ours, None)
    forms = "A file." if as_form else "An http(s) URL, a data URI or base64."
    binary = {"format": "binary"} if as_form else {}
    for name in _PICTURES:
        description = KontextParameters.model_fields[name].description
        document["properties"][name] = {"type": "string", "description": f"{description} {forms}", **binary}
    document["properties"]["webhook_url"]["anyOf"][0] |= {"format": "uri", "maxLength": URL_CHARACTERS_MAX}
    document["properties"]["seed"]["anyOf"][0]["minimum"] = -1  # taken for a missing one before ranges are looked at
    if as_form:  # else the page that tries it out makes values up, and sends them: a deadline of a second
        loras = {name: document["properties"]["loras"][name] for name in ("title", "description")}
        loras["description"] += " NAME or NAME:STRENGTH, separated by commas, or the JSON of a list."
        document["properties"]["loras"] = {"type": "string", **loras}
        for optional in ("mask_image", "deadline_s", "loras", "webhook_url"):
            document["properties"][optional]["example"] = ""
    else:
        for name in KontextParameters.model_fields.keys() - _REQUIRED:
            document["properties"][name] = _nullable(document["properties"][name])
    return document


def _nullable(described: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of what a field may be, or null. Bounds and descriptions stay where they stand."""
    if "anyOf" in described:
        kinds = [each for each in described["anyOf"] if each != _NULL]
        return described | {"anyOf": [*kinds, _NULL]}
    choices = {"enum": [*described["enum"], None]} if "enum" in described else {}
    return described | {"type": [described["type"], "null"]} | choices
