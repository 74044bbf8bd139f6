"""Linear layers in fp8: e4m3 weights with a scale for each output row, inputs scaled token by token as they come.

Axis letters in this file: n tokens, d values per token, o outputs.

    y[n, o] = (sum_d x8[n, d] * w8[o, d]) * x_scale[n] * w_scale[o] + bias[o]

On a GPU from compute capability 8.9 the sum runs on the fp8 matrix units (`torch._scaled_mm`). A layer scales its input
in plain PyTorch, so that the compiler fuses that into what made the input; our own kernels (`kernels.py`) scale what
they write, and need the products only. Elsewhere the same products are summed in float32: slow, exact, for tests and
for judging errors. Knows no model: which layers are quantised is decided by name.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

E4M3: Final = torch.float8_e4m3fn
CAPABILITY_MIN: Final = (8, 9)
"""The first chips with fp8 matrix units (Ada, Hopper)."""
_SIDE_MULTIPLE: Final = 16
"""What the matrix units ask of both sides of a weight."""
TINY: Final = 1e-12
_PROBE_SIDE: Final = 256
_KEPT_WIDE: Final = ("mod", "modulation", "norm")


def quantise_rows(x_nd: Tensor) -> tuple[Tensor, Tensor]:
    """Each row scaled so that its largest value is e4m3's largest.

    Returns:
        e4m3 (..., d) and the scales (..., 1) in float32 by which it must be multiplied to get `x_nd` back.
    """
    wide = x_nd.float()
    largest = wide.abs().amax(-1, keepdim=True).clamp(min=TINY)
    # Asked for here: a number that stands in the module would be handed to compiled kernels at each call.
    limit = torch.finfo(E4M3).max
    # Rounding may land a hair above the largest, which e4m3 would turn into NaN.
    return (wide * (limit / largest)).clamp(-limit, limit).to(E4M3), largest * (1 / limit)


class Fp8Linear(nn.Module):
    """Stands in for an `nn.Linear` at inference.

    Attributes:
        weight: (o, d) e4m3.
        scale: (o, 1) float32.
        bias: (o,) in the dtype of activations.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        assert weight.dtype == E4M3, f"weight is {weight.dtype}"
        assert scale.shape == (weight.shape[0], 1), f"scale is {list(scale.shape)} for {list(weight.shape)}"
        self.weight = nn.Parameter(weight, requires_grad=False)
        # No parameter: a model has as many as before.
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Fp8Linear:
        """Quantise a layer; on the meta device, only its shape."""
        weight, scale = quantise_rows(linear.weight.detach())
        return cls(weight, scale, linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., o), dtype of `x`."""
        return scaled_linear(x, self.weight, self.scale, self.bias)

    def rows(self, x: Tensor, part: slice) -> Tensor:
        """The outputs in `part` only."""
        # The bias apart, because PyTorch 2.11's compiler takes one that is part of another for the whole of it.
        return scaled_linear(x, self.weight[part], self.scale[part], None) + self.bias[part]


def scaled_linear(x: Tensor, weight_od: Tensor, scale_o1: Tensor, bias_o: Tensor | None) -> Tensor:
    """`x` (..., d) quantised token by token, times a quantised weight; the result has the dtype of `x`."""
    x8, x_scale = quantise_rows(x.flatten(0, -2))
    result: Tensor = product(x8, x_scale, weight_od, scale_o1, bias_o, x.dtype).unflatten(0, x.shape[:-1])
    return result


def product(
    x8: Tensor, x_scale: Tensor, weight_od: Tensor, scale_o1: Tensor, bias_o: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The formula above for `x8` (n, d) in e4m3 with scales (n, 1), in `dtype`: (n, o)."""
    if x8.device.type == "cuda":
        return on_matrix_units(x8, x_scale, weight_od, scale_o1, bias_o, dtype)
    wide = F.linear(x8.float(), weight_od.float()) * x_scale * scale_o1.t()
    return (wide if bias_o is None else wide + bias_o.float()).to(dtype)


def on_matrix_units(
    x8: Tensor, x_scale: Tensor, weight_od: Tensor, scale_o1: Tensor, bias_o: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`product` by the device's own fp8 arithmetic.

    Sums are the matrix units' own of 22 bits ("fast accumulation"): their error is far below that of the rounding to
    e4m3, and the exact mode is much slower.
    """
    y: Tensor = torch._scaled_mm(
        x8,
        weight_od.t(),
        scale_a=x_scale,
        scale_b=scale_o1.t(),
        bias=bias_o,
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return y


@cache
def missing_units(device: torch.device) -> str:
    """Why a GPU can't multiply in fp8 here; empty if it can.

    Tried once, not only looked up: chips that have the units may lack a kernel in this version of PyTorch.
    """
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY_MIN:
        wanted, has = (".".join(map(str, each)) for each in (CAPABILITY_MIN, found))
        return f"that needs a GPU of compute capability {wanted} or above, and {device} has {has}"
    try:
        probe = torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=torch.bfloat16, device=device)
        x8, scale = quantise_rows(probe)
        error = relative_error(on_matrix_units(x8, scale, x8, scale, probe[0], probe.dtype), probe * (_PROBE_SIDE + 1))
    except (RuntimeError, NotImplementedError) as refusal:
        return f"PyTorch {torch.__version__} has no kernel for it on {device}: {str(refusal).splitlines()[0]}"
    return "" if error < 1e-2 else f"PyTorch {torch.__version__} multiplies wrongly in it on {device}"


def wants(name: str, linear: nn.Linear) -> bool:
    """Whether the layer of this name inside a block is quantised: the large projections, not what modulates them."""
    sides_fit = linear.in_features % _SIDE_MULTIPLE == 0 and linear.out_features % _SIDE_MULTIPLE == 0
    parts = [piece for part in name.split(".") for piece in part.split("_")]
    return sides_fit and linear.bias is not None and not any(part in _KEPT_WIDE for part in parts)


def quantised_names(transformer: nn.Module) -> tuple[str, ...]:
    """Names of the layers inside a transformer's blocks that fp8 covers, in order."""
    return tuple(
        f"{kind}.{name}"
        for kind in ("double_blocks", "single_blocks")
        for name, layer in transformer.get_submodule(kind).named_modules()
        if isinstance(layer, nn.Linear) and wants(name, layer)
    )


def quantise(transformer: nn.Module) -> None:
    """Replace the covered layers, one after the other, so that at most one is there twice."""
    for name in quantised_names(transformer):
        parent, _, last = name.rpartition(".")
        linear = transformer.get_submodule(name)
        assert isinstance(linear, nn.Linear), name
        setattr(transformer.get_submodule(parent), last, Fp8Linear.of(linear))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||, in float32."""
    wide = expected.float()
    return float((found.float() - wide).norm() / wide.norm())
