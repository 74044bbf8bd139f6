"""Whether edits of one shape should share a transformer pass: measured on the device at hand, not assumed.

Two things decide, once for each shape and batch size:

* **Bits.** A pass over several edits must give each the bits that it would get alone ("exact"); many matrix
  kernels don't promise that. An operator may waive it ("any").
* **Time.** Serving b edits together ends them all at b * r of a lone pass, one after the other at 1, 2 .. b; so sharing
  lowers the mean only where r, the time per edit in relation to a lone pass, is below (b + 1) / (2 b).

A lone edit may fill the device: on an H200 it does even at 512 x 512, where r is 0.99 for two in bfloat16 and 0.92 in
fp8. More tokens fill it no less, so a shape is only tried that has fewer than any for which two together took too long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
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
    _tokens_full: float = inf

    def limit(self, shape: Shape) -> int:
        """Edits of this shape that may share a pass; 1 until measured otherwise."""
        return 1 if self.mode == "off" else self.limits.get(shape, 1)

    def shared(self, shape: Shape, present: int) -> int:
        """How many of the `present` edits of this shape share the next pass: only sizes that were measured."""
        limit = min(self.limit(shape), present)
        return max((size for size in BATCH_SIZES if size <= limit), default=1)

    def wanted(self, shape: Shape, present: int, *, tokens: int) -> int | None:
        """The batch size that should be measured now that `present` edits of this shape are there; None for none.

        Args:
            tokens: of each edit.
        """
        if self.mode == "off":
            return None
        tried = self._tried.get(shape, 1)
        if tried > self.limits.get(shape, 1) or (tried == 1 and tokens >= self._tokens_full):
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
        tokens: int,
        alone: Callable[[], Sequence[Tensor]],
        together: Callable[[], Sequence[Tensor]],
        clock: Callable[[], float],
    ) -> Sequence[Tensor]:
        """Measure one batch size; both functions give the edits' velocities. Returns those of the lone passes.

        Args:
            tokens: of each edit.
        """
        together()  # the first pass of a new shape pays for memory and kernels
        started = clock()
        single = alone()
        between = clock()
        shared = together()
        ended = clock()
        if not all(bool(velocity.isfinite().all()) for velocity in single):
            return single  # they are equal to nothing, not even to themselves
        size = len(single)
        ratio = (ended - between) / max(between - started, 1e-9)
        same = all(torch.equal(one, other) for one, other in zip(single, shared, strict=True))
        self._tried[shape] = size
        pays = ratio < (size + 1) / (2 * size)
        if pays and (same or self.mode == "any"):
            self.limits[shape] = size
        if not pays and size == BATCH_SIZES[0]:
            self._tokens_full = min(tokens, self._tokens_full)
        return single
