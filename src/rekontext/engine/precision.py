"""In which number format a model computes on which device."""

from __future__ import annotations

from typing import Final

import torch

from rekontext.contract import EditRefused
from rekontext.engine.fp8 import missing_units

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.bfloat16}
"""What activations are in. "fp8" is about the weights of the transformer's blocks: see `fp8.py`."""


def choose_device(name: str | None) -> torch.device:
    """The named device, or the first GPU, or the CPU.

    Raises:
        EditRefused: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EditRefused(f"device is {name!r}: it must be cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EditRefused(f"device is {name!r}, but torch sees {torch.cuda.device_count()} GPUs here")
    if device.type not in {"cpu", "cuda"}:
        raise EditRefused(f"device is {name!r}: it must be cpu, cuda or cuda:N")
    return device


def every_gpu() -> tuple[str, ...]:
    """The GPUs of this machine, as `choose_device` takes them."""
    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """What activations are in under the named dtype; without a name, bfloat16 on a GPU and float32 on the CPU.

    Raises:
        EditRefused: no such dtype, or none that this device can compute in.
    """
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise EditRefused(f"dtype is {name!r}: it must be one of {', '.join(DTYPES)}")
    if name == "fp8" and device.type == "cuda" and (reason := missing_units(device)):
        raise EditRefused(f"dtype is 'fp8': {reason}; use bfloat16")
    return DTYPES[name]


def keep_float32(device: torch.device) -> None:
    """Have a GPU's convolutions multiply float32 numbers whole, as products of matrices do by PyTorch's default.

    Else they take ten bits of each (TF32), and the autoencoder's pixels are off by more than float32 stands for. It is
    a switch of the whole process.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has units for products of bfloat16 numbers, as PyTorch sees it."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def has_amx() -> bool:
    """Whether this machine's CPU has matrix units."""
    return bool(torch.cpu._is_amx_tile_supported())
