"""Full attention through whichever kernel is fastest here. Knows no model.

Axis letters in this file: b batch, h heads, n tokens, k head width.

On a GPU several libraries compute the same function at speeds that differ by half, and which one wins depends on the
chip, the driver and the versions. So candidates are checked and timed on the device when a model is opened. On a CPU
the number format decides: PyTorch's own kernel for float32, `products` for bfloat16 where the CPU multiplies it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from rekontext.engine.precision import has_amx, multiplies_bfloat16
from rekontext.engine.timing import seconds

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (b, n, h, k), keys and values (b, m, h, k) -> heads merged: (b, n, h * k) of the queries.

Which of tokens and heads is the outer one in memory is the caller's choice: see `layers.py`.
"""

DEFAULT: Final = "sdpa"
ERROR_MAX: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative L2 to PyTorch's default kernel above which a candidate is out; between bfloat16 kernels it is 3e-3.

In float32 a kernel that multiplies in fewer bits (TF32) must not pass.
"""
WORTHWHILE: Final = 0.97
"""A candidate must need less than this share of the time to displace one before it: a tie must not change bytes."""

REACH_MAX: Final = 60.0
"""Largest scaled product whose exponential `products` takes as it is: even a sum of millions of them stays finite."""
SCORES_MAX: Final = 1 << 23
"""Scores that `products` holds at a time: 16 MiB."""

_RUNS: Final = 7
_log = logging.getLogger(__name__)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own choice of kernel."""
    return _merged(F.scaled_dot_product_attention(*_by_head(q, k, v)))


def sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's fused attention, as PyTorch carries it."""
    # The operators themselves, not `sdpa_kernel`: that switches the other kernels off for every thread of the process,
    # and while one thread runs a step another may be encoding, with attention that only those kernels can do.
    found = torch.ops.aten._scaled_dot_product_cudnn_attention.default(*_by_head(q, k, v), None, False)
    return _merged(found[0])


def sdpa_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 2, as PyTorch carries it."""
    return _merged(torch.ops.aten._scaled_dot_product_flash_attention.default(*_by_head(q, k, v))[0])


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two matrix products with the exponentials between them: on CPUs that multiply bfloat16, 0.6 of `sdpa`'s time.

    PyTorch's kernel does the exponentials and sums in float32, a small tile at a time; in whole rows of bfloat16 the
    products run at full width. Scores are rounded to bfloat16, as queries and keys already are: relative L2 1e-2.
    """
    # To the compiler it is one operator: how exponentials are taken depends on the numbers, which it can't trace.
    # Where nothing is compiled, going through the operator costs a twentieth of its time.
    mixed: Tensor = _products_operator(q, k, v) if torch.compiler.is_compiling() else _products(q, k, v)
    return mixed


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = q.new_empty(q.shape)
    # One edit at a time: how its exponentials are taken must not depend on those beside it.
    for one in zip(*(x.transpose(1, 2) for x in (q, k, v, out)), strict=True):
        _products_of_one(*one)
    return out.flatten(2)


_products_operator = torch.library.custom_op("rekontext::products", _products, mutates_args=())


@_products_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape).flatten(2)


def _products_of_one(q_hnk: Tensor, k_hmk: Tensor, v_hmk: Tensor, out_hnk: Tensor) -> None:
    heads, tokens, width = q_hnk.shape
    scale = width**-0.5
    # No scaled product is larger. Where that is little, no row needs its own maximum taken off first.
    reach = scale * float(_longest(q_hnk) * _longest(k_hmk))
    is_tame = reach <= REACH_MAX
    # PyTorch takes powers of two in four fifths of the time that powers of e take.
    alpha = scale * math.log2(math.e) if is_tame else scale
    keys = k_hmk.transpose(1, 2)
    rows = max(1, SCORES_MAX // (heads * k_hmk.shape[1]))
    for first in range(0, tokens, rows):
        part = slice(first, first + rows)
        some = q_hnk[:, part]
        scores = q_hnk.new_empty(heads, some.shape[1], k_hmk.shape[1]).baddbmm_(some, keys, beta=0, alpha=alpha)
        if is_tame:
            weights = scores.exp2_()
            torch.div(torch.bmm(weights, v_hmk), weights.sum(dim=-1, keepdim=True), out=out_hnk[:, part])
        else:
            out_hnk[:, part] = torch.bmm(scores.softmax(dim=-1), v_hmk)


def _longest(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms.max().float()


def flash_3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 3, if it is installed: as `flash_attn_interface`, or from PyPI's fa3-fwd."""
    return _flash(_flash_3, q, k, v)


def flash_4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 4, if `flash_attn.cute` is installed."""
    return _flash(_flash_4, q, k, v)


def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlexAttention: a kernel that the compiler writes for this shape."""
    return _merged(_flex()(*_by_head(q, k, v)))


BACKENDS: Final[dict[str, Attend]] = {
    "sdpa": sdpa,
    "sdpa-cudnn": sdpa_cudnn,
    "sdpa-flash": sdpa_flash,
    "flash-3": flash_3,
    "flash-4": flash_4,
    "flex": flex,
    "products": products,
}
"""In the order in which ties are decided."""

_NEEDS: Final = {"flash-3": ("flash_attn_interface", "fa3_fwd_interface"), "flash-4": ("flash_attn.cute",)}
"""Modules of which one must be there."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of one candidate: the median seconds of a call, or why it is out."""

    seconds: float | None = None
    reason: str = ""


def candidates(device: torch.device) -> tuple[str, ...]:
    """Names of the backends that can be tried on a device."""
    if device.type != "cuda":
        return (DEFAULT, "products")
    installed = (name for name in BACKENDS if name not in _NEEDS or any(map(_is_installed, _NEEDS[name])))
    return tuple(name for name in installed if name != "products")


def without_trial(device: torch.device, dtype: torch.dtype) -> str | None:
    """The backend to take on a device where the number format alone decides; None where trials do.

    AMX units are another matter: PyTorch's kernel uses them, and nobody has measured both there.
    """
    if device.type == "cuda":
        return None
    return "products" if dtype == torch.bfloat16 and multiplies_bfloat16() and not has_amx() else DEFAULT


def try_backends(
    names: tuple[str, ...], *, device: torch.device, dtype: torch.dtype, heads: int, head_width: int, tokens: int
) -> dict[str, Trial]:
    """Check each backend against PyTorch's default on random data of this shape, and time it.

    A backend that raises, or is off by more than `ERROR_MAX` of its format, is out with the reason; none can stop the
    others.
    """
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, tokens, heads, head_width, generator=generator, device=device, dtype=dtype) for _ in range(3)
    )
    with torch.inference_mode():
        try:
            expected = sdpa(q, k, v).float()
        except Exception as fault:
            # Where the default can't run there is nothing to compare with. What can't run at all will say so later.
            _log.warning("no attention backend could be tried: %s", fault)
            return dict.fromkeys(names, Trial(reason="the default could not run"))
        return {name: _try(BACKENDS[name], q, k, v, expected) for name in names}


def fastest(seconds: Mapping[str, float]) -> str:
    """The best of the measured backends; one that gains little does not displace those before it."""
    best = DEFAULT
    for name in BACKENDS:
        if name in seconds and seconds[name] < WORTHWHILE * seconds.get(best, math.inf):
            best = name
    return best


def _try(backend: Attend, q: Tensor, k: Tensor, v: Tensor, expected: Tensor) -> Trial:
    try:
        error = ((backend(q, k, v).float() - expected).norm() / expected.norm()).item()
        if not error <= ERROR_MAX[q.dtype]:
            return Trial(reason=f"differs from the default by {error:.2g}")
        return Trial(seconds=seconds(lambda: backend(q, k, v), q.device, repeats=_RUNS))
    except Exception as error:
        # Kernels of other libraries fail in ways of their own; one that can't run here is no candidate.
        _log.info("attention backend %s is out: %s", backend.__name__, error)
        return Trial(reason=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")


def _by_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _merged(mixed_bhnk: Tensor) -> Tensor:
    return mixed_bhnk.transpose(1, 2).flatten(2)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it would write out all n * n scores; inside a compiled block this inner compilation disappears.
    return torch.compile(flex_attention)


def _flash(operator: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed: Tensor = operator(q, k, v)
    return mixed.flatten(2)


def _operator(name: str) -> Any:
    """A library's function on (b, n, h, k), as an operator that the compiler leaves alone but knows the shape of.

    The library is looked up when it is called: whoever only traces a call needs none, and tracing can't import.
    """

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module = next(filter(_is_installed, _NEEDS[name]), _NEEDS[name][0])
        function = importlib.import_module(module).flash_attn_func
        # Some versions return the softmax's normaliser too.
        result = function(q, k, v)
        mixed: Tensor = result[0] if isinstance(result, tuple) else result
        return mixed

    # Annotations are strings in this file, and the operator's schema is read from them.
    run.__annotations__ = {"q": Tensor, "k": Tensor, "v": Tensor, "return": Tensor}
    operator = torch.library.custom_op(f"rekontext::{name.replace('-', '_')}", run, mutates_args=())
    operator.register_fake(lambda q, k, v: q.new_empty(q.shape))
    return operator


_flash_3, _flash_4 = (_operator(name) for name in _NEEDS)
