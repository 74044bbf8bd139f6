"""The header of a safetensors file, read without the file being mapped, and without trust in who made it.

https://huggingface.co/docs/safetensors has the format: eight bytes with the length of a JSON object, that, and the
bytes of the tensors that it names, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, BinaryIO, Final, NamedTuple

BYTES_MAX: Final = 100_000_000
"""As the library has it."""
_LENGTH_BYTES: Final = 8
_ITEM_BYTES: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


class HeaderError(ValueError):
    """The file is none, or isn't whole. The message is a clause that follows its name."""


class Stored(NamedTuple):
    """A tensor: its format in the words of such files, its shape, and where in the file its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


class Header(NamedTuple):
    """What a file has in it."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, *, bytes_max: int = BYTES_MAX) -> Header:
    """The header of a file that is open at its beginning.

    Raises:
        HeaderError: it is no safetensors file, is cut short, or its header has more than `bytes_max` bytes.
        OSError: it can't be read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    begins = file.read(_LENGTH_BYTES)
    length = int.from_bytes(begins, "little")
    start = _LENGTH_BYTES + length
    if len(begins) < _LENGTH_BYTES or start > size:
        shown = (begins + file.read(_LENGTH_BYTES)).decode("ascii", "replace")
        raise HeaderError(f"is no safetensors file: it begins with {shown!r}")
    if length > bytes_max:
        raise HeaderError(f"has a header of {length} bytes, and at most {bytes_max} are read")
    try:
        told: Any = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"is no safetensors file: its header can't be read ({error})") from error
    if not isinstance(told, dict):
        raise HeaderError("is no safetensors file: its header is no JSON object")
    metadata = told.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("is no safetensors file: the metadata in its header are no texts")
    tensors = {name: _stored(name, about, start) for name, about in told.items()}
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda each: each[1].first):
        if tensor.first != end:
            raise HeaderError(f"is no safetensors file: {name[:80]} doesn't begin where the tensor before it ends")
        if tensor.last > size:
            raise HeaderError(f"is cut short: {name[:80]} ends at byte {tensor.last} of {size}")
        end = tensor.last
    if end != size:
        raise HeaderError(f"has {size} bytes, and its header tells of {end}")
    return Header(tensors=tensors, metadata=metadata)


def _stored(name: str, about: Any, start: int) -> Stored:
    try:
        first, last = (_whole(offset) for offset in about["data_offsets"])
        tensor = Stored(str(about["dtype"]), tuple(map(_whole, about["shape"])), start + first, start + last)
    except (TypeError, KeyError, ValueError) as error:
        raise HeaderError(f"is no safetensors file: its header doesn't say what {name[:80]} is") from error
    item = _ITEM_BYTES.get(tensor.dtype)
    if first > last or (item is not None and item * prod(tensor.shape) != last - first):
        raise HeaderError(
            f"is no safetensors file: {name[:80]} is {tensor.dtype} of shape {list(tensor.shape)} in {last - first} bytes"
        )
    return tensor


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value
