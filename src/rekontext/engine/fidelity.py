"""How far a transformer in a narrower number format is from the same one in a wider: block by block, and at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rekontext.engine.fp8 import relative_error
from rekontext.engine.transformer import KontextTransformer


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Relative L2 errors.

    Attributes:
        blocks: of each block but the last on the wide transformer's own inputs, so that errors don't add up. Where a
            block returns two streams, the larger of the two.
        end: of the velocity, all rounding along the way included.
    """

    blocks: dict[str, float]
    end: float


@torch.inference_mode()
def compare(
    wide: KontextTransformer, narrow: KontextTransformer, velocity: Callable[[KontextTransformer], Tensor]
) -> Fidelity:
    """Run `velocity` on both, and each of the narrow one's blocks beside its wide counterpart.

    Args:
        velocity: calls the transformer it is given once, always with the same values.
    """
    blocks: dict[str, float] = {}
    handles = []
    for name, block in _blocks(wide).items():
        other = narrow.get_submodule(name)

        def judge(_: nn.Module, given: Any, found: Any, name: str = name, other: nn.Module = other) -> None:
            # The rotation table comes last and is float32 in every format.
            *values, rotation = given
            theirs = other(*_cast(tuple(values), narrow.dtype), rotation)
            pairs = zip(theirs, found, strict=True) if isinstance(found, tuple) else [(theirs, found)]
            blocks[name] = max(relative_error(one, expected) for one, expected in pairs)

        handles.append(block.register_forward_hook(judge))
    try:
        expected = velocity(wide)
    finally:
        for handle in handles:
            handle.remove()
    return Fidelity(blocks=blocks, end=relative_error(velocity(narrow), expected))


def _blocks(transformer: KontextTransformer) -> dict[str, nn.Module]:
    """By name. The last one computes a part of the tokens only, so it has no whole output to compare."""
    doubles = {f"double_blocks.{i}": block for i, block in enumerate(transformer.double_blocks)}
    singles = {f"single_blocks.{i}": block for i, block in enumerate(transformer.single_blocks[:-1])}
    return doubles | singles


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    if hasattr(value, "_fields"):
        return type(value)(*(_cast(part, dtype) for part in value))
    return tuple(_cast(part, dtype) for part in value)
