"""Reading named tensors out of safetensors files, whole or in shards, and out of GGUF files. Knows no model.

fp8 files are dequantised here, unless the caller asks for what is stored: an e4m3 or e5m2 tensor becomes
`tensor * scale` in the dtype that was asked for. Other quantised formats are refused: read as if they were weights,
they make pictures of noise.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rekontext.engine.gguf_file import GGUFFile
from rekontext.models.headers import HeaderError, read_header

PICKLE_SUFFIXES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
GGUF_SUFFIX: Final = ".gguf"
_E4M3_MARK: Final = "F8_E4M3"
HOST: Final = torch.device("cpu")
_WIDE: Final = ("BF16", "F16", "F32", "F64")
_INDICES: Final = "I64"
_INTEGERS: Final = ("I8", "U8", "I16", "I32", "I64")
_OPENED: Final = (*_WIDE, _E4M3_MARK, "F8_E5M2")
_CAN_BE_OPENED: Final = (
    "bfloat16, float16, float32, e4m3 or e5m2 with one scale or one for each row, and GGUF's Q2 to Q8 can be opened"
)
_FORMATS: Final = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    _E4M3_MARK: torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""What `_OPENED` and `_INTEGERS` are to PyTorch."""
_SCALE_SUFFIXES: Final = ("scale_weight", "weight_scale", "weight_scale_2")
# Marks that quantised files carry for their own loaders; the weights are complete without them.
_MARKS: Final = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")


class CheckpointError(ValueError):
    """A model can't be opened. The message says which file or tensor is at fault and what would be right."""


class TensorSource:
    """Named tensors from one or more safetensors or GGUF files, read one at a time.

    Args:
        paths: the files; later ones must not repeat a name of earlier ones.
        prefix: cut off from every name; tensors without it are left out.
        mapped: False for safetensors files that may be overwritten: of one that is mapped, reading a page that isn't
            there any more ends the process.

    Attributes:
        metadata: what stands in the files' headers beside the tensors.

    Raises:
        CheckpointError: a file is missing, is a pickle, or is neither a safetensors nor a GGUF file.
    """

    def __init__(self, paths: Iterable[Path], *, prefix: str = "", mapped: bool = True) -> None:
        self.prefix = prefix
        self._files: dict[str, tuple[Path, Any]] = {}
        self._mapped: dict[Path, os.stat_result] = {}
        self.paths = tuple(paths)
        self.metadata: dict[str, str] = {}
        for path in self.paths:
            refuse_pickle(path)
            if not path.is_file():
                raise CheckpointError(f"{path} is missing")
            is_gguf = path.suffix == GGUF_SUFFIX
            try:
                if is_gguf:
                    file: Any = GGUFFile(path)
                else:
                    file = safe_open(path, framework="pt", device="cpu") if mapped else _Unmapped(path)
            except HeaderError as error:
                raise CheckpointError(f"{path} {error}") from error
            except (SafetensorError, OSError, ValueError) as error:
                kind = "GGUF" if is_gguf else "safetensors"
                raise CheckpointError(f"{path} is not a readable {kind} file: {error}") from error
            if not isinstance(file, _Unmapped):
                self._mapped[path] = path.stat()
            self.metadata |= file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name.startswith(prefix):
                    self._files[name.removeprefix(prefix)] = path, file

    @classmethod
    def of_folder(cls, folder: Path, stem: str) -> TensorSource:
        """`stem.safetensors`, or the shards that `stem.safetensors.index.json` lists.

        Raises:
            CheckpointError: the index can't be read, or as for the files themselves.
        """
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards or not all(isinstance(at, str) for at in shards.values()):
                raise CheckpointError(f"{index}: weight_map must be an object: each tensor's name and its file's")
            return cls(folder / shard for shard in sorted(set(shards.values())))
        return cls([folder / f"{stem}.safetensors"])

    def keep(self) -> None:
        """Have the files in memory that aren't mapped, so that reading a tensor waits for no disk.

        Raises:
            CheckpointError: one was overwritten since it was opened.
            OSError: one can't be read.
        """
        for _, file in self._files.values():
            if isinstance(file, _Unmapped):
                file.keep()

    def forget(self) -> None:
        """Read tensors from these files again."""
        for _, file in self._files.values():
            if isinstance(file, _Unmapped):
                file.forget()

    @property
    def label(self) -> str:
        """Its files, for messages."""
        first, *others = self.paths
        return f"{first} ... ({len(self.paths)} files)" if others else str(first)

    def with_prefix(self, prefix: str) -> TensorSource:
        """The tensors under `prefix`, without it in their names."""
        return TensorSource(self.paths, prefix=self.prefix + prefix)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> Iterator[str]:
        """Names of weights: scales and marks of quantised files are left out."""
        for name in self._files:
            if name.rpartition(".")[2] not in (*_SCALE_SUFFIXES, *_MARKS):
                yield name

    def shape(self, name: str, *, axes: int | None = None) -> tuple[int, ...]:
        """Without reading the tensor.

        Args:
            axes: how many it must have.

        Raises:
            CheckpointError: there is no such tensor, or it has another number of axes.
        """
        shape = tuple(self._stored(name).get_shape())
        if axes is not None and len(shape) != axes:
            raise CheckpointError(
                f"{self._files[name][0]}: {self.prefix}{name} has shape {list(shape)}, expected {axes} axes"
            )
        return shape

    def read(self, name: str, dtype: torch.dtype, device: torch.device = HOST) -> Tensor:
        """The tensor on `device`, dequantised if it is fp8. What has no scales goes there as it is stored: to widen it
        on the host takes longer than to send it.

        Raises:
            CheckpointError: there is no such tensor, or its format or its scale's can't be opened.
        """
        tensor = self._tensor(name, _OPENED)
        scales = self._scales(name)
        if not scales:
            return tensor.to(device).to(dtype)
        wide = tensor.to(torch.float32, copy=True)  # it may be the file's own memory
        for scale in scales:
            wide *= scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, *[1] * (wide.ndim - 1))
        return wide.to(device, dtype)

    def number(self, name: str) -> float:
        """A tensor of one number, in whatever format.

        Raises:
            CheckpointError: there is no such tensor, or it isn't one number.
        """
        shape, found = self.shape(name), self._stored(name).get_dtype()
        if prod(shape) != 1 or found not in (*_OPENED, *_INTEGERS):
            raise CheckpointError(
                f"{self._files[name][0]}: {self.prefix}{name} must be one number, and is stored as {found} of shape "
                f"{list(shape)}"
            )
        return float(self._tensor(name, (*_OPENED, *_INTEGERS)).item())

    def is_stored_in(self, name: str, dtype: torch.dtype) -> bool:
        """Whether reading the tensor in this format changes nothing about it. Raises as `read`."""
        return _FORMATS.get(self._stored(name).get_dtype()) == dtype and not self._scales(name)

    def require_opened(self, name: str) -> None:
        """Raise CheckpointError for a tensor that isn't there or whose format can't be read, without reading it."""
        if (found := self._stored(name).get_dtype()) not in (*_OPENED, *_INTEGERS):
            raise self._refused(name, f"is stored as {found}")

    def read_e4m3(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A matrix (o, d) as it is stored, and its scale for each row (o, 1) in float32; None if it isn't e4m3.

        Raises:
            CheckpointError: there is no such tensor, or its scale's format can't be opened.
        """
        stored = self._stored(name)
        if stored.get_dtype() != _E4M3_MARK or len(stored.get_shape()) != 2:
            return None
        tensor = self._tensor(name, _OPENED)
        rows = torch.ones(len(tensor), 1)
        for scale in self._scales(name):
            rows *= scale.reshape(-1, 1)
        return tensor, rows

    def refuse_quantised(self) -> None:
        """For files that a library reads, which takes what is stored as it is.

        Raises:
            CheckpointError: a tensor is quantised, other than by being rounded to fp8.
        """
        for name in self.names():
            if (found := self._stored(name).get_dtype()) not in (*_OPENED, _INDICES):
                raise self._refused(name, f"is stored as {found}")
            if self._scales(name):
                raise CheckpointError(f"{self._files[name][0]}: {self.prefix}{name} has a scale, which isn't read here")

    def _scales(self, name: str) -> list[Tensor]:
        """By what a stored tensor must be multiplied: one scale for the tensor, or one for each output row."""
        base = name.removesuffix("weight")
        rows = next(iter(self.shape(name)), 1)
        scales = []
        for scale in (base + suffix for suffix in _SCALE_SUFFIXES if base + suffix in self._files):
            # By its shape, and the first axis of it: a square matrix has as many columns as rows, and blocks can be as
            # many as rows.
            if (found := self._stored(scale).get_dtype()) not in _WIDE:
                raise self._refused(scale, f"is stored as {found}")
            if (shape := self.shape(scale)) not in ((), (1,), (1, 1), (rows,), (rows, 1)):
                raise self._refused(name, f"has scales of shape {list(shape)} for {rows} rows")
            scales.append(self._tensor(scale, _WIDE).float())
        return scales

    def _tensor(self, name: str, formats: tuple[str, ...]) -> Tensor:
        """As it is stored, if that is in one of `formats`."""
        if (found := self._stored(name).get_dtype()) not in formats:
            raise self._refused(name, f"is stored as {found}")
        path, file = self._files[name]
        if path in self._mapped and _is_overwritten(path, self._mapped[path]):
            raise _overwritten(path)
        tensor: Tensor = file.get_tensor(self.prefix + name)
        return tensor

    def _stored(self, name: str) -> Any:
        """The slice of the file that holds it, unread."""
        if name not in self._files:
            raise CheckpointError(f"{self.label}: missing tensor: {self.prefix}{name}")
        return self._files[name][1].get_slice(self.prefix + name)

    def _refused(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self._files[name][0]}: {self.prefix}{name} {why}: only {_CAN_BE_OPENED}")


class _Unmapped:
    """A safetensors file whose tensors are read one by one, as `safe_open` would show it.

    It is held open: whatever takes its name later, this is what is read, or, if it was overwritten, nothing is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._before = os.fstat(self._file)
        with open(self._file, "rb", closefd=False) as opened:
            self._header = read_header(opened)
        self._data: bytearray | None = None

    def metadata(self) -> Mapping[str, str]:
        return self._header.metadata

    def keys(self) -> Iterable[str]:
        return self._header.tensors

    def get_slice(self, name: str) -> _Slice:
        stored = self._header.tensors[name]
        return _Slice(stored.dtype, stored.shape)

    def get_tensor(self, name: str) -> Tensor:
        stored = self._header.tensors[name]
        dtype, data, start = _FORMATS[stored.dtype], self._data, stored.first
        if stored.first == stored.last:
            return torch.empty(stored.shape, dtype=dtype)
        if data is None:
            data, start = self._read(stored.first, stored.last), 0
        flat = torch.frombuffer(data, dtype=torch.uint8, count=stored.last - stored.first, offset=start)
        # Tensors may begin anywhere in a file, and only at multiples of their size in memory.
        return (flat if start % dtype.itemsize == 0 else flat.clone()).view(dtype).reshape(stored.shape)

    def keep(self) -> None:
        """Have all of it in memory."""
        if self._data is None:
            self._data = self._read(0, self._before.st_size)

    def forget(self) -> None:
        """Read from the file again."""
        self._data = None

    def _read(self, first: int, last: int) -> bytearray:
        data = bytearray(last - first)
        view = memoryview(data)
        while view and (count := os.preadv(self._file, [view], last - len(view))):
            view = view[count:]
        now = os.fstat(self._file)
        if view or (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise _overwritten(self._path)
        return data


class _Slice(NamedTuple):
    dtype: str
    shape: tuple[int, ...]

    def get_dtype(self) -> str:
        return self.dtype

    def get_shape(self) -> tuple[int, ...]:
        return self.shape


def _overwritten(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} was changed since it was opened, and can't be read any more")


def _is_overwritten(path: Path, before: os.stat_result) -> bool:
    """Whether what was mapped is another by now. Of a file that was removed or replaced what was mapped stays."""
    try:
        now = path.stat()
    except OSError:
        return False
    return now.st_ino == before.st_ino and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def first_of(names: Iterable[str]) -> str:
    """The first five, and how many there are besides."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + more


def read_json(path: Path) -> dict[str, Any]:
    """A configuration.

    Raises:
        CheckpointError: there is no such file, or no JSON object in it.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def refuse_pickle(path: Path) -> None:
    """Raise for the formats that can run code when they are read."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read: convert it to .safetensors and open that"
        )
