"""The header of a safetensors file, read without the file being mapped, and without trust in who made it.

https://huggingface.co/docs/safetensors has the format: eight bytes with the length of a JSON object, that, and the
bytes of the tensors that it names, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, Final, NamedTuple

import orjson

BYTES_MAX: Final = 100_000_000
"""As the library has it."""
_LENGTH_BYTES: Final = 8
_NAME_CHARACTERS_MAX: Final = 300
_DTYPE_CHARACTERS_MAX: Final = 16
_AXES_MAX: Final = 8
_AXIS_MAX: Final = 2**31
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
        told: Any = orjson.loads(file.read(length))
    except orjson.JSONDecodeError as error:
        raise HeaderError(f"is no safetensors file: its header can't be read ({error})") from error
    if not isinstance(told, dict):
        raise HeaderError("is no safetensors file: its header is no JSON object")
    metadata = told.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("is no safetensors file: the metadata in its header are no texts")
    tensors = {name: _stored(name, about, start) for name, about in told.items()}
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda each: each[1][2:]):
        if tensor.first != end:
            raise HeaderError(f"is no safetensors file: {name} doesn't begin where the tensor before it ends")
        if tensor.last > size:
            raise HeaderError(f"is cut short: {name} ends at byte {tensor.last} of {size}")
        end = tensor.last
    if end != size:
        raise HeaderError(f"has {size} bytes, and its header tells of {end}")
    return Header(tensors=tensors, metadata=metadata)


def _stored(name: str, about: Any, start: int) -> Stored:
    if not name.isprintable() or len(name) > _NAME_CHARACTERS_MAX:
        raise HeaderError(f"is no safetensors file: a tensor's name is {name[:40]!r}")
    try:
        first, last = about["data_offsets"]
        dtype, shape = about["dtype"], about["shape"]
        is_told = (
            dtype.isidentifier()
            and len(dtype) <= _DTYPE_CHARACTERS_MAX
            and len(shape) <= _AXES_MAX
            and _are_whole(shape, most=_AXIS_MAX)
            and _are_whole((first, last), most=2**62)
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise HeaderError(f"is no safetensors file: its header doesn't say what {name} is") from error
    if not is_told:
        raise HeaderError(f"is no safetensors file: its header doesn't say what {name} is")
    size = last - first
    if first > last or _bytes(dtype, shape) not in (None, size):
        raise HeaderError(f"is no safetensors file: {name} is {dtype} of shape {list(shape)} in {size} bytes")
    return Stored(dtype, tuple(shape), start + first, start + last)


def _are_whole(values: Any, *, most: int) -> bool:
    return all(type(value) is int and 0 <= value < most for value in values)


def _bytes(dtype: str, shape: Any) -> int | None:
    """How many a tensor has; None for a format that isn't known here."""
    count = _ITEM_BYTES.get(dtype)
    if count is not None:
        for axis in shape:
            count *= axis
    return count
