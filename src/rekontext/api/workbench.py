"""An order, the same as a job's parameters, those as what the fleet runs, and what it made as a file.

See jobs/workbench.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from PIL import Image

from rekontext.contract import Acceleration, AspectRatio, EditRefused, EditRequest, EditResult, LoRARefused, Preview
from rekontext.database import AccountId, JobId
from rekontext.jobs import File, Job, lora_key
from rekontext.models import BROUGHT_LORA
from rekontext.pictures import (
    MEDIA_TYPES,
    PIXELS_MAX,
    CodecThreads,
    ObjectMissing,
    OutputFormat,
    Photo,
    PictureLimits,
    PictureRefused,
    decode,
    decode_mask,
    encode,
    inspect,
    shown_address,
)
from rekontext.pictures.copies import LocalCopies
from rekontext.safety import SafetyCheck

_SHOWN_URL_CHARACTERS: Final = 500

Parameters = Mapping[str, Any]
"""A job's parameters, as `parameters_of` made them: JSON values from our own database."""


@dataclass(frozen=True, kw_only=True)
class EditOrder:
    """An edit as a caller ordered it: every parameter checked and present, the random seed already drawn.

    Attributes:
        photo: header checked; its pixels may still turn out to be damaged.
        photo_url: where it was fetched from, if it was.
        pictures: how many, 1 or more.
        mask: what of the photo may change, as a png file; None for all of it.
        mask_shown: where it came from.
        has_safety_checker: False when the caller asked to turn it off.
        deadline_s: by when the caller needs it, counted from now; None for whenever.
        preview_every: steps between two previews; None for none.
        body_digest: the same for two requests that ask for the same.
        dialect: what is to be remembered of another vendor's: its "name", in which the `webhook_url` is told, and
            what it has besides.
    """

    prompt: str
    photo: Photo
    seed: int
    steps: int
    guidance: float
    aspect_ratio: AspectRatio
    output_format: OutputFormat
    output_quality: int
    has_safety_checker: bool
    body_digest: str
    photo_url: str | None = None
    pictures: int = 1
    mask: bytes | None = None
    mask_shown: str = ""
    acceleration: Acceleration = "none"
    loras: tuple[tuple[str, float], ...] = ()
    priority: int = 0
    deadline_s: float | None = None
    preview_every: int | None = None
    webhook_url: str | None = None
    dialect: Mapping[str, object] = field(default_factory=dict)


def parameters_of(order: EditOrder, *, origin: str) -> dict[str, object]:
    """All of an order but its picture, under the names of the wire."""
    photo = order.photo
    loras = [{"name": name, "strength": strength} for name, strength in order.loras]
    return {
        "prompt": order.prompt,
        "input_image": shown_source(order.photo, order.photo_url),
        "seed": order.seed,
        "num_inference_steps": order.steps,
        "guidance": order.guidance,
        "aspect_ratio": order.aspect_ratio,
        "output_format": order.output_format,
        "output_quality": order.output_quality,
        "disable_safety_checker": not order.has_safety_checker,
        "acceleration": order.acceleration,
        "priority": order.priority,
        "deadline_s": order.deadline_s,
        "previews": order.preview_every or 0,
        # Not the caller's words: what we need to know later.
        "input_size": [photo.width, photo.height],
        "origin": origin,
        **({} if order.pictures == 1 else {"num_images": order.pictures}),
        **({} if order.mask is None else {"mask_image": order.mask_shown}),
        **({"loras": loras} if loras else {}),
        **({"dialect": dict(order.dialect)} if order.dialect else {}),
    }


def edit_request(
    parameters: Parameters,
    *,
    job: JobId,
    account: AccountId,
    photo: Image.Image | None,
    mask: Image.Image | None = None,
    lora_files: Mapping[str, Path] = MappingProxyType({}),
    is_suspect: bool = False,
) -> EditRequest:
    """The request that a job's parameters describe. Its deadline was kept or refused when it was accepted.

    Args:
        photo: None for an estimate, which its size is enough for, and no mask.
        lora_files: where the LoRAs lie that its account brought.
    """
    width, height = parameters["input_size"]
    return EditRequest(
        id=job,
        photo=photo,
        photo_size=(width, height),
        mask=mask,
        prompt=parameters["prompt"],
        seed=parameters["seed"],
        pictures=parameters.get("num_images", 1),
        steps=parameters["num_inference_steps"],
        guidance=parameters["guidance"],
        aspect_ratio=parameters["aspect_ratio"],
        acceleration=parameters["acceleration"],
        loras=tuple((each["name"], each["strength"]) for each in parameters.get("loras", ())),
        lora_files=lora_files,
        preview_every=parameters["previews"] or None,
        account=account,
        priority=parameters["priority"],
        is_suspect=is_suspect,
    )


class EditWorkbench:
    """A `rekontext.jobs.Workbench` that decodes and encodes in threads, and has finished pictures checked.

    Args:
        copies: where LoRAs are to be had that accounts brought.
        safety: None checks nothing.
    """

    def __init__(
        self,
        *,
        limits: PictureLimits,
        threads: CodecThreads,
        copies: LocalCopies,
        safety: SafetyCheck | None = None,
    ) -> None:
        self._limits = limits
        self._copies = copies
        self._threads = threads
        self._safety = safety

    async def unpack(self, job: Job, photo: bytes, mask: bytes | None) -> EditRequest:
        """As `Workbench.unpack`."""
        request = edit_request(
            job.parameters,
            job=job.id,
            account=job.account,
            photo=await self._threads.run(self._decode, photo),
            mask=None if mask is None else await self._threads.run(_kept_mask, mask),
            lora_files=await self._lora_files(job),
            is_suspect=job.faults > 0,
        )
        # An early look would be seen before the check.
        return request if self._check_of(job) is None else replace(request, preview_every=None)

    def outline(self, job: Job) -> EditRequest:
        """As `Workbench.outline`."""
        return edit_request(job.parameters, job=job.id, account=job.account, photo=None)

    async def pack(self, job: Job, result: EditResult) -> Sequence[File]:
        """As `Workbench.pack`.

        Raises:
            PictureWithheld: the check says so.
            SafetyUnavailable: the check says nothing.
        """
        names = numbered(job.id, len(result.pictures))
        return [await self._file(job, name, picture) for name, picture in zip(names, result.pictures, strict=True)]

    async def _file(self, job: Job, name: str, picture: Image.Image) -> File:
        parameters: Parameters = job.parameters
        output_format = parameters["output_format"]
        data = await self._threads.run(encode, picture, output_format, parameters["output_quality"])
        if (check := self._check_of(job)) is not None:
            await check.clear(
                data, content_type=MEDIA_TYPES[output_format], prompt=parameters["prompt"], request_id=job.id
            )
        return File(
            name=f"{name}.{output_format}",
            data=data,
            content_type=MEDIA_TYPES[output_format],
            width=picture.width,
            height=picture.height,
        )

    def preview(self, preview: Preview) -> Mapping[str, object]:
        """As `Workbench.preview`, but the picture stays one: it is encoded if and when somebody listens."""
        return {"step": preview.step, "steps": preview.steps, "picture": preview.picture}

    async def _lora_files(self, job: Job) -> dict[str, Path]:
        parameters: Parameters = job.parameters
        found = {}
        for each in parameters.get("loras", ()):
            if (brought := BROUGHT_LORA.fullmatch(each["name"])) is not None:
                try:
                    found[each["name"]] = await self._copies.path(lora_key(brought[1]))
                except ObjectMissing as fault:
                    raise LoRARefused(f"the LoRA {each['name']} was deleted, or its time is over") from fault
        return found

    def _check_of(self, job: Job) -> SafetyCheck | None:
        """What the job's picture is checked by."""
        is_off = job.parameters["disable_safety_checker"] and self._safety is not None and self._safety.is_optional
        return None if is_off else self._safety

    def _decode(self, data: bytes) -> Image.Image:
        try:
            return decode(inspect(data, self._limits))
        except PictureRefused as fault:
            raise PhotoRefused(fault) from fault


def numbered(name: str, pictures: int) -> list[str]:
    """Names for the files of so many pictures of one edit: `name` itself for the first, `name`-2 and so on."""
    return [name, *(f"{name}-{number}" for number in range(2, pictures + 1))]


def _kept_mask(data: bytes) -> Image.Image:
    """One that `encode_mask` made when the job was ordered: it may weigh more than what was sent."""
    return decode_mask(inspect(data, PictureLimits(bytes_max=len(data), pixels_max=PIXELS_MAX)), "white")


class PhotoRefused(EditRefused):
    """The photo turned out to be damaged as it was decoded."""

    code = PictureRefused.code

    def __init__(self, fault: PictureRefused) -> None:
        super().__init__(f"input_image can't be used: {fault}")


def shown_source(picture: Photo, url: str | None) -> str:
    """Where a picture came from, for its owner's history."""
    if url is not None:
        return shown_address(url, most=_SHOWN_URL_CHARACTERS)
    return f"({picture.format}, {picture.width}x{picture.height}, {len(picture.data)} bytes)"
