"""The few values that the service and the engine exchange, and the limits both keep.

The service side (HTTP, jobs, accounts) never imports torch and the engine knows nothing of users, so this file
knows neither: plain frozen values, one protocol, and the two kinds of failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, get_args

from PIL.Image import Image

AspectRatio = Literal[
    "match_input_image", "1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"
]
ASPECT_RATIOS: Final[tuple[AspectRatio, ...]] = get_args(AspectRatio)

STEPS_MIN: Final = 4
STEPS_MAX: Final = 50
STEPS_DEFAULT: Final = 35
GUIDANCE_MIN: Final = 0.0
GUIDANCE_MAX: Final = 10.0
GUIDANCE_DEFAULT: Final = 7.0
SEED_MAX: Final = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """One edit as the engine gets it: already checked, its random seed already drawn.

    Attributes:
        id: the caller's name for this edit, echoed in logs only.
        photo: RGB reference picture of any size; None asks for text-to-image.
        steps: Euler steps, 1..`STEPS_MAX`; the HTTP API asks for at least `STEPS_MIN`.
        guidance: embedded guidance scale, `GUIDANCE_MIN`..`GUIDANCE_MAX`.
        seed: 0..`SEED_MAX`; the same seed gives the same picture.
        aspect_ratio: one of `ASPECT_RATIOS`; without a photo "match_input_image" means 1:1.

    Raises:
        EditRefused: a value is out of its range.
    """

    id: str
    prompt: str
    seed: int
    photo: Image | None = None
    steps: int = STEPS_DEFAULT
    guidance: float = GUIDANCE_DEFAULT
    aspect_ratio: AspectRatio = "match_input_image"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= STEPS_MAX:
            raise EditRefused(f"steps is {self.steps}: it must be from 1 to {STEPS_MAX}")
        if not GUIDANCE_MIN <= self.guidance <= GUIDANCE_MAX:
            raise EditRefused(f"guidance is {self.guidance}: it must be from {GUIDANCE_MIN:g} to {GUIDANCE_MAX:g}")
        if not 0 <= self.seed <= SEED_MAX:
            raise EditRefused(f"seed is {self.seed}: it must be from 0 to {SEED_MAX}")
        if self.aspect_ratio not in ASPECT_RATIOS:
            raise EditRefused(f"aspect_ratio is {self.aspect_ratio!r}: it must be one of {', '.join(ASPECT_RATIOS)}")


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
class EditResult:
    """The edited picture and what it took.

    Attributes:
        picture: RGB, of the size that `aspect_ratio` stands for on the model's canvas.
        seed, steps: as really used.
        inference_s: seconds of engine time, from prepare to the decoded picture.
        timings: the same by stage: "prepare", "denoise", "decode" (seconds).
    """

    picture: Image
    seed: int
    steps: int
    inference_s: float
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the loaded model is, for answers and for `doctor`.

    Attributes:
        name: "mini", or the folder, file or hub id that was opened.
        canvas_area: native pixels per picture (1048576 for the real model).
        is_mini: the embedded model, which knows only a few instructions.
    """

    name: str
    canvas_area: int
    parameters: int
    device: str
    dtype: str
    is_mini: bool


OnProgress = Callable[[Progress], None]


class Fleet(Protocol):
    """Where edits run: this process, or many GPUs."""

    @property
    def card(self) -> ModelCard:
        """The model that this fleet serves. Known once `start` has returned."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and edits would run."""
        ...

    async def start(self) -> None:
        """Load the model. Returns when edits can run, raises what kept the model from loading."""
        ...

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        """Run one edit to its end. Cancelling the awaiting task stops it within one step.

        `on_progress` is called on the event loop's thread.

        Raises:
            EditRefused: the request can't be done as asked (the caller's fault; never retried).
            EngineFault: the engine failed (ours; may be retried).
        """
        ...

    async def close(self) -> None:
        """Stop within one step and free the model."""
        ...


class EditRefused(ValueError):
    """The caller asked for something that can't be done. The message says what is allowed instead."""


class EngineFault(RuntimeError):
    """The engine failed through no fault of the caller."""
