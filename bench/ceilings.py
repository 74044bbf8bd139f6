"""What a device can do at all: matrix products at the model's own shapes, attention, copying. And what a step needs.

A step's floor is what its matrix products and its attention take by themselves, measured here one by one; how near the
model comes to it is its share of the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import torch
from torch.nn import functional as F

from rekontext.engine.attention import BACKENDS, DEFAULT, candidates, try_backends
from rekontext.engine.fp8 import product, quantise_rows, relative_error
from rekontext.engine.layers import MLP_RATIO
from rekontext.engine.timing import once, seconds
from rekontext.engine.transformer import TransformerConfig

BUSY_S: Final = 0.2
BUSY_CALLS_MAX: Final = 2000


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations, a multiplication and an addition counted as two."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured rates in operations per second; that of fp8 is None until it is known."""

    bf16: float
    attention: float
    fp8: float | None = None

    def floor_s(self, work: Work, *, fp8: bool) -> float | None:
        """Seconds below which no arrangement of the same kernels can come."""
        linear = self.fp8 if fp8 else self.bf16
        return None if linear is None else work.linear / linear + work.attention / self.attention


def step_work(config: TransformerConfig, *, tokens: int, batch: int = 1) -> Work:
    """One transformer pass: 12 d^2 multiplications for each token and block of either kind, and full attention.

    Embedders, modulation and what the last block leaves out are below 1 % and not counted.
    """
    blocks = config.double_blocks + config.single_blocks
    return Work(
        linear=2.0 * 12 * config.width**2 * tokens * blocks * batch,
        attention=4.0 * tokens**2 * config.width * blocks * batch,
    )


def linear_shapes(config: TransformerConfig, *, tokens: int, text_tokens: int) -> dict[tuple[int, int, int], int]:
    """(tokens, values in, values out) of every matrix product in the blocks, and how often each occurs in a step."""
    d, wide = config.width, MLP_RATIO * config.width
    shapes: dict[tuple[int, int, int], int] = {}
    for stream in (text_tokens, tokens - text_tokens):
        for sides in ((d, 3 * d), (d, d), (d, wide), (wide, d)):
            shapes[stream, *sides] = config.double_blocks
    shapes[tokens, d, 3 * d + wide] = config.single_blocks
    shapes[tokens, d + wide, d] = config.single_blocks
    return shapes


def sustained(run: Callable[[], object], device: torch.device) -> float:
    """Time of a call among many in a row: launching hides behind computing, and the chip is as warm as in a model."""
    times = min(BUSY_CALLS_MAX, max(1, round(BUSY_S / seconds(run, device, repeats=3)))) if device.type == "cuda" else 1

    def row() -> None:
        for _ in range(times):
            run()

    return once(row, device) / times


def copy_rate(device: torch.device, *, values: int) -> float:
    """Bytes per second of a copy within the device's memory, read and written."""
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def linear_rate(
    config: TransformerConfig, device: torch.device, *, tokens: int, text_tokens: int, fp8: bool
) -> tuple[float, dict[str, float]]:
    """Operations per second over a step's matrix products, and by shape. Inputs are random, and quantised already."""
    work_total = time_total = 0.0
    by_shape = {}
    for (n, d, o), times in linear_shapes(config, tokens=tokens, text_tokens=text_tokens).items():
        x = torch.randn(n, d, device=device, dtype=torch.bfloat16)
        weight = torch.randn(o, d, device=device, dtype=torch.bfloat16)
        bias = torch.randn(o, device=device, dtype=torch.bfloat16)
        took_s = _linear_s(x, weight, bias, fp8=fp8)
        work = 2.0 * n * d * o
        by_shape[f"{n}x{d}x{o}"] = work / took_s / 1e12
        work_total += times * work
        time_total += times * took_s
    return work_total / time_total, by_shape


def attention_rates(
    config: TransformerConfig, device: torch.device, *, tokens: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Operations per second of each backend that runs here, from single calls, and why the others don't run."""
    trials = try_backends(
        candidates(device),
        device=device,
        dtype=torch.bfloat16,
        heads=config.heads,
        head_width=config.width // config.heads,
        tokens=tokens,
    )
    work = 4.0 * tokens**2 * config.width
    rates = {name: work / trial.seconds for name, trial in trials.items() if trial.seconds}
    return rates, {name: trial.reason for name, trial in trials.items() if trial.seconds is None}


def attention_rate(config: TransformerConfig, device: torch.device, *, tokens: int, backend: str) -> float:
    """Operations per second of one backend, many calls in a row."""
    shape = (1, tokens, config.heads, config.width // config.heads)
    q, k, v = (torch.randn(shape, device=device).bfloat16() for _ in range(3))
    return 4.0 * tokens**2 * config.width / sustained(lambda: BACKENDS[backend](q, k, v), device)


def attention_e4m3(config: TransformerConfig, device: torch.device, *, tokens: int) -> tuple[float, float] | None:
    """Operations per second of FlashAttention 3 in e4m3 on what is quantised already, many calls in a row, and its
    relative error; None where it isn't installed. Queries, keys and values have a scale for each head."""
    names = (name for name in ("flash_attn_interface", "fa3_fwd_interface") if find_spec(name) is not None)
    if (name := next(names, None)) is None:
        return None
    shape = (1, tokens, config.heads, config.width // config.heads)
    wide = [torch.randn(shape, device=device).bfloat16() for _ in range(3)]
    narrow, scales = [], {}
    for letter, x in zip("qkv", wide, strict=True):
        rows, scale = quantise_rows(x.transpose(1, 2).flatten(2))
        narrow.append(rows.unflatten(2, shape[1::2]).transpose(1, 2).contiguous())
        scales[f"{letter}_descale"] = scale.view(1, config.heads)
    attend = import_module(name).flash_attn_func

    def run() -> torch.Tensor:
        found = attend(*narrow, **scales)
        mixed: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return mixed

    error = relative_error(run().flatten(2), BACKENDS[DEFAULT](*wide))
    return 4.0 * tokens**2 * config.width / sustained(run, device), error


def _linear_s(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, fp8: bool) -> float:
    if not fp8:
        return sustained(lambda: F.linear(x, weight, bias), x.device)
    x8, x_scale = quantise_rows(x)
    weight8, weight_scale = quantise_rows(weight)
    return sustained(lambda: product(x8, x_scale, weight8, weight_scale, bias, x.dtype), x.device)
