"""What one stream of the device made and another reads: it must not go back to the first before the second is done."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
from torch import Tensor

from rekontext.engine import Engine
from rekontext.engine import edit as stages
from tests.small_model import SHAPES, build


def test_a_steps_latents_live_until_the_device_has_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a step is only queued when `_pass` returns. The latents that it starts from are the side stream's."""
    build(tmp_path, SHAPES["plain"])
    read: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    honest = stages.velocities

    def velocities(model: stages.Model, edits: list[stages.Edit]) -> list[Tensor]:
        read.extend(weakref.ref(edit.latents_pne) for edit in edits)
        return honest(model, edits)

    def synchronize() -> None:
        if read:
            alive.append(read[-1]() is not None)

    monkeypatch.setattr(stages, "velocities", velocities)
    with Engine.open(str(tmp_path), device="cpu") as engine:
        monkeypatch.setattr(engine._core.device, "synchronize", synchronize)
        engine.edit(None, "night", steps=3, seed=1)
    assert alive == [True, True, True]
