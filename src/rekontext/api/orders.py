"""A request in the words of `flux-kontext-dev` -> one checked `EditOrder`, or all that is wrong with it at once.

In two steps: `draft` reads the body (or takes what another surface has made of one), `finish` fetches the picture.
Between them the caller may find that the same request came before, and then nothing is fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request

from rekontext.api.bodies import FormFields, JsonObject, read_body, read_json
from rekontext.api.parameters import (
    KontextParameters,
    ParametersRefused,
    Problem,
    Upload,
    from_form,
    loras_of,
    parse,
    quoted,
    shown,
)
from rekontext.api.workbench import EditOrder
from rekontext.database import AccountId
from rekontext.dialling import AllowList
from rekontext.pictures import CodecThreads, Photo, PhotoReader, PictureRefused, Shortcut, is_url

_NONE: Final[Mapping[str, Problem]] = {}
_NOTHING: Final[Mapping[str, object]] = {}
_OFFERS_SHOWN_MAX: Final = 10


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An order whose picture isn't there yet.

    Attributes:
        parameters: None when one of them is wrong.
        source: the picture as it came: text, a file, or something that is neither.
        problems: by parameter.
        body_digest: hex SHA-256 of every parameter, the same however it was spelled; empty when one is wrong.
        dialect: what the job is to remember of another vendor's, with its "name"; empty for our own.
    """

    parameters: KontextParameters | None
    source: object
    problems: Mapping[str, Problem]
    body_digest: str
    dialect: Mapping[str, object] = field(default_factory=dict)


class OrderReader:
    """Reads orders from requests.

    Args:
        draw_seed: makes the seed of an order that comes without one.
        body_bytes_max: also the most that one field of a form may hold.
        receivers: what of webhooks' addresses that aren't public may be dialled all the same.
        offers: names of the LoRAs that an edit may ask for; None while nobody can say, and then any are accepted.
    """

    def __init__(
        self,
        *,
        photos: PhotoReader,
        threads: CodecThreads,
        draw_seed: Callable[[], int],
        body_bytes_max: int,
        receivers: AllowList,
        offers: Callable[[], Sequence[str] | None],
    ) -> None:
        self._photos = photos
        self._threads = threads
        self._draw_seed = draw_seed
        self._body_bytes_max = body_bytes_max
        self._receivers = receivers
        self._offers = offers

    async def draft(self, request: Request) -> Draft:
        """Read the body and check every parameter but the picture. Finds problems, raises none of them.

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
    ) -> Draft:
        """Check every parameter but the picture, under the names that we have for them.

        Args:
            wrong: problems that were found before, by parameter; they stand before those that are found here.
            dialect: as `Draft.dialect`.
        """
        parameters, found = parse(given)
        unreachable = self._unreachable(given.get("webhook_url"))
        if unreachable is not None and "webhook_url" not in {each.parameter for each in found}:
            parameters, found = None, [*found, unreachable]
        # It keeps its digest: what was on offer when the same request came before has made an edit, whatever is now.
        if (unoffered := self._unoffered(given.get("loras"))) is not None:
            found = [*(each for each in found if each.parameter != "loras"), unoffered]
        return Draft(
            parameters=parameters,
            source=given.get("input_image"),
            problems={**wrong} | {each.parameter: each for each in found if each.parameter not in wrong},
            body_digest="" if parameters is None else await self._threads.run(_digest, parameters),
            dialect=dialect,
        )

    async def finish(self, draft: Draft, *, account: AccountId, shortcut: Shortcut | None = None) -> EditOrder:
        """Fetch the picture.

        Args:
            account: for whom.
            shortcut: reads the URLs that lead back to this server.

        Raises:
            ParametersRefused: with every parameter that is wrong.
        """
        problems = dict(draft.problems)
        photo = await self._photo(draft.source, problems, account, shortcut)
        parameters = draft.parameters
        if parameters is None or photo is None or problems:
            raise ParametersRefused(list(problems.values()))
        return EditOrder(
            prompt=parameters.prompt,
            photo=photo,
            photo_url=draft.source if isinstance(draft.source, str) and is_url(draft.source) else None,
            seed=self._draw_seed() if parameters.seed is None else parameters.seed,
            steps=parameters.num_inference_steps,
            guidance=parameters.guidance,
            aspect_ratio=parameters.aspect_ratio,
            output_format=parameters.output_format,
            output_quality=parameters.output_quality,
            has_safety_checker=not parameters.disable_safety_checker,
            acceleration=parameters.acceleration,
            loras=parameters.loras,
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

    def _unoffered(self, loras: object) -> Problem | None:
        """What is wrong with LoRAs that can be read, and aren't all on offer."""
        try:
            names = [name for name, _ in loras_of(loras)]
        except ParametersRefused:  # as `parse` has found, too
            return None
        offers = self._offers() if names else None
        strange = [] if offers is None else [quoted(name) for name in names if name not in offers]
        if offers is None or not strange:
            return None
        told = f"this server offers {_named(offers)}"
        reason = f"asks for {' and '.join(strange)}, and {told}"
        return Problem(parameter="loras", value=shown(loras), reason=reason, says_allowed=True, allowed_text=told)

    async def _photo(
        self, source: object, problems: dict[str, Problem], account: AccountId, shortcut: Shortcut | None
    ) -> Photo | None:
        """The picture, or None and a new problem. Nothing is fetched for an order that fails anyway."""
        if "input_image" in problems or not isinstance(source, (str, Upload)):
            return None
        if problems and isinstance(source, str) and is_url(source):
            return None
        try:
            data = source.data if isinstance(source, Upload) else source
            return await self._photos.read(data, caller=account, shortcut=shortcut)
        except PictureRefused as fault:
            problems["input_image"] = picture_problem(fault, source)
            return None


def picture_problem(fault: PictureRefused, source: object = None) -> Problem:
    """What is wrong with the picture, as a problem with the parameter that brought it."""
    reason = f"can't be used: {fault}"
    return Problem(parameter="input_image", value=shown(source), reason=reason, says_allowed=True, code=fault.code)


def _named(offers: Sequence[str]) -> str:
    more = len(offers) - _OFFERS_SHOWN_MAX
    shown_names = ", ".join(offers[:_OFFERS_SHOWN_MAX])
    return f"{shown_names} and {more} more" if more > 0 else shown_names or "none"


def _digest(parameters: KontextParameters) -> str:
    """The same for two requests that ask for the same: what is null, unknown, or the default asks for nothing.

    Takes milliseconds for a large picture.
    """
    plain = {name: getattr(parameters, name) for name in KontextParameters.model_fields}
    plain["guidance"] += 0.0  # of -0.0 too it makes 0.0
    if not parameters.loras:  # which earlier versions, whose digests are known for a day, had no name for
        del plain["loras"]
    if isinstance(parameters.input_image, Upload):
        plain["input_image"] = {"sha256": hashlib.sha256(parameters.input_image.data).hexdigest()}
    return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()
