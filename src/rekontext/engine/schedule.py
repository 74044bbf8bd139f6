"""The noise levels of an edit: flow-matching Euler with a shift that grows with the picture.

Source: black-forest-labs/flux, src/flux/sampling.py (`get_schedule`, `time_shift`); diffusers'
`FlowMatchEulerDiscreteScheduler` with `use_dynamic_shifting` computes the same. Pure maths on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How far the noise levels are shifted, by output tokens: linear between two anchors.

    Attributes:
        base_shift, max_shift: log-shift at `base_tokens` and at `max_tokens`; not clamped outside.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    def sigmas(self, steps: int, tokens: int) -> NDArray[np.float32]:
        """Noise levels from 1 down to 0.

        Args:
            steps: Euler steps, at least 1.
            tokens: tokens of the output picture; reference and text tokens don't count.

        Returns:
            float32, `steps + 1` values: step i goes from sigmas[i] to sigmas[i + 1].
        """
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = slope * tokens + (self.base_shift - slope * self.base_tokens)
        # In float32 and in this order, as the reference scheduler does: else the last digits differ. Python's own
        # exponential, because NumPy's is a float64, which would make the shift one too.
        linear = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
        shifted = math.exp(mu) / (math.exp(mu) + (1 / linear - 1))
        return np.append(shifted, 0.0).astype(np.float32)
