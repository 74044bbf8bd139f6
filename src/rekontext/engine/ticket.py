"""A submitted edit, as its caller holds it and as the engine keeps it."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from threading import Condition

from PIL import Image

from rekontext.contract import EditRequest, EditResult, OnProgress, Preview, Progress
from rekontext.engine.edit import Edit
from rekontext.engine.hotswap import Adaptation
from rekontext.engine.plan import Plan
from rekontext.masks import stretch_mask
from rekontext.photos import stretch

_Picture = bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class Parked:
    """A photo and its mask until their edit is prepared."""

    photo: _Picture | None = None
    mask: _Picture | None = None


class EditCancelled(Exception):
    """The edit was stopped between two steps: its caller asked for that, or the engine was closed."""


@dataclass(kw_only=True, eq=False)
class Ticket:
    """Made by `Engine.submit`; callers use `result` and `cancel`.

    Attributes:
        request: without its photo and mask, which are parked until the edit is prepared.
        adaptation: what must be merged while it is prepared and stepped.
        edit: the state between first and last step.
        is_beside: it is being prepared or finished, or waits for that.
        timings: device seconds by stage.
    """

    number: int
    request: EditRequest
    plan: Plan
    adaptation: Adaptation
    parked: Parked | None
    on_progress: OnProgress | None
    changed: Condition
    edit: Edit | None = None
    is_beside: bool = False
    is_cancelled: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    future: Future[EditResult] = field(default_factory=Future)

    @property
    def is_preparing(self) -> bool:
        """Whether it is being prepared, or waits for that."""
        return self.is_beside and self.edit is None

    @property
    def is_started(self) -> bool:
        """Whether it holds device memory, or is about to."""
        return self.edit is not None or self.is_beside

    def result(self, timeout_s: float | None = None) -> EditResult:
        """Wait for the picture.

        Raises:
            EditCancelled: the edit was cancelled, or the engine was closed.
            EngineBroken: the device failed.
            TimeoutError: it isn't done after `timeout_s`; it goes on.
            What else the edit failed with, or its listener raised.
        """
        return self.future.result(timeout_s)

    def cancel(self) -> None:
        """Stop the edit: at once if it waits, after the present step if it runs."""
        with self.changed:
            self.is_cancelled = True
            self.changed.notify_all()

    def took(self, stage: str, seconds: float) -> None:
        """Count device time."""
        self.timings[stage] = self.timings.get(stage, 0.0) + seconds

    def tell(self, news: Progress | Preview) -> None:
        """To the caller, if it listens. A listener that raises ends its own edit, and only that."""
        if self.on_progress is None:
            return
        try:
            self.on_progress(news)
        except BaseException as error:  # whatever it is, the engine goes on
            fault = error
            self.settle(lambda future: future.set_exception(fault))
            self.cancel()

    def settle(self, act: Callable[[Future[EditResult]], None]) -> None:
        """Give the caller its result or error, the first time only."""
        try:
            act(self.future)
        except InvalidStateError:
            assert self.future.done(), "only a settled future refuses"


def park(request: EditRequest, plan: Plan, *, waits: bool) -> Parked:
    """The photo and the mask as the edit will use them.

    Args:
        waits: others go first. Then they are kept lossless and small: a thousand waiting edits must fit in memory.
    """
    if request.photo is None:
        assert plan.reference_size is None, "planned with a photo that isn't here"
        return Parked()
    assert plan.reference_size is not None, "planned without the photo"
    photo = stretch(request.photo, plan.reference_size)
    mask = None if request.mask is None else stretch_mask(request.mask, plan.size)
    if not waits:
        return Parked(photo=photo, mask=mask)
    return Parked(photo=_packed(photo), mask=None if mask is None else _packed(mask))


def unpark(request: EditRequest, parked: Parked) -> EditRequest:
    """The request with its photo and mask again, pixel for pixel."""
    return replace(request, photo=_unpacked(parked.photo), mask=_unpacked(parked.mask))


def _packed(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, compress_type=3)
    return buffer.getvalue()


def _unpacked(parked: _Picture | None) -> Image.Image | None:
    if not isinstance(parked, bytes):
        return parked
    return Image.open(io.BytesIO(parked)).copy()
