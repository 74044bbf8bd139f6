"""Models and sets of LoRAs for the tests of hot swapping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from rekontext.engine import Engine
from rekontext.engine.checkpoint import OpenedModel, open_model
from rekontext.engine.compilation import compile_blocks
from rekontext.engine.memory import Placement
from tests.parity.with_peft import EDIT

CPU: Final = torch.device("cpu")
INK: Final = (("ink", 0.7),)
BOTH: Final = (("ink", 0.7), ("wash", -0.5))
SETS: Final[tuple[tuple[tuple[str, float], ...], ...]] = ((), INK, BOTH, (("wash", 1.0),))

Opening = Callable[[Path, tuple[str, ...]], OpenedModel]


def opening(dtype: torch.dtype, *, packed: bool = False, traced: bool = False, **placement: bool) -> Opening:
    def opened(folder: Path, loras: tuple[str, ...]) -> OpenedModel:
        parts = open_model(str(folder), device=CPU, dtype=dtype, placement=Placement(**placement), loras=loras)
        if packed:
            parts.transformer.pack()
        if traced:
            compile_blocks(parts.transformer, backend="eager")
        return parts

    return opened


def drawn(engine: Engine, loras: tuple[tuple[str, float], ...] = ()) -> bytes:
    return engine.submit(replace(EDIT, loras=loras)).result().picture.tobytes()
