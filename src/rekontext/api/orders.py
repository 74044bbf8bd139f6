"""A request in the words of `flux-kontext-dev` -> one checked `EditOrder`, or all that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from rekontext.api.bodies import read_body
from rekontext.api.edits import EditOrder
from rekontext.api.parameters import ParametersRefused, Problem, Upload, from_form, parse, shown
from rekontext.pictures import CodecThreads, Photo, PhotoReader, PictureRefused, is_url


class OrderReader:
    """Reads orders from requests.

    Args:
        draw_seed: makes the seed of an order that comes without one.
        body_bytes_max: also the most that one field of a form may hold.
    """

    def __init__(
        self, *, photos: PhotoReader, threads: CodecThreads, draw_seed: Callable[[], int], body_bytes_max: int
    ) -> None:
        self._photos = photos
        self._threads = threads
        self._draw_seed = draw_seed
        self._body_bytes_max = body_bytes_max

    async def read(self, request: Request) -> EditOrder:
        """Read the body, check every parameter, fetch the picture.

        Raises:
            ParametersRefused: with every parameter that is wrong.
            UnsupportedContentType, MalformedBody, BodyTooLarge, CallerGone: the body could not be read.
        """
        body = await read_body(request, self._threads, bytes_max=self._body_bytes_max)
        given, repeated = (body, {}) if isinstance(body, dict) else from_form(body)
        parameters, wrong = parse(given)
        problems = repeated | {each.parameter: each for each in wrong if each.parameter not in repeated}
        photo = await self._photo(given.get("input_image"), problems)
        if parameters is None or photo is None or problems:
            raise ParametersRefused(list(problems.values()))
        return EditOrder(
            prompt=parameters.prompt,
            photo=photo,
            seed=self._draw_seed() if parameters.seed is None else parameters.seed,
            steps=parameters.num_inference_steps,
            guidance=parameters.guidance,
            aspect_ratio=parameters.aspect_ratio,
            output_format=parameters.output_format,
            output_quality=parameters.output_quality,
            has_safety_checker=not parameters.disable_safety_checker,
        )

    async def _photo(self, source: object, problems: dict[str, Problem]) -> Photo | None:
        """The picture, or None and a new problem. Nothing is fetched for an order that fails anyway."""
        if "input_image" in problems or not isinstance(source, (str, Upload)):
            return None
        if problems and isinstance(source, str) and is_url(source):
            return None
        try:
            return await self._photos.read(source.data if isinstance(source, Upload) else source)
        except PictureRefused as fault:
            problems["input_image"] = picture_problem(fault, source)
            return None


def picture_problem(fault: PictureRefused, source: object = None) -> Problem:
    """What is wrong with the picture, as a problem with the parameter that brought it."""
    reason = f"can't be used: {fault}"
    return Problem(parameter="input_image", value=shown(source), reason=reason, says_allowed=True, code=fault.code)
