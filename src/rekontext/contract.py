"""The few values that the service and the engine exchange, and the limits both keep.

The service side (HTTP, jobs, accounts) never imports torch and the engine knows nothing of users, so this file
knows neither: plain frozen values, one protocol, and the two kinds of failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Protocol, SupportsFloat, SupportsIndex, get_args

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

AspectRatio = Literal[
    "match_input_image", "1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"
]
ASPECT_RATIOS: Final[tuple[AspectRatio, ...]] = get_args(AspectRatio)

Acceleration = Literal["none", "regular", "high"]
"""How many transformer passes an edit may leave out. "none" is exact."""
ACCELERATIONS: Final[tuple[Acceleration, ...]] = get_args(Acceleration)

BatchMode = Literal["exact", "any", "off"]
"""Which edits may share a pass where that is faster: those that keep every bit of theirs, all of one shape, none."""

STEPS_MIN: Final = 4
STEPS_MAX: Final = 50
STEPS_DEFAULT: Final = 35
GUIDANCE_MIN: Final = 0.0
GUIDANCE_MAX: Final = 10.0
GUIDANCE_DEFAULT: Final = 7.0
PICTURES_MAX: Final = 4
"""Of one edit."""
LORAS_MAX: Final = 4
"""Of one edit."""
LORA_STRENGTH_MAX: Final = 4.0
"""Either way: below 0 a LoRA is taken out of what the model knows."""
MASK_SHAPE_TOLERANCE: Final = 0.02
"""By what part a mask's width / height may differ from its photo's."""
PRIORITY_MIN: Final = -2
PRIORITY_MAX: Final = 2
SEED_MAX: Final = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """One edit as the engine gets it: already checked, its random seed already drawn.

    Attributes:
        id: the caller's name for this edit: logs have it, and a `Fleet` that is asked about an edit knows it by this.
        photo: RGB reference picture of any size; None asks for text-to-image.
        photo_size: width and height of a photo that isn't here, in a request that is only estimated.
        mask: of mode "L" and the photo's shape, as `rekontext.masks` makes them: white where the picture may differ
            from the photo, black where it is the photo, gray where the two are blended. None is white everywhere. With
            one `aspect_ratio` must be what the photo has anyway.
        steps: Euler steps, 1..`STEPS_MAX`; the HTTP API asks for at least `STEPS_MIN`.
        guidance: embedded guidance scale, `GUIDANCE_MIN`..`GUIDANCE_MAX`.
        seed: 0..`SEED_MAX`; the same seed gives the same picture.
        pictures: how many are made, 1..`PICTURES_MAX`; each has its own seed: see `seed_at`.
        aspect_ratio: one of `ASPECT_RATIOS`; without a photo "match_input_image" means 1:1.
        acceleration: one of `ACCELERATIONS`.
        loras: names of those that are on offer, each once, and their strengths, neither 0 nor beyond
            `LORA_STRENGTH_MAX`; in the order of their names, in which they are merged.
        lora_files: where those of them lie that are on offer to nobody else, by name.
        preview_every: steps between two previews; None for no previews.
        account: whose share of the device this edit uses up.
        priority: `PRIORITY_MIN`..`PRIORITY_MAX`; each level counts as half or double the length.
        deadline_s: seconds after submission by which the caller needs the picture; an edit that can't make it
            is refused when it is submitted, never later.
        is_suspect: an earlier attempt at it came to nothing, through no fault of its caller's. It may be what fails.

    Raises:
        EditRefused: a value is of the wrong kind or out of its range.
    """

    id: str
    prompt: str
    seed: int
    photo: Image | None = None
    photo_size: tuple[int, int] | None = None
    mask: Image | None = None
    steps: int = STEPS_DEFAULT
    guidance: float = GUIDANCE_DEFAULT
    pictures: int = 1
    aspect_ratio: AspectRatio = "match_input_image"
    acceleration: Acceleration = "none"
    loras: tuple[tuple[str, float], ...] = ()
    lora_files: Mapping[str, Path] = field(default_factory=dict)
    preview_every: int | None = None
    account: str = ""
    priority: int = 0
    deadline_s: float | None = None
    is_suspect: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise EditRefused(f"prompt is a {type(self.prompt).__name__}: it must be text")
        if any("\ud800" <= letter <= "\udfff" for letter in self.prompt):
            raise EditRefused("prompt has half of a character in it: it must be text that can be written as UTF-8")
        if self.photo is not None and min(self.photo.size) < 1:
            raise EditRefused(f"photo has {self.photo.width} x {self.photo.height} pixels: it must have at least one")
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not (value is None and name in _MAY_BE_NONE):
                object.__setattr__(self, name, kind(name, value))
        if not 1 <= self.steps <= STEPS_MAX:
            raise EditRefused(f"steps is {self.steps}: it must be from 1 to {STEPS_MAX}")
        if not GUIDANCE_MIN <= self.guidance <= GUIDANCE_MAX:
            raise EditRefused(f"guidance is {self.guidance}: it must be from {GUIDANCE_MIN:g} to {GUIDANCE_MAX:g}")
        if not 0 <= self.seed <= SEED_MAX:
            raise EditRefused(f"seed is {self.seed}: it must be from 0 to {SEED_MAX}")
        if not 1 <= self.pictures <= PICTURES_MAX:
            raise EditRefused(f"pictures is {self.pictures}: it must be from 1 to {PICTURES_MAX}")
        if self.aspect_ratio not in ASPECT_RATIOS:
            raise EditRefused(f"aspect_ratio is {self.aspect_ratio!r}: it must be one of {', '.join(ASPECT_RATIOS)}")
        if self.acceleration not in ACCELERATIONS:
            raise EditRefused(f"acceleration is {self.acceleration!r}: it must be one of {', '.join(ACCELERATIONS)}")
        if self.mask is not None:
            self._check_mask(self.mask)
        object.__setattr__(self, "loras", _loras(self.loras))
        if self.preview_every is not None and self.preview_every < 1:
            raise EditRefused(f"preview_every is {self.preview_every}: it must be at least 1")
        if not PRIORITY_MIN <= self.priority <= PRIORITY_MAX:
            raise EditRefused(f"priority is {self.priority}: it must be from {PRIORITY_MIN} to {PRIORITY_MAX}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise EditRefused(f"deadline_s is {self.deadline_s}: it must be above 0")

    def _check_mask(self, mask: Image) -> None:
        if mask.mode != "L":
            raise EditRefused(f'mask has mode {mask.mode}: it must be "L", as rekontext.masks makes them')
        if self.photo is None:
            raise EditRefused("mask is given without photo: it must come with the photo whose parts it marks")
        if not same_shape(mask.size, self.photo.size, rounded_px=1):  # of a large one there is a smaller copy
            raise EditRefused(
                f"mask is {mask.width} x {mask.height} and photo {self.photo.width} x {self.photo.height}: "
                "they must have the same shape"
            )


def seed_at(seed: int, at: int) -> int:
    """The seed of a picture of an edit that began with `seed`, counted from 0. After the largest comes 0."""
    return (seed + at) % (SEED_MAX + 1)


def same_shape(size: tuple[int, int], other: tuple[int, int], *, rounded_px: int = 0) -> bool:
    """Whether what has `size` can be stretched to `other` and look the same.

    Args:
        rounded_px: by how many pixels a side of `size` may be off beside: of a narrow one they are a large part.
    """
    off = abs(size[0] * other[1] - size[1] * other[0])
    return off <= MASK_SHAPE_TOLERANCE * size[1] * other[0] + rounded_px * max(other)


def _whole(name: str, value: object) -> int:
    """As Python's own int, whoever's integer it is: libraries take no other."""
    if not isinstance(value, bool) and isinstance(value, SupportsIndex):
        with suppress(TypeError):
            return index(value)
    raise EditRefused(f"{name} is {value!r}: it must be an integer")


def _number(name: str, value: object) -> float:
    if not isinstance(value, bool) and isinstance(value, SupportsFloat):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
    raise EditRefused(f"{name} is {value!r}: it must be a number")


def _loras(given: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    loras = tuple(sorted((name, _number(f"the strength of {name}", strength)) for name, strength in given))
    if len(loras) > LORAS_MAX:
        raise EditRefused(f"loras has {len(loras)} entries: it must be at most {LORAS_MAX}")
    for i, (name, strength) in enumerate(loras):
        if not abs(strength) <= LORA_STRENGTH_MAX or strength == 0:
            raise EditRefused(
                f"the strength of {name} is {strength}: it must be from {-LORA_STRENGTH_MAX:g} to "
                f"{LORA_STRENGTH_MAX:g}, and not 0"
            )
        if i and loras[i - 1][0] == name:
            raise EditRefused(f"loras has {name} twice")
    return loras


_KINDS: Final[Mapping[str, Callable[[str, object], float]]] = {
    "steps": _whole,
    "seed": _whole,
    "pictures": _whole,
    "priority": _whole,
    "preview_every": _whole,
    "guidance": _number,
    "deadline_s": _number,
}
_MAY_BE_NONE: Final = frozenset({"preview_every", "deadline_s"})


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A denoising step ended.

    Attributes:
        step: steps done, 0 (prepared, none done yet)..`steps`.
        remaining_s: seconds until the picture is there, None before the first step was timed.
    """

    step: int
    steps: int
    remaining_s: float | None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A small early look at the picture, from the latents as they stand.

    Attributes:
        picture: RGB, one pixel for each 8x8 of the result.
    """

    step: int
    steps: int
    picture: Image


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """When an edit would be done if it were submitted now, or is expected to be done.

    Attributes:
        position: edits that will be served before it; 0 is next or running.
        wait_s: seconds until its first step.
        finish_s: seconds until the picture is there.
    """

    position: int
    wait_s: float
    finish_s: float


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """The edited picture and what it took.

    Attributes:
        picture: RGB, of the size that `aspect_ratio` stands for on the model's canvas.
        others: those of the seeds that follow, where several were asked for.
        seed, steps, acceleration, loras: as really used.
        passes: times that the transformer really ran for each picture; fewer than `steps` only with acceleration.
        prompt_tokens: that were read of a prompt that has more; None where it was read whole.
        inference_s: seconds that the device worked on this edit; waiting between steps doesn't count.
        timings: the same by stage: "prepare", "denoise", "decode" (seconds).
    """

    picture: Image
    seed: int
    steps: int
    inference_s: float
    passes: int
    acceleration: Acceleration = "none"
    loras: tuple[tuple[str, float], ...] = ()
    prompt_tokens: int | None = None
    timings: dict[str, float] = field(default_factory=dict)
    others: tuple[Image, ...] = ()

    @property
    def pictures(self) -> tuple[Image, ...]:
        """All of them, in the order of their seeds."""
        return (self.picture, *self.others)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the loaded model is, for answers and for `doctor`.

    Attributes:
        name: "mini", what the model's own rekontext.json says, or the last part of the folder or file, or the hub id,
            that was opened; never where it lies on this machine.
        canvas_area: native pixels per picture (1048576 for the real model).
        is_mini: the embedded model, which knows only a few instructions.
        knows: those instructions, shortly, in words that it understands; empty for a model that knows them all.
        loras: what was merged into it: names, and after a colon their strengths where those aren't 1.
    """

    name: str
    canvas_area: int
    parameters: int
    device: str
    dtype: str
    is_mini: bool
    knows: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What made a picture: the model's name, and what was merged into it."""
        return self.title_with(())

    def title_with(self, loras: Iterable[tuple[str, float]]) -> str:
        """The same with what was merged into it for one edit."""
        return " + ".join((self.name, *self.loras, *(with_strength(name, by) for name, by in loras)))


def with_strength(lora: str, strength: float) -> str:
    """How a LoRA at a strength is told: its name, and after a colon its strength where that isn't 1."""
    return lora if strength == 1 else f"{lora}:{strength:g}"


OnProgress = Callable[[Progress | Preview], None]


DeviceState = Literal["starting", "ready", "asleep", "failed"]
"""Asleep: it holds no model and starts when there is work. Failed: it is tried again after a while."""
DEVICE_STATES: Final[tuple[DeviceState, ...]] = get_args(DeviceState)


class Fleet(Protocol):
    """Where edits run: this process, or many GPUs."""

    @property
    def devices(self) -> Mapping[str, DeviceState]:
        """The devices that edits run on, by name; all are known from the beginning."""
        ...

    @property
    def card(self) -> ModelCard:
        """The model that this fleet serves. Known once `start` has returned."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and edits would run."""
        ...

    async def offers(self) -> Sequence[str]:
        """Names of the LoRAs that an edit may ask for, in their order, as they are now."""
        ...

    async def profile(self) -> Mapping[str, object]:
        """After `start`: what another process needs to know of it, as JSON values: see `rekontext.fleet.profile`."""
        ...

    async def start(self) -> None:
        """Load the model. Returns when edits can run, raises what kept the model from loading."""
        ...

    async def watch(self) -> None:
        """After `start`: wait for the end of the fleet's being able to run edits, which only a new process can mend.

        Raises:
            EngineFault: it has come. Otherwise this never returns.
        """
        ...

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        """Run one edit to its end. Cancelling the awaiting task stops it within one step.

        `on_progress` is called on the event loop's thread. The request has no `deadline_s`: whether it can be
        kept is found out where edits are accepted.

        Raises:
            EditRefused: the request can't be done as asked (the caller's fault; never retried).
            EngineFault: the engine failed (ours; may be retried).
        """
        ...

    def estimate(self, request: EditRequest) -> Estimate:
        """When this edit would be done if it were submitted now; a submitted one is known by its id. Cheap."""
        ...

    async def close(self) -> None:
        """Stop within one step and free the model."""
        ...


class EditRefused(ValueError):
    """The caller asked for something that can't be done. The message says what is allowed instead.

    Attributes:
        code: names the kind, for programs.
    """

    code: ClassVar[str] = "edit_refused"


class DeadlineUnmeetable(EditRefused):
    """The edit can't be done by the time its caller needs it."""

    code: ClassVar[str] = "deadline_unmeetable"

    def __init__(self, *, deadline_s: float, finish_s: float) -> None:
        super().__init__(f"the edit is expected to be done in {finish_s:.1f} s, and deadline_s is {deadline_s:g}")
        self.deadline_s = deadline_s
        self.finish_s = finish_s


class LoRARefused(EditRefused):
    """A LoRA that an edit asks for isn't on offer, or can't be merged into the model."""

    code: ClassVar[str] = "lora_refused"


class EngineFault(RuntimeError):
    """The engine failed through no fault of the caller."""
