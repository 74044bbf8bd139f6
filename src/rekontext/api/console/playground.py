"""What the playground asks before an edit: what it would cost, when it would be done, and the photo behind a link."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from rekontext.accounts import usd
from rekontext.api.documents import forecast
from rekontext.api.keyed import Anybody, Editor
from rekontext.api.loras import loras_of
from rekontext.api.orders import picture_problem
from rekontext.api.parts import Parts
from rekontext.api.problems import ParametersRefused
from rekontext.contract import PICTURES_MAX, STEPS_DEFAULT, STEPS_MAX, STEPS_MIN, Acceleration, AspectRatio, EditRequest
from rekontext.jobs import queries
from rekontext.pictures import PictureRefused, is_url

_SIDE_MAX: Final = 100_000
_PHOTO_ALLOWED: Final = "the http(s) URL of a jpeg, png, gif or webp picture"

Side = Annotated[int, Query(ge=1, le=_SIDE_MAX)]


class PhotoWanted(BaseModel):
    """A photo somewhere else."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=8192, json_schema_extra={"format": "uri", "pattern": "^https?://"})]


def add(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/estimate", summary="What an edit would cost and when it would be done")
    async def estimate(
        caller: Anybody,
        num_inference_steps: Annotated[int, Query(ge=STEPS_MIN, le=STEPS_MAX)] = STEPS_DEFAULT,
        aspect_ratio: AspectRatio = "match_input_image",
        acceleration: Acceleration = "none",
        num_images: Annotated[int, Query(ge=1, le=PICTURES_MAX)] = 1,
        loras: str = "",
        width: Side = 1024,
        height: Side = 1024,
    ) -> dict[str, object]:
        """Of an edit submitted now; `loras` as text. Times are null while the model is loading or no device is up."""
        ahead = await parts.database.read(lambda tx: queries.ahead_of_new(tx, caller.account))
        request = EditRequest(
            id="",
            prompt="",
            seed=0,
            photo_size=(width, height),
            steps=num_inference_steps,
            aspect_ratio=aspect_ratio,
            acceleration=acceleration,
            pictures=num_images,
            loras=loras_of(loras),
            account=caller.account,
        )
        expected = parts.forecast.of_new(request, ahead=ahead)
        price_micros = parts.edits.price_micros(steps=num_inference_steps, pictures=num_images)
        return {"price": usd(price_micros), **forecast(expected)}

    @routes.post("/photo", summary="The photo behind a link", response_class=Response)
    async def photo(request: Request, caller: Editor, wanted: PhotoWanted) -> Response:
        """As an edit would read it: a page may not ask other hosts, and this server never asks private ones."""
        await parts.edits.allow(caller)
        try:
            if not is_url(wanted.url):
                raise PictureRefused("it is no http(s) URL")
            own = partial(parts.links.read_own, origin=parts.origins.of(request))
            found = await parts.photos.read(wanted.url, caller=caller.account, shortcut=own)
        except PictureRefused as fault:
            problem = replace(picture_problem(fault, wanted.url), parameter="url", allowed_text=_PHOTO_ALLOWED)
            raise ParametersRefused([problem]) from fault
        return Response(found.data, media_type=f"image/{found.format}", headers={"x-content-type-options": "nosniff"})
