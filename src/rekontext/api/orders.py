"""A request in the words of `flux-kontext-dev` -> one checked `EditOrder`, or all that is wrong with it at once.

In two steps: `draft` reads the body (or takes what another surface has made of one), `finish` fetches the pictures.
Between them the caller may find that the same request came before, and then nothing is fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request

from rekontext.api.bodies import FormFields, JsonObject, Upload, read_body, read_json
from rekontext.api.brought import BringingRefused, BroughtLoras
from rekontext.api.loras import Loras, loras_of, shown_loras
from rekontext.api.parameters import KontextParameters, from_form, parse
from rekontext.api.problems import ParametersRefused, Problem, quoted, shown
from rekontext.api.workbench import EditOrder, shown_source
from rekontext.contract import AspectRatio, same_shape
from rekontext.database import AccountId
from rekontext.dialling import AllowList
from rekontext.masks import MaskRefused
from rekontext.models import LORA_NAME
from rekontext.pictures import (
    CodecThreads,
    Marks,
    Photo,
    PhotoReader,
    PictureRefused,
    Shortcut,
    decode_mask,
    encode_mask,
    is_url,
    shown_size,
)

_NONE: Final[Mapping[str, Problem]] = {}
_NOTHING: Final[Mapping[str, object]] = {}
_OFFERS_SHOWN_MAX: Final = 10
RATIO_OFF_MAX: Final = 0.07
"""By so much, relatively, a size may miss an aspect ratio and have it: the model's own for 5:4 is 1104 x 944."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An order whose pictures aren't there yet.

    Attributes:
        parameters: None when one of them is wrong.
        source, mask_source: the pictures as they came: text, a file, or something that is neither.
        marks: what of the mask says where the photo may change.
        shaped_by: the parameter that asks for a shape; another than `aspect_ratio` in some dialects.
        problems: by parameter.
        body_digest: hex SHA-256 of every parameter, the same however it was spelled; empty when one is wrong.
        dialect: what the job is to remember of another vendor's, with its "name"; empty for our own.
    """

    parameters: KontextParameters | None
    source: object
    mask_source: object
    marks: Marks
    shaped_by: str
    problems: Mapping[str, Problem]
    body_digest: str
    dialect: Mapping[str, object] = field(default_factory=dict)

    @property
    def bringing(self) -> KontextParameters | None:
        """The parameters, if nothing is wrong so far and LoRAs are to be brought for it."""
        brings = self.parameters is not None and any("/" in name for name, _ in self.parameters.loras)
        return self.parameters if brings and not self.problems else None

    def of_one_picture(self, why: str) -> Draft:
        """The same, refused if it asks for several. `why` is a clause that says for what they are too many."""
        count = 1 if self.parameters is None else self.parameters.num_images
        if count == 1:
            return self
        problem = Problem(
            parameter="num_images", value=count, reason=f"is {count}, and {why}", allowed_text="1, or nothing"
        )
        return replace(self, problems={**self.problems, problem.parameter: problem}, body_digest="")


class OrderReader:
    """Reads orders from requests.

    Args:
        draw_seed: makes the seed of an order that comes without one.
        body_bytes_max: also the most that one field of a form may hold.
        receivers: what of webhooks' addresses that aren't public may be dialled all the same.
        offers: names of the LoRAs that an edit may ask for; None while nobody can say, and then any are accepted.
        brought: brings those that are asked for by address.
    """

    def __init__(
        self,
        *,
        photos: PhotoReader,
        threads: CodecThreads,
        draw_seed: Callable[[], int],
        body_bytes_max: int,
        receivers: AllowList,
        offers: Callable[[], Awaitable[Sequence[str] | None]],
        brought: BroughtLoras,
    ) -> None:
        self._photos = photos
        self._threads = threads
        self._draw_seed = draw_seed
        self._body_bytes_max = body_bytes_max
        self._receivers = receivers
        self._offers = offers
        self._brought = brought

    async def draft(self, request: Request) -> Draft:
        """Read the body and check every parameter but the pictures. Finds problems, raises none of them.

        Raises:
            UnsupportedContentType, MalformedBody, BodyTooLarge, CallerGone: the body could not be read.
        """
        body = await self.body(request)
        given, repeated = (body, {}) if isinstance(body, dict) else from_form(body)
        return await self.draft_of(given, wrong=repeated)

    async def body(self, request: Request) -> JsonObject | FormFields:
        """The whole body, once, as `read_body`."""
        return await read_body(request, self._threads, bytes_max=self._body_bytes_max)

    async def json(self, request: Request) -> JsonObject:
        """The whole body, once, as `read_json`."""
        return await read_json(request, self._threads)

    async def draft_of(
        self,
        given: Mapping[str, object],
        *,
        wrong: Mapping[str, Problem] = _NONE,
        dialect: Mapping[str, object] = _NOTHING,
        marks: Marks = "white",
        shaped_by: str = "aspect_ratio",
    ) -> Draft:
        """Check every parameter but the pictures, under the names that we have for them.

        Args:
            wrong: problems that were found before, by parameter; they stand before those that are found here.
            dialect, marks, shaped_by: as `Draft` has them.
        """
        parameters, found = parse(given)
        unreachable = self._unreachable(given.get("webhook_url"))
        if unreachable is not None and "webhook_url" not in {each.parameter for each in found}:
            parameters, found = None, [*found, unreachable]
        # It keeps its digest: what was on offer when the same request came before has made an edit, whatever is now.
        if (unoffered := await self._unoffered(given.get("loras"))) is not None:
            found = [*(each for each in found if each.parameter != "loras"), unoffered]
        return Draft(
            parameters=parameters,
            source=given.get("input_image"),
            mask_source=given.get("mask_image"),
            marks=marks,
            shaped_by=shaped_by,
            problems={**wrong} | {each.parameter: each for each in found if each.parameter not in wrong},
            body_digest="" if parameters is None else await self._threads.run(_digest, parameters, marks),
            dialect=dialect,
        )

    async def finish(self, draft: Draft, *, account: AccountId, shortcut: Shortcut | None = None) -> EditOrder:
        """Fetch LoRAs that lie elsewhere, and the pictures: these last, since an order that waits long holds them.

        Args:
            account: for whom.
            shortcut: reads the URLs that lead back to this server.

        Raises:
            ParametersRefused: with every parameter that is wrong.
        """
        problems, parameters = dict(draft.problems), draft.parameters
        loras = await self._loras(parameters, problems, account)
        photo = await self._picture("input_image", draft.source, problems, account, shortcut)
        mask = await self._picture("mask_image", draft.mask_source, problems, account, shortcut)
        marked = None
        if photo is not None and mask is not None and not problems:
            ratio = "match_input_image" if parameters is None else parameters.aspect_ratio
            marked = await self._threads.run(_marked, mask, photo, draft, ratio, problems)
        if parameters is None or photo is None or problems:
            raise ParametersRefused(list(problems.values()))
        return EditOrder(
            prompt=parameters.prompt,
            photo=photo,
            photo_url=_url(draft.source),
            mask=marked,
            mask_shown="" if mask is None else shown_source(mask, _url(draft.mask_source)),
            seed=self._draw_seed() if parameters.seed is None else parameters.seed,
            pictures=parameters.num_images,
            steps=parameters.num_inference_steps,
            guidance=parameters.guidance,
            aspect_ratio=parameters.aspect_ratio if marked is None else "match_input_image",
            output_format=parameters.output_format,
            output_quality=parameters.output_quality,
            has_safety_checker=not parameters.disable_safety_checker,
            acceleration=parameters.acceleration,
            loras=loras,
            priority=parameters.priority,
            deadline_s=parameters.deadline_s,
            preview_every=parameters.previews or None,
            webhook_url=parameters.webhook_url,
            body_digest=draft.body_digest,
            dialect=draft.dialect,
        )

    def _unreachable(self, webhook_url: object) -> Problem | None:
        """What is wrong with a URL that is one."""
        try:
            host = urlsplit(webhook_url).hostname if isinstance(webhook_url, str) else None
        except ValueError:
            return None
        why = None if host is None else self._receivers.refusal(host)
        if why is None:
            return None
        return Problem(parameter="webhook_url", value=shown(webhook_url), reason=f"can't be told: {why}")

    async def _unoffered(self, loras: object) -> Problem | None:
        """What is wrong with LoRAs that can be read, and aren't all on offer."""
        try:
            names = [name for name, _ in loras_of(loras) if LORA_NAME.fullmatch(name)]
        except ParametersRefused:  # as `parse` has found, too
            return None
        offers = await self._offers() if names else None
        strange = [] if offers is None else [quoted(name) for name in names if name not in offers]
        if offers is None or not strange:
            return None
        told = f"this server offers {_named(offers)}"
        reason = f"asks for {' and '.join(strange)}, and {told}"
        return Problem(parameter="loras", value=shown_loras(loras), reason=reason, says_allowed=True, allowed_text=told)

    async def _loras(
        self, parameters: KontextParameters | None, problems: dict[str, Problem], account: AccountId
    ) -> Loras:
        """Its LoRAs by name, or none and a new problem. None is fetched for an order that fails anyway."""
        if parameters is None or problems or all(LORA_NAME.fullmatch(name) for name, _ in parameters.loras):
            return () if parameters is None else parameters.loras
        try:
            return await self._brought.named(parameters.loras, account=account)
        except BringingRefused as fault:
            value = shown_loras([{"name": name, "strength": strength} for name, strength in parameters.loras])
            problems["loras"] = Problem(
                parameter="loras", value=value, reason=str(fault), says_allowed=True, code=fault.code
            )
            return ()

    async def _picture(
        self, name: str, source: object, problems: dict[str, Problem], account: AccountId, shortcut: Shortcut | None
    ) -> Photo | None:
        """One of its pictures, or None and a new problem. Nothing is fetched for an order that fails anyway."""
        if name in problems or not isinstance(source, (str, Upload)):
            return None
        if problems and isinstance(source, str) and is_url(source):
            return None
        try:
            data = source.data if isinstance(source, Upload) else source
            return await self._photos.read(data, caller=account, shortcut=shortcut)
        except PictureRefused as fault:
            problems[name] = picture_problem(fault, source, name)
            return None


def picture_problem(fault: PictureRefused, source: object = None, parameter: str = "input_image") -> Problem:
    """What is wrong with a picture, as a problem with the parameter that brought it."""
    reason = f"can't be used: {fault}"
    return Problem(parameter=parameter, value=shown(source), reason=reason, says_allowed=True, code=fault.code)


def _marked(mask: Photo, photo: Photo, draft: Draft, ratio: AspectRatio, problems: dict[str, Problem]) -> bytes | None:
    """What a mask marks of its photo, as a file; or None and a new problem."""

    def refuse(reason: str, code: str) -> None:
        value = shown(draft.mask_source)
        problems["mask_image"] = Problem(
            parameter="mask_image", value=value, reason=reason, says_allowed=True, code=code
        )

    size, photo_size = shown_size(mask), shown_size(photo)
    if not same_shape(size, photo_size):
        told = f"is {size[0]}x{size[1]} and the photo {photo_size[0]}x{photo_size[1]}: they must have the same shape"
        refuse(told, MaskRefused.code)
    if not _is_shape_of(photo_size, ratio):
        problems[draft.shaped_by] = Problem(
            parameter=draft.shaped_by,
            value=ratio,
            reason=f"asks for {ratio}, and with a mask the picture keeps the shape of the photo",
            allowed_text="that of the photo, or nothing",
        )
    if problems:
        return None
    try:
        return encode_mask(decode_mask(mask, draft.marks))
    except MaskRefused as fault:
        refuse(fault.reason, fault.code)
    except PictureRefused as fault:
        problems["mask_image"] = picture_problem(fault, draft.mask_source, "mask_image")
    return None


def _is_shape_of(size: tuple[int, int], ratio: AspectRatio) -> bool:
    """Whether a photo of this size has that shape anyway."""
    width, colon, height = ratio.partition(":")
    return not colon or abs(size[0] * int(height) / (size[1] * int(width)) - 1) <= RATIO_OFF_MAX


def _url(source: object) -> str | None:
    return source if isinstance(source, str) and is_url(source) else None


def _named(offers: Sequence[str]) -> str:
    more = len(offers) - _OFFERS_SHOWN_MAX
    shown_names = ", ".join(offers[:_OFFERS_SHOWN_MAX])
    return f"{shown_names} and {more} more" if more > 0 else shown_names or "none"


def _digest(parameters: KontextParameters, marks: Marks = "white") -> str:
    """The same for two requests that ask for the same: what is null, unknown, or the default asks for nothing.

    Takes milliseconds for a large picture.
    """
    plain = {name: getattr(parameters, name) for name in KontextParameters.model_fields}
    plain["guidance"] += 0.0  # of -0.0 too it makes 0.0
    if not parameters.loras:  # which earlier versions, whose digests are known for a day, had no name for
        del plain["loras"]
    if parameters.mask_image is None:  # likewise
        del plain["mask_image"]
    elif marks != "white":  # of one picture it may be another mask
        plain["marks"] = marks
    if parameters.num_images == 1:
        del plain["num_images"]
    for name, value in plain.items():
        if isinstance(value, Upload):
            plain[name] = {"sha256": hashlib.sha256(value.data).hexdigest()}
    return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()
