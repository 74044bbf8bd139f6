"""Whether edits of one shape should share a transformer pass: measured on the device at hand, not assumed.

Two things decide, once for each shape and batch size:

* **Bits.** A pass over several edits must give each the bits that it would get alone ("exact"); many matrix
  kernels don't promise that. An operator may waive it ("any").
* **Time.** Serving b edits together ends them all at b * r of a lone pass, one after the other at 1, 2 .. b; so sharing
  lowers the mean only where r, the time per edit in relation to a lone pass, is below (b + 1) / (2 b).

At one megapixel a lone edit fills a GPU and r is near 1; at 512 x 512 it is about 0.55 for two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from rekontext.contract import BatchMode

BATCH_SIZES: Final = (2, 4)
"""Tried in this order; a size that doesn't pay ends the trying."""

Shape = tuple[object, ...]


@dataclass(kw_only=True)
class Batching:
    """What is known of each shape.

    Attributes:
        limits: edits that may share a pass, for shapes that were measured that far.
    """

    mode: BatchMode = "exact"
    limits: dict[Shape, int] = field(default_factory=dict)
    _tried: dict[Shape, int] = field(default_factory=dict)

    def limit(self, shape: Shape) -> int:
        """Edits of this shape that may share a pass; 1 until measured otherwise."""
        return 1 if self.mode == "off" else self.limits.get(shape, 1)

    def shared(self, shape: Shape, present: int) -> int:
        """How many of the `present` edits of this shape share the next pass: only sizes that were measured."""
        limit = min(self.limit(shape), present)
        return max((size for size in BATCH_SIZES if size <= limit), default=1)

    def wanted(self, shape: Shape, present: int) -> int | None:
        """The batch size that should be measured now that `present` edits of this shape are there; None for none."""
        if self.mode == "off":
            return None
        tried = self._tried.get(shape, 1)
        if tried > self.limits.get(shape, 1):
            return None
        return next((size for size in BATCH_SIZES if tried < size <= present), None)

    def forbid(self, shape: Shape, size: int) -> None:
        """Never share a pass of this shape among `size` edits again: it failed. Smaller sizes that pay stay."""
        self.limits[shape] = self.shared(shape, size - 1)
        self._tried[shape] = BATCH_SIZES[-1]

    def learn(
        self,
        shape: Shape,
        *,
        alone: Callable[[], Sequence[Tensor]],
        together: Callable[[], Sequence[Tensor]],
        clock: Callable[[], float],
    ) -> Sequence[Tensor]:
        """Measure one batch size; both functions give the edits' velocities. Returns those of the lone passes."""
        together()  # the first pass of a new shape pays for memory and kernels
        started = clock()
        single = alone()
        between = clock()
        shared = together()
        ended = clock()
        size = len(single)
        ratio = (ended - between) / max(between - started, 1e-9)
        same = all(torch.equal(one, other) for one, other in zip(single, shared, strict=True))
        self._tried[shape] = size
        if ratio < (size + 1) / (2 * size) and (same or self.mode == "any"):
            self.limits[shape] = size
        return single
