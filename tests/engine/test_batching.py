"""Sharing a pass: only where it was measured to pay, and never at the price of other bits unless that was allowed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rekontext.contract import BatchMode, EditRequest
from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.engine.batching import Batching
from tests.small_model import SHAPES, build

PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8), "RGB")
SHAPE = ("a shape",)
TOKENS = 100


def measured(*, alone_s: float, together_s: float, same: bool, size: int = 2, mode: BatchMode = "exact") -> Batching:
    """A `Batching` that has measured one size, on a clock that says what the test wants."""
    batching = Batching(mode=mode)
    results: list[Sequence[Tensor]] = [[torch.zeros(1)] * size, [torch.full((1,), 0.0 if same else 1e-7)] * size]
    times: Iterator[float] = iter([0.0, alone_s, alone_s + together_s])
    batching.learn(
        SHAPE, tokens=TOKENS, alone=lambda: results[0], together=lambda: results[1], clock=lambda: next(times)
    )
    return batching


@pytest.mark.parametrize(
    ("alone_s", "together_s", "same", "mode", "limit"),
    [
        (2.0, 1.1, True, "exact", 2),
        (2.0, 1.6, True, "exact", 1),
        (2.0, 1.1, False, "exact", 1),
        (2.0, 1.1, False, "any", 2),
    ],
    ids=["pays", "saves too little", "other bits", "other bits allowed"],
)
def test_a_shape_is_shared_where_that_pays(
    alone_s: float, together_s: float, same: bool, mode: BatchMode, limit: int
) -> None:
    batching = measured(alone_s=alone_s, together_s=together_s, same=same, mode=mode)
    assert batching.limit(SHAPE) == limit
    wanted = batching.wanted(SHAPE, 4, tokens=TOKENS)
    assert wanted == (4 if limit == 2 else None), "larger ones are tried only after a success"


@pytest.mark.parametrize(
    ("together_s", "same", "larger"),
    [(1.1, True, 2), (1.6, True, None), (1.1, False, 2)],
    ids=["pays", "saves too little", "other bits"],
)
def test_a_shape_is_not_tried_where_a_smaller_one_filled_the_device(
    together_s: float, same: bool, larger: int | None
) -> None:
    """A trial is six passes. Bits are another matter: kernels are chosen by size."""
    batching = measured(alone_s=2.0, together_s=together_s, same=same)
    assert batching.wanted(("another",), 4, tokens=TOKENS) == larger
    assert batching.wanted(("another",), 4, tokens=TOKENS - 1) == 2


def test_only_sizes_that_were_measured_are_run() -> None:
    """Kernels are chosen by size: what holds for two and four says nothing of three."""
    batching = measured(alone_s=4.0, together_s=1.1, same=True, size=4)
    assert [batching.shared(SHAPE, present) for present in (1, 2, 3, 4, 9)] == [1, 2, 2, 4, 4]
    assert Batching().shared(SHAPE, 9) == 1


def test_nothing_is_tried_when_it_is_off() -> None:
    batching = Batching(mode="off")
    assert batching.limit(SHAPE) == 1
    assert batching.wanted(SHAPE, 9, tokens=TOKENS) is None


def test_two_are_tried_before_four() -> None:
    batching = Batching()
    assert batching.wanted(SHAPE, 1, tokens=TOKENS) is None
    assert batching.wanted(SHAPE, 9, tokens=TOKENS) == 2


def test_a_size_that_failed_spares_the_smaller_ones_that_pay() -> None:
    """Four may not fit into memory where two do."""
    batching = measured(alone_s=2.0, together_s=1.1, same=True)
    assert batching.wanted(SHAPE, 4, tokens=TOKENS) == 4
    batching.forbid(SHAPE, 4)
    assert batching.shared(SHAPE, 9) == 2
    assert batching.wanted(SHAPE, 9, tokens=TOKENS) is None, "it isn't tried again"
    batching.forbid(SHAPE, 2)
    assert batching.shared(SHAPE, 9) == 1
    assert batching.wanted(SHAPE, 9, tokens=TOKENS) is None


@pytest.mark.parametrize("photo", [PHOTO, None], ids=["edit", "text-to-image"])
def test_a_shared_pass_computes_what_lone_passes_compute(tmp_path: Path, photo: Image.Image | None) -> None:
    """Edits at different steps, with different prompts, guidance and lengths."""
    build(tmp_path, SHAPES["deep"])
    with Engine.open(str(tmp_path), device="cpu", dtype="float32") as engine:
        edits = []
        for i in range(3):
            request = EditRequest(id="", prompt=f"edit {i}", photo=photo, steps=5 + i, guidance=i, seed=i)
            edits.append(stages.prepare(engine.model, request, stages.plan(engine.model, request)))
            for _ in range(i):
                stages.step(engine.model, edits[-1])
        alone = [stages.velocities(engine.model, [edit])[0] for edit in edits]
        together = stages.velocities(engine.model, edits)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "any", "off"])
def test_an_engine_that_shares_passes_ends_every_edit(tmp_path: Path, mode: BatchMode) -> None:
    build(tmp_path, SHAPES["plain"])
    requests = [EditRequest(id="", prompt="night", photo=PHOTO, steps=8, seed=i) for i in range(6)]
    with Engine.open(str(tmp_path), device="cpu", dtype="float32", batch=mode) as engine:
        alone = [engine.submit(request).result(60).picture for request in requests]
        with engine._core._changed:
            tickets = [engine.submit(request) for request in requests]
        for ticket, picture in zip(tickets, alone, strict=True):
            result = ticket.result(60)
            assert result.passes == 8
            difference = np.abs(np.asarray(result.picture, int) - np.asarray(picture, int))
            assert difference.max() <= (1 if mode == "any" else 0)
