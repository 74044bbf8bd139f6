"""What can be told of a LoRA's file by its header: whether a stranger's may be handed to an engine.

Whether it fits the model only an engine can say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from rekontext.models.headers import HeaderError, read_header

HEADER_BYTES_MAX: Final = 4 * 2**20
"""One of rank 256 for all of the published model's matrices has a hundredth of it."""
TENSORS_MAX: Final = 10_000
"""Three for each matrix of the published model and of its text encoders are two thousand."""
_SETTINGS_CHARACTERS_MAX: Final = 2**18
_PATTERNS_MAX: Final = 1000
_MARKS: Final = re.compile(r"lora|\.diff(_b)?$|\.alpha$|lokr_|hada_|\.set_weight$", re.IGNORECASE)
"""In names of tensors that are a change of others."""
SETTINGS: Final = "lora_adapter_metadata"
"""In a header: PEFT's settings, as diffusers puts them there."""
_PLAIN: Final = re.compile(r"[\w.\\^$-]{0,300}", re.ASCII)
"""Patterns that name modules. Any regular expression of a stranger's could take for ever."""


class NoLora(ValueError):
    """The file is none. The message is a clause that follows its name."""


def check_lora(file: Path) -> None:
    """Return if a file may be a LoRA.

    Raises:
        NoLora: it isn't.
        OSError: it can't be read.
    """
    try:
        with file.open("rb") as opened:
            header = read_header(opened, bytes_max=HEADER_BYTES_MAX)
    except HeaderError as error:
        raise NoLora(str(error)) from error
    if len(header.tensors) > TENSORS_MAX:
        raise NoLora(f"has {len(header.tensors)} tensors, and a LoRA has at most {TENSORS_MAX}")
    if not any(_MARKS.search(name) for name in header.tensors):
        raise NoLora("holds no LoRA, whose tensors are named lora_A and lora_B, or lora_down and lora_up")
    _check_patterns(header.metadata)


def _check_patterns(metadata: Mapping[str, str]) -> None:
    """Look at what PEFT's settings in a header would have an engine match names with."""
    told = metadata.get(SETTINGS, "{}")
    if len(told) > _SETTINGS_CHARACTERS_MAX:
        raise NoLora(f"has a header whose {SETTINGS} has more than {_SETTINGS_CHARACTERS_MAX} characters")
    try:
        settings: Any = orjson.loads(told)
        patterns = [
            pattern
            for name, value in settings.items()
            if name.endswith("alpha_pattern") and value
            for pattern in dict(value)
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise NoLora(f"has a header whose {SETTINGS} can't be read") from error
    if len(patterns) > _PATTERNS_MAX:
        raise NoLora(f"has {len(patterns)} entries in its header's alpha_pattern, and at most {_PATTERNS_MAX} are read")
    for pattern in patterns:
        if not isinstance(pattern, str) or not _PLAIN.fullmatch(pattern):
            raise NoLora(f"has {str(pattern)[:80]!r} in its header's alpha_pattern, which is no name of modules")
