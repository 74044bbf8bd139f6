"""What fails in the engine: what it costs the edit, the others, and the process."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rekontext.contract import EditRequest
from rekontext.engine import Engine, warming
from rekontext.engine import edit as stages
from rekontext.engine.autoencoder import NotFinite
from rekontext.engine.core import EngineBroken, EngineCore
from rekontext.engine.costs import CostModel
from rekontext.engine.device import DeviceLost
from rekontext.engine.placement import is_out_of_memory
from rekontext.engine.plan import Plan
from rekontext.engine.preview import Previewer
from tests.small_model import SHAPES, build

PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8), "RGB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build(folder, SHAPES["plain"])
    return folder


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(str(folder), device="cpu") as engine:
        yield engine


def request(name: str = "", *, steps: int = 4, **more: int) -> EditRequest:
    return EditRequest(id=name, prompt="night", photo=PHOTO, steps=steps, seed=1, **more)  # type: ignore[arg-type]


def test_a_preview_that_fails_is_left_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Image.Image:
        raise RuntimeError("did not converge")

    monkeypatch.setattr(Previewer, "draw", fails)
    assert engine.submit(request(preview_every=1)).result(60).steps == 4
    assert not engine.broken.done()


@pytest.mark.parametrize("where", ["scheduler", "device"])
def test_a_broken_engine_ends_every_edit_and_takes_no_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Nobody waits for ever, and whoever asks learns that only a new process helps."""
    begun, may_go_on = Event(), Event()

    def velocities(model: stages.Model, edits: Sequence[stages.Edit]) -> list[Tensor]:
        begun.set()
        may_go_on.wait(60)
        raise RuntimeError("an illegal memory access was encountered")

    def raises(*_: object, **__: object) -> None:
        raise DeviceLost("no device any more")

    monkeypatch.setattr(stages, "velocities", velocities)
    tickets = [engine.submit(request()) for _ in range(3)]
    assert begun.wait(60)
    if where == "device":
        monkeypatch.setattr(engine._core.device, "need", raises)
    else:
        monkeypatch.setattr(engine._core._scheduler, "next", raises)
    may_go_on.set()
    faults = [ticket.future.exception(60) for ticket in tickets]
    assert sum(isinstance(fault, EngineBroken) and "no device any more" in str(fault) for fault in faults) == 2
    assert isinstance(engine.broken.exception(60), DeviceLost)
    with pytest.raises(EngineBroken):
        engine.submit(request())


def test_pixels_that_are_no_numbers_are_a_fault_and_not_a_black_picture(engine: Engine) -> None:
    engine.model.transformer.final_layer.linear.weight.data.fill_(torch.nan)
    with pytest.raises(NotFinite, match="NaN or infinite"):
        engine.submit(request()).result(60)


def test_what_a_failed_pass_held_is_free_though_its_caller_keeps_the_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next step would meet even less memory than the one that ran out of it."""
    held: list[weakref.ref[Tensor]] = []

    def velocities(model: stages.Model, edits: Sequence[stages.Edit]) -> list[Tensor]:
        activations = torch.zeros(1000)
        held.extend((weakref.ref(activations), weakref.ref(edits[0].latents_pne)))
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(stages, "velocities", velocities)
    gc.disable()
    try:
        fault = engine.submit(request()).future.exception(60)
        with engine._core._changed:
            assert isinstance(fault, torch.OutOfMemoryError)
        monkeypatch.undo()
        engine.submit(request()).result(60)
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()


def test_a_step_that_fails_has_advanced_no_edit(engine: Engine) -> None:
    """Those that share it each try again alone, and one that had advanced already would go past its end."""

    class Full:
        def __rmul__(self, _: float) -> Tensor:
            raise torch.OutOfMemoryError("full")

    edits = [stages.prepare(engine.model, request(), stages.plan(engine.model, request())) for _ in range(2)]
    for edit in edits:
        stages.step(engine.model, edit)
    before = [(edit.step, edit.passes, edit.seen, edit.latents_pne) for edit in edits]
    good, _ = stages.velocities(engine.model, edits)
    with pytest.raises(torch.OutOfMemoryError):
        stages.advance(edits, [good, Full()])  # type: ignore[list-item]
    for edit, (step, passes, seen, latents) in zip(edits, before, strict=True):
        assert (edit.step, edit.passes) == (step, passes)
        assert edit.seen is seen
        assert edit.latents_pne is latents


def test_compiling_is_not_taken_for_the_length_of_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that has just started would refuse deadlines and promise minutes."""
    honest, learned = CostModel.learn, []

    def learn(self: CostModel, stage: str, tokens: int, seconds: float) -> None:
        if stage == "step":
            learned.append((tokens, seconds))
        honest(self, stage, tokens, seconds)

    monkeypatch.setattr(CostModel, "learn", learn)
    monkeypatch.setattr("rekontext.engine.warming.compile_blocks", lambda *_, **__: None)
    with Engine.open(str(folder), device="cpu", compiled=True) as engine:
        assert len(learned) == 4, "each of two shapes once while it compiles, and once more"
        assert engine.costs.seconds["step"] == dict(learned[2:])


def test_costs_are_read_while_nobody_can_change_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may be taking in what a step took: a dictionary that grows can't be read."""
    predict, save = CostModel.predict, CostModel.save
    is_guarded: list[bool] = []

    def predicted(self: CostModel, stage: str, tokens: int) -> float:
        is_guarded.append(opened._core._changed._is_owned())  # type: ignore[attr-defined]
        return predict(self, stage, tokens)

    def saved(self: CostModel, path: Path) -> None:
        is_guarded.append(self is not opened.costs)
        save(self, path)

    with Engine.open(str(folder), device="cpu", costs_file=tmp_path / "costs.json") as opened:
        monkeypatch.setattr(CostModel, "predict", predicted)
        monkeypatch.setattr(CostModel, "save", saved)
        opened.submit(request()).result(60)
        opened.estimate(request())
    assert len(is_guarded) > 10
    assert all(is_guarded)


def test_on_a_gpu_the_next_edit_is_prepared_while_one_is_stepping(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a second thread prepares; whoever comes next must not find the device idle."""
    honest, prepare = stages.velocities, stages.prepare
    is_second_prepared, was_prepared_in_time = Event(), []

    def prepared(model: stages.Model, wanted: EditRequest, plan: Plan) -> stages.Edit:
        edit = prepare(model, wanted, plan)
        if wanted.id == "second":
            is_second_prepared.set()
        return edit

    def velocities(model: stages.Model, edits: list[stages.Edit]) -> list[Tensor]:
        if edits[0].request.id == "first" and edits[0].step == 2:
            was_prepared_in_time.append(is_second_prepared.wait(30))
        return honest(model, edits)

    monkeypatch.setattr(stages, "prepare", prepared)
    monkeypatch.setattr(stages, "velocities", velocities)
    with ThreadPoolExecutor(1) as side:
        monkeypatch.setattr(engine._core.device, "_second", side)
        first, second = engine.submit(request("first")), engine.submit(request("second", steps=50))
        assert first.result(60).steps == 4
        assert second.result(60).steps == 50
    monkeypatch.setattr(engine._core.device, "_second", None)
    # More than once where the two were found to share passes by then.
    assert was_prepared_in_time
    assert all(was_prepared_in_time)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_has_many_names(fault: Exception, expected: bool) -> None:
    assert is_out_of_memory(fault) is expected


def test_an_engine_whose_first_trial_runs_out_of_memory_opens_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which way is faster stays open; the first edit will fall to the next plan, where there is one."""
    from rekontext.engine.transformer import KontextTransformer

    def full(_core: EngineCore) -> Callable[[], Tensor]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(KontextTransformer, "can_have_gelu_within", True)
    monkeypatch.setattr(warming, "one_pass", full)
    with Engine.open(str(folder), device="cpu") as engine:
        assert engine.submit(request()).result(60).steps == 4
        assert not any(name.startswith("gelu") for name in engine.costs.seconds)


def test_where_two_do_not_fit_into_memory_together_the_engine_opens_and_each_goes_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stages.velocities
    fault: RuntimeError = torch.OutOfMemoryError("full")

    def velocities(model: stages.Model, edits: list[stages.Edit]) -> list[Tensor]:
        if len(edits) > 1:
            raise fault
        return honest(model, edits)

    monkeypatch.setattr(stages, "velocities", velocities)
    monkeypatch.setattr("rekontext.engine.warming.compile_blocks", lambda *_, **__: None)
    with ThreadPoolExecutor(1) as side:
        monkeypatch.setattr(engine._core.device, "_second", side)  # as on a GPU, where passes may be shared
        warming.tune(engine._core, None, compiled=True, compile_cache=None)
        plan = stages.plan(engine.model, replace(request(), photo=None))
        assert engine._core.batching.wanted(plan.shape, 9, tokens=plan.tokens) is None
        assert engine._core.batching.shared(plan.shape, 9) == 1
        fault = RuntimeError("an illegal memory access was encountered")
        with pytest.raises(RuntimeError, match="illegal"):
            warming.tune(engine._core, None, compiled=True, compile_cache=None)
    monkeypatch.setattr(engine._core.device, "_second", None)
