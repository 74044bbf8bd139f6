"""What every surface asks for and gets back: one checked order in, one encoded picture out.

A surface translates its own HTTP request into an `EditOrder`, calls `Edits.run` once and translates the `Edited`
back. Nothing here knows any surface, nor how an edit is really run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rekontext.api.auth import Caller
from rekontext.contract import AspectRatio, ModelCard
from rekontext.pictures import OutputFormat, Photo


@dataclass(frozen=True, kw_only=True)
class EditOrder:
    """An edit as a caller ordered it: every parameter checked and present, the random seed already drawn.

    Attributes:
        photo: header checked; its pixels may still turn out to be damaged.
        has_safety_checker: False when the caller asked to turn it off.
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


@dataclass(frozen=True, kw_only=True)
class Edited:
    """The answer to an order.

    Attributes:
        data: the encoded picture, of type `media_type` and `width` x `height` pixels.
        queue_s, inference_s, total_s: waiting for the engine, in it, and from order to encoded picture (seconds).
        timings: `inference_s` by stage.
    """

    data: bytes
    media_type: str
    width: int
    height: int
    seed: int
    queue_s: float
    inference_s: float
    total_s: float
    model: ModelCard
    timings: Mapping[str, float] = field(default_factory=dict)


class Edits(Protocol):
    """Runs edits for callers."""

    async def run(self, caller: Caller, order: EditOrder, *, request_id: str) -> Edited:
        """Run one edit and wait for it. Cancelling the awaiting task stops the edit within one step.

        Raises:
            QueueFull: too many edits are waiting; nothing was started.
            DeadlineExceeded: the edit took longer than a synchronous caller may wait.
            PictureRefused, EditRefused: the caller's fault.
            EngineFault: ours.
        """
        ...


class QueueFull(RuntimeError):
    """No place is free for one more edit. `retry_after_s` is when one may be."""

    def __init__(self, waiting: int, *, retry_after_s: int) -> None:
        super().__init__(f"all {waiting} places for edits are taken; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RuntimeError):
    """The edit was given up because it took too long."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"the edit was not done within {deadline_s:g} s and was stopped")


class UnknownModel(LookupError):
    """No model has this name here."""

    def __init__(self, slug: str, *, known: Sequence[str]) -> None:
        super().__init__(f'there is no model "{slug[:80]}" here; known are: {", ".join(known)}')
