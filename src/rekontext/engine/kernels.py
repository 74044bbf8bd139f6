"""What stands between a transformer step's products and its attention, each in one pass over a GPU's memory, in Triton.

A step's norms, turns and activations do little arithmetic on much memory. PyTorch takes several kernels for each, and
its compiler one that reads a row two or three times; here a row is read once, held in registers, and written once. What
the next product wants in e4m3 is quantised before it is written (see `fp8.py` for the format).

Axis letters in this file: r rows (the tokens of all edits of a pass, one after the other), n tokens of one edit, b
edits, d width, m hidden values of the MLP, h heads, k head width, p parts of a projection. All tensors are bfloat16
except where said; arithmetic is float32, rounded once, as it is written.

Only imported where there is a GPU: nothing else here knows Triton.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rekontext.engine.fp8 import E4M3, TINY
from rekontext.engine.layers import CUBE, EPS, TWICE_ROOT, Modulation
from rekontext.engine.rope import Rotation

_E4M3_MAX: Final = tl.constexpr(torch.finfo(E4M3).max)
_TINY: Final = tl.constexpr(TINY)
_TWICE_ROOT: Final = tl.constexpr(TWICE_ROOT)
_ROOT: Final = tl.constexpr(TWICE_ROOT / 2)
_CUBE: Final = tl.constexpr(CUBE)
_ROOT_OF_CUBE: Final = tl.constexpr(TWICE_ROOT / 2 * CUBE)
_NORM_VALUES_A_WARP: Final = 2048
"""So many values of a row a warp holds: as with the next two, of those tried on an H200 the fastest."""
_ACTIVATION_VALUES_A_WARP: Final = 1024
_TURN_WARPS: Final = 4


class Operand(NamedTuple):
    """What a product reads: (r, d), in e4m3 with scales (r, 1) in float32, or in bfloat16 without."""

    values: Tensor
    scale: Tensor | None


def modulated_norm(
    x_rd: Tensor, modulation: Modulation, *, tokens: int, e4m3: bool, added: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Operand]:
    """LayerNorm without parameters, then scale and shift; before it, a residual branch is added that was kept for it.

    Args:
        modulation: each (b, 1, d); its gate isn't looked at.
        tokens: of each edit: r / b.
        added: the gate (b, 1, d) of a branch and what came out of it (r, d).

    Returns:
        x with the branch added, and its modulated norm.
    """
    rows, width = x_rd.shape
    gate, branch_rd = added if added is not None else (modulation.shift, x_rd)
    summed_rd = torch.empty_like(x_rd) if added is not None else x_rd
    out = _operand_like(x_rd, width, e4m3=e4m3)
    block = triton.next_power_of_2(width)
    _modulated_norm[(rows,)](
        x_rd,
        branch_rd,
        gate,
        gate.stride(0),
        modulation.shift,
        modulation.scale_plus_one,
        modulation.shift.stride(0),
        summed_rd,
        out.values,
        out.values if out.scale is None else out.scale,
        tokens,
        EPS,
        WIDTH=width,
        BLOCK=block,
        IS_ADDED=added is not None,
        IS_E4M3=e4m3,
        num_warps=max(1, block // _NORM_VALUES_A_WARP),
    )
    return summed_rd, out


def turned_norms(
    source_rd: Tensor,
    scales_pk: Tensor,
    rotation: Rotation,
    *,
    tokens: int,
    heads: int,
    out_rd: Tensor | None = None,
    first: int = 0,
    copied: int = 0,
) -> None:
    """RMS norm over the head width and turn to each token's position, of some parts of a fused projection.

    Args:
        source_rd: parts of (h * k) values beside each other; rows may be further apart than they are wide.
        scales_pk: of the norm of each part.
        rotation: of all tokens of an edit.
        tokens: of each edit in `source_rd`.
        out_rd: (b * all tokens, parts * h * k) to write to; None writes back to `source_rd`, and nothing is copied.
        first: at which of all tokens those of an edit begin.
        copied: parts after those, which are written as they are.
    """
    parts, head_width = scales_pk.shape
    target_rd = source_rd if out_rd is None else out_rd
    edits = source_rd.shape[0] // tokens
    half = head_width // 2
    _turned_norms[(source_rd.shape[0], parts + copied)](
        source_rd.view(torch.int32),
        source_rd.stride(0) // 2,
        scales_pk,
        rotation.cos_nk,
        rotation.sin_nk,
        target_rd.view(torch.int32),
        target_rd.stride(0) // 2,
        tokens,
        target_rd.shape[0] // edits,
        first,
        parts,
        EPS,
        HEADS=heads,
        HEADS_BLOCK=triton.next_power_of_2(heads),
        HALF=half,
        HALF_BLOCK=triton.next_power_of_2(half),
        num_warps=_TURN_WARPS,
    )


def activated(plain_rd: Tensor | None, hidden_rm: Tensor | None, *, e4m3: bool) -> Operand:
    """What the second product of a block reads: some values as they are, and beside them others through GELU (tanh).

    Args:
        plain_rd: as it is, contiguous.
        hidden_rm: through GELU; rows may be further apart than they are wide.
    """
    some = plain_rd if plain_rd is not None else hidden_rm
    assert some is not None, "nothing to write"
    plain = 0 if plain_rd is None else plain_rd.shape[1]
    hidden = 0 if hidden_rm is None else hidden_rm.shape[1]
    out = _operand_like(some, plain + hidden, e4m3=e4m3)
    # Three parts, since a block of FLUX's hidden values is three times a power of two.
    third = triton.next_power_of_2(triton.cdiv(hidden, 3)) if hidden else 1
    _activated[(some.shape[0],)](
        some if plain_rd is None else plain_rd,
        some if hidden_rm is None else hidden_rm,
        0 if hidden_rm is None else hidden_rm.stride(0),
        out.values,
        out.values if out.scale is None else out.scale,
        PLAIN=plain,
        PLAIN_BLOCK=triton.next_power_of_2(max(plain, 1)),
        HIDDEN=hidden,
        THIRD=third,
        IS_E4M3=e4m3,
        IS_ROUGH=e4m3 and some.is_cuda and torch.version.hip is None,
        num_warps=min(16, max(1, triton.next_power_of_2(plain + hidden) // _ACTIVATION_VALUES_A_WARP)),
    )
    return out


def _operand_like(x: Tensor, width: int, *, e4m3: bool) -> Operand:
    values = x.new_empty(x.shape[0], width, dtype=E4M3 if e4m3 else x.dtype)
    return Operand(values, x.new_empty(x.shape[0], 1, dtype=torch.float32) if e4m3 else None)


# Compiled once for all numbers of tokens: another picture's size must not hold up its first step.
@triton.jit(do_not_specialize=["tokens"])
def _modulated_norm(
    x_ptr,
    branch_ptr,
    gate_ptr,
    gate_stride,
    shift_ptr,
    scale_ptr,
    modulation_stride,
    summed_ptr,
    out_ptr,
    out_scale_ptr,
    tokens,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_ADDED: tl.constexpr,
    IS_E4M3: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    edit = row // tokens
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    x = tl.load(x_ptr + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    if IS_ADDED:
        branch = tl.load(branch_ptr + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + edit * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
        summed = (x + gate * branch).to(tl.bfloat16)
        tl.store(summed_ptr + row * WIDTH + at, summed, mask=inside)
        x = summed.to(tl.float32)
    mean = tl.sum(x, axis=0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    shift = tl.load(shift_ptr + edit * modulation_stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + edit * modulation_stride + at, mask=inside, other=0.0).to(tl.float32)
    y = shift + centred * inverse * scale
    if IS_E4M3:
        largest = tl.maximum(tl.max(tl.abs(y), axis=0), _TINY)
        # What rounds to a hair above the largest becomes the largest again.
        tl.store(out_ptr + row * WIDTH + at, (y * (_E4M3_MAX / largest)).to(tl.float8e4nv), mask=inside)
        tl.store(out_scale_ptr + row, largest / _E4M3_MAX)
    else:
        tl.store(out_ptr + row * WIDTH + at, y.to(tl.bfloat16), mask=inside)


@triton.jit(do_not_specialize=["tokens", "out_tokens", "first", "parts"])
def _turned_norms(
    source_ptr,
    source_stride,
    scales_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    out_stride,
    tokens,
    out_tokens,
    first,
    parts,
    eps,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    # Two neighbouring channels, which turn together, are one 32-bit word here: the first is its lower half.
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    token = first + row % tokens
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (pair < HALF)
    at = part * (HEADS * HALF) + head * HALF + pair
    words = tl.load(source_ptr + row * source_stride + at, mask=inside, other=0)
    if part < parts:
        x = (words << 16).to(tl.float32, bitcast=True)
        y = (words & -65536).to(tl.float32, bitcast=True)
        mean = tl.sum(x * x + y * y, axis=1) / (2 * HALF)
        inverse = tl.rsqrt(mean + eps)[:, None]
        within = pair < HALF
        scale_at = scales_ptr + part * (2 * HALF) + 2 * pair
        x = x * inverse * tl.load(scale_at, mask=within, other=0.0).to(tl.float32)
        y = y * inverse * tl.load(scale_at + 1, mask=within, other=0.0).to(tl.float32)
        turn_at = token * (2 * HALF) + 2 * pair
        cos = tl.load(cos_ptr + turn_at, mask=within, other=0.0)
        sin = tl.load(sin_ptr + turn_at + 1, mask=within, other=0.0)
        low = (x * cos - y * sin).to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
        high = (y * cos + x * sin).to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
        words = low | (high << 16)
    out_row = (row // tokens) * out_tokens + token
    tl.store(out_ptr + out_row * out_stride + at, words, mask=inside)


@triton.jit
def _gelu(x, IS_ROUGH: tl.constexpr):
    if IS_ROUGH:
        # x / 2 * (1 + tanh(u)), by the device's own tanh of 11 bits: e4m3 keeps 4, and exponentials would take longer
        # than the memory that is read meanwhile.
        u = x * (x * x * _ROOT_OF_CUBE + _ROOT)
        tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1)
        half = 0.5 * x
        y = half + half * tanh
    else:
        # The same as x * sigmoid(2 u): see `layers.gelu`.
        y = x * tl.sigmoid((x + _CUBE * x * x * x) * _TWICE_ROOT)
    return y


@triton.jit
def _activated(
    plain_ptr,
    hidden_ptr,
    hidden_stride,
    out_ptr,
    out_scale_ptr,
    PLAIN: tl.constexpr,
    PLAIN_BLOCK: tl.constexpr,
    HIDDEN: tl.constexpr,
    THIRD: tl.constexpr,
    IS_E4M3: tl.constexpr,
    IS_ROUGH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    out_row = out_ptr + row * (PLAIN + HIDDEN)
    plain_at = tl.arange(0, PLAIN_BLOCK)
    at = tl.arange(0, THIRD)
    largest = _TINY
    if PLAIN > 0:
        plain = tl.load(plain_ptr + row * PLAIN + plain_at, mask=plain_at < PLAIN, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(plain), axis=0))
    if HIDDEN > 0:
        hidden_row = hidden_ptr + row * hidden_stride
        one = _gelu(tl.load(hidden_row + at, mask=at < HIDDEN, other=0.0).to(tl.float32), IS_ROUGH)
        two = _gelu(tl.load(hidden_row + THIRD + at, mask=THIRD + at < HIDDEN, other=0.0).to(tl.float32), IS_ROUGH)
        three = _gelu(
            tl.load(hidden_row + 2 * THIRD + at, mask=2 * THIRD + at < HIDDEN, other=0.0).to(tl.float32), IS_ROUGH
        )
        if IS_E4M3:
            of_three = tl.maximum(tl.maximum(tl.abs(one), tl.abs(two)), tl.abs(three))
            largest = tl.maximum(largest, tl.max(of_three, axis=0))
    if IS_E4M3:
        factor = _E4M3_MAX / largest
        tl.store(out_scale_ptr + row, largest / _E4M3_MAX)
    else:
        factor = 1.0
    if PLAIN > 0:
        _write(out_row + plain_at, plain, factor, plain_at < PLAIN, IS_E4M3)
    if HIDDEN > 0:
        _write(out_row + PLAIN + at, one, factor, at < HIDDEN, IS_E4M3)
        _write(out_row + PLAIN + THIRD + at, two, factor, THIRD + at < HIDDEN, IS_E4M3)
        _write(out_row + PLAIN + 2 * THIRD + at, three, factor, 2 * THIRD + at < HIDDEN, IS_E4M3)


@triton.jit
def _write(pointers, values, factor, mask, IS_E4M3: tl.constexpr):
    if IS_E4M3:
        tl.store(pointers, (values * factor).to(tl.float8e4nv), mask=mask)
    else:
        tl.store(pointers, values.to(tl.bfloat16), mask=mask)
