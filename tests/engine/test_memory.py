"""Memory plans: their arithmetic on the published model, which one is taken, and going down when memory runs out."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rekontext.contract import EditRequest
from rekontext.engine import CheckpointError, Engine, precision, warming
from rekontext.engine import edit as stages
from rekontext.engine import placement as placing
from rekontext.engine.checkpoint import OpenedModel, model_sizes, open_model
from rekontext.engine.costs import CostModel
from rekontext.engine.fp8 import Fp8Linear
from rekontext.engine.memory import GB, MemoryPlan, Placement, Sizes, memory_plans
from rekontext.engine.placement import open_first, open_placed
from rekontext.engine.transformer import TransformerConfig
from tests.small_model import CANVAS_AREA, SHAPES, TEXT_TOKENS, build

CPU = torch.device("cpu")
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8), "RGB")
SMALLEST = Placement(fp8=True, text_on_host=True, modulation_on_host=True)


def chosen(free_gb: float, *, has_fp8: bool = True) -> str | None:
    return next((plan.name for plan in memory_plans(Sizes(), int(free_gb * GB), has_fp8=has_fp8) if plan.fits), None)


@pytest.mark.parametrize(
    ("card_gib", "expected"),
    [
        (80, "bf16"),
        (48, "bf16"),
        (32, "fp8"),
        (24, "fp8, text encoders on the host"),
        (16, "fp8, text encoders and modulation on the host"),
        (12, None),
    ],
)
def test_the_published_model_fits_the_usual_cards(card_gib: int, expected: str | None) -> None:
    """With half a GiB taken by the driver's context, as on an empty card."""
    assert chosen((card_gib - 0.5) * 2**30 / GB) == expected


def test_without_fp8_units_there_is_one_plan() -> None:
    assert chosen(80, has_fp8=False) == "bf16"
    assert chosen(32, has_fp8=False) is None


def test_weights_are_counted_from_the_configuration() -> None:
    """Two wide plans differ by one byte for each weight that fp8 covers; the host gets what the device loses."""
    wide, small, text, least = memory_plans(Sizes(), 0)
    width, blocks = 3072, 57
    assert wide.device_bytes - small.device_bytes == 24 * width**2 * 19 + 12 * width**2 * 38
    assert small.device_bytes - text.device_bytes == text.host_bytes == 2 * Sizes().text_encoder_parameters
    assert least.host_bytes - text.host_bytes == 2 * (width * width + width) * (12 * 19 + 3 * 38)
    shallow = Sizes(transformer=TransformerConfig(double_blocks=2, single_blocks=blocks))
    assert memory_plans(shallow, 0)[0].device_bytes < wide.device_bytes


def test_a_model_is_named_without_the_folder_it_lies_in(tmp_path: Path) -> None:
    """Callers are told its name; where weights lie on the server is nobody's business."""
    build(tmp_path, SHAPES["deep"])
    assert open_model(str(tmp_path), device=CPU, dtype=torch.float32).name == tmp_path.name


def test_a_models_sizes_are_read_without_its_weights(tmp_path: Path) -> None:
    build(tmp_path, SHAPES["deep"])
    sizes = model_sizes(str(tmp_path))
    parts = open_model(str(tmp_path), device=CPU, dtype=torch.float32)
    encoders = (parts.clip, parts.t5)
    assert sizes.transformer == parts.transformer.config
    assert sizes.text_encoder_parameters == sum(p.numel() for part in encoders for p in part.parameters())
    assert sizes.autoencoder_parameters == sum(p.numel() for p in parts.autoencoder.parameters())
    assert (sizes.canvas_area, sizes.text_tokens) == (CANVAS_AREA, TEXT_TOKENS)
    assert sizes.full_resolution_channels == 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "model"
    build(folder, SHAPES["deep"])
    return folder


def ladder(*placements: Placement, free_bytes: int = 100) -> list[MemoryPlan]:
    """Plans that need 100, 90, 80 ... bytes."""
    return [
        MemoryPlan(name=f"plan {i}", placement=each, device_bytes=100 - 10 * i, host_bytes=0, free_bytes=free_bytes)
        for i, each in enumerate(placements)
    ]


def test_opening_takes_the_first_plan_that_fits_and_falls_when_memory_runs_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Placement] = []

    def opened(placement: Placement) -> OpenedModel:
        asked.append(placement)
        if placement == Placement(fp8=True):
            raise torch.OutOfMemoryError("the device is full")
        return open_model(str(folder), device=CPU, dtype=torch.bfloat16, placement=placement)

    choices = ladder(Placement(), Placement(fp8=True), SMALLEST, free_bytes=95)
    with caplog.at_level(logging.WARNING):
        parts, left = open_first(opened, choices, CPU)
    assert asked == [Placement(fp8=True), SMALLEST]
    assert parts.placement == SMALLEST
    assert left == (choices[2],)
    assert "out of memory with plan 1" in caplog.text
    with pytest.raises(CheckpointError, match="ran out of memory with plan 1"):
        open_first(opened, choices[:2], CPU)


def test_too_little_memory_is_told_in_numbers() -> None:
    def opened(placement: Placement) -> OpenedModel:
        raise AssertionError(f"{placement} does not fit")

    with pytest.raises(
        CheckpointError, match=r"needs 15\.\d GB .* even with fp8, text encoders .*, and 9\.0 GB are free"
    ):
        open_first(opened, memory_plans(Sizes(), 9 * GB), CPU)


def test_on_a_gpu_the_plan_is_chosen_unless_a_dtype_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory is read from the device and fp8 tried there; the model is opened as the first plan that fits says."""
    asked: list[tuple[Placement, torch.dtype]] = []

    def opened(
        model: str, *, device: torch.device, dtype: torch.dtype, placement: Placement, loras: Sequence[str]
    ) -> OpenedModel:
        asked.append((placement, dtype))
        return open_model(model, device=CPU, dtype=dtype, placement=placement, loras=loras)

    gpu, needed = torch.device("cuda:0"), [plan.device_bytes for plan in memory_plans(model_sizes(str(folder)), 0)]
    monkeypatch.setattr(placing, "open_model", opened)
    for module in (placing, precision):
        monkeypatch.setattr(module, "missing_units", lambda _: "")
    for free_bytes, expected in ((needed[0], 4), (needed[0] - 1, 3), (needed[-1], 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free_bytes: (free, free))
        parts, left = open_placed(str(folder), device=gpu, dtype=None)
        assert len(left) == expected
        assert parts.placement == left[0].placement == asked[-1][0]
        assert asked[-1][1] == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    parts, left = open_placed(str(folder), device=gpu, dtype="fp8")
    assert (parts.placement, left) == (Placement(fp8=True), ())
    assert asked[-1] == (Placement(fp8=True), torch.bfloat16)


@pytest.mark.parametrize(
    ("fact", "multiplies", "asked", "expected"),
    [
        ("bfloat16", True, None, torch.bfloat16),
        ("bfloat16", False, None, torch.float32),
        ("bfloat16", True, "float32", torch.float32),
        (None, True, None, torch.float32),
    ],
)
def test_on_a_cpu_the_models_facts_choose_unless_a_dtype_is(
    fact: str | None,
    multiplies: bool,
    asked: str | None,
    expected: torch.dtype,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placing, "multiplies_bfloat16", lambda: multiplies)
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    if fact is not None:
        facts = json.loads((model / "rekontext.json").read_text())
        (model / "rekontext.json").write_text(json.dumps(facts | {"cpu_dtype": fact}))
    parts, _ = open_placed(str(model), device=CPU, dtype=asked)
    assert parts.transformer.dtype == expected


def test_every_placement_draws_the_same_picture_as_fp8_alone(folder: Path) -> None:
    """Where weights wait changes no bit of what is computed with them."""
    pictures = [
        edit_with(Placement(fp8=True, text_on_host=text, modulation_on_host=modulation), folder)
        for text, modulation in ((False, False), (True, False), (True, True))
    ]
    assert pictures[0] == pictures[1] == pictures[2]


def edit_with(placement: Placement, folder: Path) -> bytes:
    parts = open_model(str(folder), device=CPU, dtype=torch.bfloat16, placement=placement)
    with Engine(parts) as engine:
        return engine.edit(PHOTO, "night", steps=2, seed=1).tobytes()


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, where: str = "velocities") -> Callable[[], None]:
    """Have the device be full once in that stage of an edit; what is returned has it be so once more."""
    honest, failures = getattr(stages, where), [torch.OutOfMemoryError("the device is full")]

    def short_of_memory(*given: object) -> object:
        if failures:
            raise failures.pop()
        return honest(*given)

    monkeypatch.setattr(stages, where, short_of_memory)
    return lambda: failures.append(torch.OutOfMemoryError("the device is full"))


@pytest.mark.parametrize("where", ["prepare", "velocities", "finish"])
def test_running_out_of_memory_in_an_edit_falls_to_the_next_plan_and_finishes_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Whether it happens encoding, in a step or decoding; a second time, with no plan left, the edit is told."""
    again = run_out_of_memory(monkeypatch, where)
    parts = open_model(str(folder), device=CPU, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING), Engine(parts, plans=ladder(Placement(), SMALLEST)) as engine:
        assert engine.card.dtype == "bfloat16"
        request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=3, seed=1)
        result = engine.submit(request).result(60)
        assert (result.steps, result.passes) == (3, 3)
        assert engine.card.dtype == "fp8"
        assert isinstance(engine.model.transformer.get_submodule("single_blocks.0.linear1"), Fp8Linear)
        assert "out of memory with plan 0: 0.0 GB on the GPU; going on with plan 1" in caplog.text
        again()
        with pytest.raises(torch.OutOfMemoryError):
            engine.submit(request).result(60)
        picture = engine.submit(request).result(60).picture.tobytes()
    assert picture == edit_in(SMALLEST, folder, request)


def test_what_a_step_takes_after_a_fall_is_kept_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start with all the memory must not believe the narrower format's times."""
    run_out_of_memory(monkeypatch)
    parts = open_model(str(folder), device=CPU, dtype=torch.bfloat16)
    with Engine(parts, plans=ladder(Placement(), SMALLEST), costs_file=tmp_path / "costs.json") as engine:
        engine.submit(EditRequest(id="x", prompt="night", photo=PHOTO, steps=3, seed=1)).result(60)
    wide, narrow = (CostModel.load(next(tmp_path.glob(f"costs-*-{name}.json"))).seconds for name in ("bfloat16", "fp8"))
    assert ("step" in wide, "step" in narrow) == (False, True)


def test_a_fall_while_warming_up_mixes_no_formats_times(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those of either format believed that were taken meanwhile."""
    run_out_of_memory(monkeypatch)
    for name, step_s in (("bfloat16", 9.0), ("fp8", 1.0)):
        CostModel(seconds={"step": {96: step_s}}).save(tmp_path / f"costs-model-cpu-{name}.json")
    parts = open_model(str(folder), device=CPU, dtype=torch.bfloat16)
    with (
        Engine(parts, plans=ladder(Placement(), SMALLEST), costs_file=tmp_path / "costs.json") as engine,
        ThreadPoolExecutor(1) as side,
    ):
        engine._core.device._second = side  # as on a GPU, where every start warms up
        warming.tune(engine._core, None, compiled=False, compile_cache=None)
        assert engine.card.dtype == "fp8"
        assert engine.costs.seconds == {"step": {96: 1.0}}
    wide, narrow = (CostModel.load(tmp_path / f"costs-model-cpu-{name}.json").seconds for name in ("bfloat16", "fp8"))
    assert (wide["step"], narrow["step"]) == ({96: 9.0}, {96: 1.0})


@pytest.mark.parametrize("wide", [Placement(), Placement(fp8=True)], ids=["to fp8", "within fp8"])
def test_which_passes_are_shared_is_measured_anew_in_another_format(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wide: Placement
) -> None:
    """Other kernels may give an edit other bits among others."""
    run_out_of_memory(monkeypatch)
    parts = open_model(str(folder), device=CPU, dtype=torch.bfloat16, placement=wide)
    with Engine(parts, plans=ladder(wide, SMALLEST), batch="any") as engine:
        request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=1, seed=1)
        shape = stages.plan(engine.model, request).shape
        engine._core.batching.limits[shape] = 4
        engine.submit(request).result(60)
        assert engine._core.batching.mode == "any"
        assert engine._core.batching.limit(shape) == (4 if wide.fp8 else 1)


def edit_in(placement: Placement, folder: Path, request: EditRequest) -> bytes:
    """The bytes of an engine that was opened that way."""
    parts = open_model(str(folder), device=CPU, dtype=torch.bfloat16, placement=placement)
    with Engine(parts) as engine:
        return engine.submit(request).result(60).picture.tobytes()


def test_a_chosen_dtype_is_kept_whatever_happens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Falling to fp8 is for those who left the choice to us."""

    def full(model: stages.Model, edits: Sequence[stages.Edit]) -> list[Tensor]:
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(stages, "velocities", full)
    with Engine.open(str(folder), device="cpu", dtype="bfloat16") as engine:
        with pytest.raises(torch.OutOfMemoryError):
            engine.edit(PHOTO, "night", steps=2, seed=1)
        assert engine.card.dtype == "bfloat16"
