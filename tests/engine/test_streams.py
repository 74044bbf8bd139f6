"""What is queued on a device: in which order, and that nothing is given back before it was read."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.engine.autoencoder import Autoencoder
from rekontext.engine.prompt import PromptEncoder
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


def test_the_photo_is_queued_before_the_prompt_and_nothing_waits_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a copy waits for all that was queued: behind the photo it would, and the prompt would be queued late."""
    build(tmp_path, SHAPES["plain"])
    order: list[str] = []
    for owner, name in ((stages, "noise"), (stages, "rotation_of"), (Autoencoder, "encode"), (PromptEncoder, "encode")):
        honest = getattr(owner, name)

        def noted(*given: Any, _honest: Any = honest, _name: str = f"{owner.__name__}.{name}", **named: Any) -> Any:
            order.append(_name.rpartition("engine.")[2])
            return _honest(*given, **named)

        monkeypatch.setattr(owner, name, noted)
    with Engine.open(str(tmp_path), device="cpu") as engine:
        engine.edit(Image.new("RGB", (96, 96)), "night", steps=1, seed=1)
    assert order == ["edit.noise", "edit.rotation_of", "Autoencoder.encode", "PromptEncoder.encode"]
