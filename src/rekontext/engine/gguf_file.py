"""GGUF files, read as safetensors files are: named tensors, one at a time. Knows no model.

Quantised tensors come out in float32, block by block as diffusers has it: what such a file saves is the download and
the disk, not the device's memory, for which there are plans of our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class GGUFFile:
    """What `tensors.py` asks of a file.

    Raises:
        ValueError: it is no GGUF file, or ends too early.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        try:
            self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        except (LookupError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def metadata(self) -> dict[str, str]:
        return {}

    def get_slice(self, name: str) -> GGUFTensor:
        return GGUFTensor(self._tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        return GGUFTensor(self._tensors[name]).read()


class GGUFTensor:
    """One of its tensors, unread."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored

    def get_shape(self) -> list[int]:
        # The innermost axis comes first in the file.
        return [int(size) for size in reversed(self._stored.shape)]

    def get_dtype(self) -> str:
        """As safetensors names it; that of what `read` gives for a quantised one that can be read."""
        kind = self._stored.tensor_type
        return "F32" if kind in _dequantisers() else str(kind.name)

    def read(self) -> Tensor:
        from gguf import GGML_QUANT_SIZES

        kind, data = self._stored.tensor_type, torch.from_numpy(self._stored.data.copy())
        dequantise = _dequantisers().get(kind)
        if dequantise is None:
            return data.reshape(self.get_shape())
        elements, size = GGML_QUANT_SIZES[kind]
        wide: Tensor = dequantise(data.reshape(-1, size), elements, size, torch.float32)
        return wide.reshape(self.get_shape())


def _dequantisers() -> Any:
    """By kind: of a tensor's blocks (n, bytes), their elements and bytes, and a dtype."""
    # Private to diffusers, but the one maintained way that isn't NumPy's, which takes minutes for a large model.
    from diffusers.quantizers.gguf.utils import dequantize_functions

    return dequantize_functions
