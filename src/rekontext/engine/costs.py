"""How long the device takes for what: learned from what it took, and kept between runs. Pure; no clock of its own.

A step's cost depends on its tokens only. Each number of tokens that was measured has its own figure; others are
read off a curve a * n + b * n^2 (linear layers and attention) through the measured ones.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_WEIGHT: Final = 0.2
"""Of a new measurement in the running mean: the machine's speed may drift, one slow step should not count for much."""

Stage = str
"""What was timed: "step", "prepare", "decode", or "swap", which hangs on no tokens and counts as of one."""


@dataclass(kw_only=True)
class CostModel:
    """Seconds by stage and number of tokens.

    Attributes:
        seconds: running means, by stage and tokens.
        token_s: a first guess, in seconds per token, for a stage that was never measured.
    """

    seconds: dict[Stage, dict[int, float]] = field(default_factory=dict)
    token_s: float = 1e-4

    def learn(self, stage: Stage, tokens: int, seconds: float) -> None:
        """Take in one measurement."""
        known = self.seconds.setdefault(stage, {})
        known[tokens] = seconds if tokens not in known else known[tokens] + _WEIGHT * (seconds - known[tokens])

    def predict(self, stage: Stage, tokens: int) -> float:
        """Seconds that `stage` will take on `tokens`."""
        known = self.seconds.get(stage)
        if not known:
            return self.token_s * tokens
        if tokens in known:
            return known[tokens]
        linear, square = _fit(known)
        return linear * tokens + square * tokens**2

    @classmethod
    def load(cls, path: Path) -> CostModel:
        """From `path`; a file that is missing, damaged or can't be read is a model that knows nothing yet."""
        try:
            stored = json.loads(path.read_text())
            return cls(seconds={stage: {int(n): float(s) for n, s in known.items()} for stage, known in stored.items()})
        except (OSError, ValueError, AttributeError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        """To `path`, whole or not at all."""
        write_whole(path, json.dumps(self.seconds, indent=1).encode())


def per_device(path: Path, *facts: str) -> Path:
    """`costs.json` -> `costs-nvidia-h100-bfloat16.json`: what one device or model took says nothing of another.

    Args:
        facts: the model's and the device's names, the number format.
    """
    return path.with_name("-".join([path.stem, *filter(None, map(slug, facts))]) + path.suffix)


def write_whole(path: Path, data: bytes) -> None:
    """To `path`, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")  # engines of other devices write here too
    draft.write_bytes(data)
    draft.replace(path)


def slug(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _fit(known: dict[int, float]) -> tuple[float, float]:
    """Least squares in relative error of s = a n + b n^2, neither below 0."""
    # Divided by s: (a n + b n^2) / s = 1. The normal equations of that, solved by hand: there are only two.
    points = [(n / s, n * n / s) for n, s in known.items() if s > 0]
    if not points:
        return 0.0, 0.0
    uu, uv, vv = (sum(p[i] * p[j] for p in points) for i, j in ((0, 0), (0, 1), (1, 1)))
    u, v = (sum(p[i] for p in points) for i in (0, 1))
    determinant = uu * vv - uv * uv
    if len(points) > 1 and determinant > 1e-12 * uu * vv:
        a, b = (u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant
        if a >= 0 and b >= 0:
            return a, b
        if a < 0:
            return 0.0, v / vv
    return u / uu, 0.0
