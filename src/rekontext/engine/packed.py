"""Linear layers on a CPU, their weights in the order in which its matrix library (oneDNN) reads them.

PyTorch's own layer hands oneDNN a plain matrix, which it puts into blocks anew at each product: at a few hundred tokens
a tenth to a third of the time. Here that is done once, when the model is opened. A GELU behind a product is computed
within it, before the sums are rounded and written. Knows no model: its blocks say what is packed and how it is cut.

The operators are those that PyTorch's own compiler replaces linear layers by.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekontext.engine.precision import multiplies_bfloat16

_ERROR_MAX: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_PROBE_SIDE: Final = 64


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` at inference.

    Args:
        linear: its weight is copied.
        cuts: outputs at which the weight is cut into parts, ascending. Each part is a product of its own.
    """

    def __init__(self, linear: nn.Linear, *, cuts: Sequence[int] = ()) -> None:
        super().__init__()
        self._parts = tuple(pairwise((0, *cuts, linear.out_features)))
        with torch.no_grad():
            self.weights = nn.ParameterList(
                nn.Parameter(_packed(linear.weight[start:stop]), requires_grad=False) for start, stop in self._parts
            )
            self.biases = nn.ParameterList(
                nn.Parameter(linear.bias[start:stop].clone(), requires_grad=False) for start, stop in self._parts
            )

    def hold(self, kind: str, tensor: Tensor) -> None:
        """Another "weight" (o, d) or "bias" (o,) instead, of the same dtype."""
        for i, (start, stop) in enumerate(self._parts):
            if kind == "weight":
                self.weights[i] = nn.Parameter(_packed(tensor[start:stop]), requires_grad=False)
            else:
                self.biases[i].copy_(tensor[start:stop])  # a copy, of whatever it was made from

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., o), for a weight that wasn't cut."""
        (weight,), (bias,) = self.weights, self.biases
        return _product(x, weight, bias)

    def rows(self, x: Tensor, part: slice, *, activated: bool = False) -> Tensor:
        """The outputs in `part` only, one of those that the weight was cut into, on request through GELU (tanh)."""
        *_, (_, outputs) = self._parts
        start, stop, _ = part.indices(outputs)
        i = self._parts.index((start, stop))
        return _product(x, self.weights[i], self.biases[i], activated=activated)


class PackedGELU(PackedLinear):
    """Stands in for an `nn.Linear` and the GELU (tanh) behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., o)."""
        return self.rows(x, slice(None), activated=True)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether products with packed weights work here in this number format, and on units made for it."""
    if dtype not in _ERROR_MAX or (dtype == torch.bfloat16 and not multiplies_bfloat16()):
        return False
    x = torch.arange(_PROBE_SIDE**2).cos().view(_PROBE_SIDE, _PROBE_SIDE).to(dtype)
    linear = nn.Linear(_PROBE_SIDE, _PROBE_SIDE, device="meta")
    linear.weight, linear.bias = nn.Parameter(x.sin()), nn.Parameter(x[0])
    with torch.no_grad():
        expected = F.gelu(linear(x), approximate="tanh").float()
        try:
            found = PackedGELU(linear)(x).float()
        except (RuntimeError, AttributeError):
            # A PyTorch without oneDNN, or one whose compiler has other operators by now.
            return False
    return bool((found - expected).norm() <= _ERROR_MAX[dtype] * expected.norm())


def _packed(weight_od: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_od.contiguous())
    return packed


def _product(x: Tensor, weight: Tensor, bias: Tensor, *, activated: bool = False) -> Tensor:
    function, variant = ("gelu", "tanh") if activated else ("none", "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, function, [], variant)
    return y
