"""What can be told of a LoRA's file by its header, without opening it: whether a stranger's may be handed to an engine.

Whether it fits the model only an engine can say. https://huggingface.co/docs/safetensors has the format: eight bytes
with the length of a JSON object, that, and the bytes of the tensors that it names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

HEADER_BYTES_MAX: Final = 8 * 2**20
"""One of rank 256 for all of the published model's matrices has a hundredth of it."""
_LENGTH_BYTES: Final = 8
_MARKS: Final = re.compile(r"lora|\.diff(_b)?$|\.alpha$|lokr_|hada_|\.set_weight$", re.IGNORECASE)
"""In names of tensors that are a change of others."""
_SETTINGS: Final = "lora_adapter_metadata"
_PLAIN: Final = re.compile(r"[\w.\\^$-]{0,300}", re.ASCII)
"""Patterns that name modules. Any regular expression of a stranger's could take for ever."""


class NoLora(ValueError):
    """The file is none. The message is a clause that follows its name: it ... ."""


def check_lora(file: Path) -> None:
    """Return if a file may be a LoRA.

    Raises:
        NoLora: it isn't.
        OSError: it can't be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise NoLora(f"is no safetensors file: it begins with {_beginning(file)}")
        if length > HEADER_BYTES_MAX:
            raise NoLora(f"has a header of {length} bytes, and one of a LoRA has at most {HEADER_BYTES_MAX}")
        try:
            header: Any = json.loads(opened.read(length))
        except (ValueError, RecursionError) as error:
            raise NoLora(f"is no safetensors file: its header can't be read ({error})") from error
    if not isinstance(header, dict):
        raise NoLora("is no safetensors file: its header is no JSON object")
    metadata = header.pop("__metadata__", None)
    _check_tensors(header, size - _LENGTH_BYTES - length)
    if not any(_MARKS.search(name) for name in header):
        raise NoLora("holds no LoRA, whose tensors are named lora_A and lora_B, or lora_down and lora_up")
    _check_patterns(metadata)


def _check_tensors(tensors: dict[str, Any], size: int) -> None:
    end = 0
    for name, about in tensors.items():
        try:
            first, last = about["data_offsets"]
            is_whole = 0 <= first <= last <= size
        except (TypeError, KeyError, ValueError) as error:
            raise NoLora(f"is no safetensors file: its header doesn't say where {name[:80]} lies") from error
        if not is_whole:
            raise NoLora(f"is cut short: {name[:80]} ends at byte {last} of {size}")
        end = max(end, last)
    if end != size:
        raise NoLora(f"has {size} bytes of tensors, and its header tells of {end}")


def _check_patterns(metadata: object) -> None:
    """Look at what PEFT's settings in a header would have an engine match names with."""
    told = metadata.get(_SETTINGS) if isinstance(metadata, dict) else None
    if told is None:
        return
    try:
        settings: Any = json.loads(told)
        patterns = [
            pattern for name, value in settings.items() if name.endswith("alpha_pattern") for pattern in value or ()
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NoLora(f"has a header whose {_SETTINGS} can't be read") from error
    for pattern in patterns:
        if not _PLAIN.fullmatch(pattern):
            raise NoLora(f"has {pattern[:80]!r} in its header's alpha_pattern, which is no name of modules")


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        return repr(opened.read(16).decode("ascii", "replace"))
