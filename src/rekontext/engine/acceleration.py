"""Leaving out transformer passes: which steps run, and what stands in for the others.

Along the denoising path the velocity changes slowly, so at a skipped step it is extrapolated from the last two that
were computed (first-order TaylorSeer, arXiv 2503.06923). The maps are static: which steps are left out depends on their
number only, so cost is known beforehand, edits can be interleaved, and the same request gives the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rekontext.contract import Acceleration

if TYPE_CHECKING:
    from torch import Tensor

FIRST_STEPS: Final = 3
LAST_STEPS: Final = 2
"""Composition is decided in the first steps and detail in the last, so these always run."""

STRIDES: Final[dict[Acceleration, int]] = {"none": 1, "regular": 2, "high": 3}


def step_map(steps: int, acceleration: Acceleration) -> tuple[bool, ...]:
    """Which of `steps` steps run the transformer."""
    stride = STRIDES[acceleration]
    last = steps - LAST_STEPS
    return tuple(i < FIRST_STEPS or i >= last or (i - FIRST_STEPS) % stride == stride - 1 for i in range(steps))


@dataclass(frozen=True, slots=True)
class Seen:
    """A velocity that was computed, and the noise level it belongs to."""

    sigma: float
    velocity: Tensor


def extrapolate(earlier: Seen, later: Seen, sigma: float) -> Tensor:
    """The line through two velocities, read off at `sigma`."""
    slope = (sigma - later.sigma) / (later.sigma - earlier.sigma)
    return later.velocity + (later.velocity - earlier.velocity) * slope
