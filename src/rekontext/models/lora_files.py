"""What can be told of a LoRA's file by its header: whether a stranger's may be handed to an engine.

Whether it fits the model only an engine can say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rekontext.models.headers import HeaderError, read_header

HEADER_BYTES_MAX: Final = 8 * 2**20
"""One of rank 256 for all of the published model's matrices has a hundredth of it."""
_MARKS: Final = re.compile(r"lora|\.diff(_b)?$|\.alpha$|lokr_|hada_|\.set_weight$", re.IGNORECASE)
"""In names of tensors that are a change of others."""
_SETTINGS: Final = "lora_adapter_metadata"
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
    if not any(_MARKS.search(name) for name in header.tensors):
        raise NoLora("holds no LoRA, whose tensors are named lora_A and lora_B, or lora_down and lora_up")
    _check_patterns(header.metadata)


def _check_patterns(metadata: Mapping[str, str]) -> None:
    """Look at what PEFT's settings in a header would have an engine match names with."""
    try:
        settings: Any = json.loads(metadata.get(_SETTINGS, "{}"))
        patterns = [
            pattern for name, value in settings.items() if name.endswith("alpha_pattern") for pattern in value or ()
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NoLora(f"has a header whose {_SETTINGS} can't be read") from error
    for pattern in patterns:
        if not _PLAIN.fullmatch(pattern):
            raise NoLora(f"has {pattern[:80]!r} in its header's alpha_pattern, which is no name of modules")
