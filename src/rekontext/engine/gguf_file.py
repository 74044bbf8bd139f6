"""GGUF files, read as safetensors files are: named tensors, one at a time. Knows no model.

Quantised tensors come out in float32: what such a file saves is the download and the disk, not the device's memory, for
which there are plans of our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

_MADE_WIDE: Final = frozenset(
    {"BF16", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS"}
)
_PARTS: Final = "split.count"


class GGUFFile:
    """What `tensors.py` asks of a file.

    Raises:
        ValueError: it is no GGUF file, ends too early, or is one of several.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader  # here, so that an engine without such a file does without the library

        try:
            reader = GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            parts = reader.fields.get(_PARTS)
            if parts is not None and int(parts.parts[parts.data[0]][0]) > 1:
                raise ValueError("it is one part of several: join them to one file")
            empty = next((name for name, tensor in self._tensors.items() if not tensor.n_elements), None)
            if empty is not None:
                raise ValueError(f"{empty} is empty")
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
        """As safetensors names it; of a quantised one that can be read, that of what `read` gives."""
        kind = str(self._stored.tensor_type.name)
        return "F32" if kind in _MADE_WIDE else kind

    def read(self) -> Tensor:
        from gguf import quants

        data, kind = self._stored.data, self._stored.tensor_type
        wide = quants.dequantize(data, kind) if kind.name in _MADE_WIDE else data.copy()
        return torch.from_numpy(wide).reshape(self.get_shape())
