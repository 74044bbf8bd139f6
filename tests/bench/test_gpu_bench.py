"""The GPU benchmark, all of it on the CPU at small size: what runs on a GPU for the first time has run here before."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from bench import gpu, gpu_parts
from bench.ceilings import Ceilings, Work, attention_e4m3, linear_shapes, step_work
from bench.gpu_bench import Bench, Step
from bench.random_model import FULL, SMALL, diffusers_twin, random_transformer
from rekontext.engine.attention import sdpa
from rekontext.engine.fp8 import relative_error
from rekontext.engine.transformer import KontextTransformer, TransformerConfig

CPU = torch.device("cpu")
COMPARED = {"device", "denoise_28_bf16_s", "denoise_28_fp8_s", "edit_35_bf16_s", "ratio_to_diffusers_compiled"}
"""By these names the figures are looked up elsewhere."""


@pytest.mark.parametrize(("tokens", "linear", "total"), [(8704, 112.4, 165.5), (4608, 59.5, 74.4), (2560, 33.1, 37.7)])
def test_operations_of_a_step_are_those_of_the_model(tokens: int, linear: float, total: float) -> None:
    """In 10^12, as they are known for FLUX.1 Kontext: an edit at 1 MP, text-to-image at 1 MP, an edit at 512 x 512."""
    work = step_work(TransformerConfig(), tokens=tokens)
    assert work.linear / 1e12 == pytest.approx(linear, abs=0.1)
    assert work.total / 1e12 == pytest.approx(total, abs=0.1)
    assert step_work(TransformerConfig(), tokens=tokens, batch=4).total == 4 * work.total


def test_the_measured_products_are_the_steps_products() -> None:
    """Shape by shape they add up to what a step is counted as."""
    shapes = linear_shapes(TransformerConfig(), tokens=8704, text_tokens=512)
    total = sum(2.0 * n * d * o * times for (n, d, o), times in shapes.items())
    assert total == step_work(TransformerConfig(), tokens=8704).linear
    assert (8704, 3072, 21504) in shapes
    assert (8192, 12288, 3072) in shapes


def test_the_floor_is_products_and_attention_at_their_own_rates() -> None:
    rates = Ceilings(bf16=100.0, fp8=200.0, attention=50.0)
    work = Work(linear=1000.0, attention=100.0)
    assert rates.floor_s(work, fp8=False) == 12.0
    assert rates.floor_s(work, fp8=True) == 7.0


def test_the_full_size_is_the_published_models() -> None:
    """Made on the meta device, where it takes no memory."""
    transformer = torch.nn.Module.to(random_shape(FULL.transformer), "meta")
    assert sum(p.numel() for p in transformer.parameters()) == 11_901_408_320
    assert (FULL.canvas_area, FULL.text_tokens) == (1024 * 1024, 512)


def random_shape(config: TransformerConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return KontextTransformer(config)


def test_the_twin_computes_the_same_from_the_same_memory() -> None:
    """diffusers' transformer beside ours: what is timed is the same work, and 24 GB are there once."""
    ours = random_transformer(SMALL.transformer, device=CPU, dtype=torch.float32)
    twin = diffusers_twin(ours)
    bench = Bench(size=SMALL, device=CPU)
    with torch.inference_mode():
        for case in bench.cases.values():
            step = Step(bench, case, ours)
            assert relative_error(step.run(ours), step.run_diffusers(twin)) < 1e-5
    storages = {parameter.untyped_storage().data_ptr() for parameter in ours.parameters()}
    own = {name for name, each in twin.named_parameters() if each.untyped_storage().data_ptr() not in storages}
    assert own == {"norm_out.linear.weight", "norm_out.linear.bias"}


def test_what_is_looked_up_is_measured_first() -> None:
    """Of a run that ends early, which may be any, those figures are what is missed."""
    needed = {"ceilings", "bf16", "ceilings-fp8", "fp8"}
    order = [name for name in gpu.PARTS if name not in needed]
    assert order[:4] == ["denoise", "edits", "denoise-fp8", "diffusers"]


def test_attention_in_e4m3_is_judged_by_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one that multiplies what it is given by its scales, as FlashAttention 3 does."""

    def attend(q: Tensor, k: Tensor, v: Tensor, **scales: Tensor) -> tuple[Tensor, None]:
        assert {x.dtype for x in (q, k, v)} == {torch.float8_e4m3fn}
        named = zip((q, k, v), "qkv", strict=True)
        wide = (x.float() * scales[f"{letter}_descale"][:, None, :, None] for x, letter in named)
        return sdpa(*wide).view(q.shape).bfloat16(), None

    config = SMALL.transformer
    assert attention_e4m3(config, CPU, tokens=40) is None
    library = ModuleType("fa3_fwd_interface")
    monkeypatch.setattr(library, "flash_attn_func", attend, raising=False)
    library.__spec__ = ModuleSpec("fa3_fwd_interface", None)
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", library)
    found = attention_e4m3(config, CPU, tokens=40)
    assert found is not None
    assert found[0] > 0
    assert 5e-3 < found[1] < 0.1


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a part may take is for GPUs: a CPU may be busy with something else."""
    monkeypatch.setattr(gpu, "PARTS", {name: (part, 600.0) for name, (part, _) in gpu.PARTS.items()})
    monkeypatch.setattr(gpu, "BUDGET_S", 3600.0)


@pytest.mark.usefixtures("patience")
def test_every_part_runs_and_the_figures_have_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = gpu.main(["--size", "small", "--device", "cpu", "--backend", "none", "--out", str(tmp_path)])
    assert results["failed"] == {}
    assert results.keys() >= COMPARED
    figures = {name: value for name, value in results.items() if isinstance(value, float)}
    assert len(figures) > 60
    assert all(value >= 0 for value in figures.values())
    assert 0 < results["fp8_error_end"] < 0.1
    assert 0 < results["bf16_error_few_blocks_end"] < 0.05
    assert 0 < results["fp8_error_few_blocks_end"] < 0.1
    assert results["edit_35_fp8_s"] > results["edit_35_fp8_denoise_s"] > 0
    assert results["decode_channels_innermost_tried_s"] > 0
    assert "FlashAttention 3" in results["attention_e4m3"]
    assert results["lora_change_bf16_s"] > 0 < results["lora_back_fp8_s"]
    assert results["difference_to_diffusers"] < 0.05
    assert sum(results["kernels_bf16_ms"].values()) > 0
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("cpu-20")
    assert json.loads(file.read_text()) == results
    printed = capsys.readouterr().out
    assert "denoise_28_fp8_s" in printed
    assert "FAILED" not in printed


@pytest.mark.usefixtures("patience")
@pytest.mark.filterwarnings("default")
def test_compilation_traces_every_kind_of_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, with GELU in either place, and diffusers'; code is generated elsewhere, tracing is what breaks.

    One trace for each kind of block (double, single, the last) and for one edit and several, whatever their sizes; of
    the first two another for the other place of GELU.
    """
    graphs: dict[str, int] = {}
    monkeypatch.setattr(Bench, "end", lambda bench, part: graphs.update({part: bench.results()["graphs"]}))
    monkeypatch.setattr(KontextTransformer, "can_have_gelu_within", True)
    torch.compiler.reset()
    counters.clear()
    options = ["--size", "small", "--device", "cpu", "--backend", "eager", "--out", str(tmp_path)]
    results = gpu.main([*options, "--only", "bf16", "diffusers"])
    assert results["failed"] == {}
    assert results["pass_by"] == "compiled blocks"
    assert (graphs["bf16"], results["graph_breaks"]) == (3 + 2 + 3, 0)
    assert graphs["diffusers"] > graphs["bf16"]
    assert results["difference_to_diffusers"] < 0.05
    assert results["gelu"] in ("behind", "within")
    assert results["step_1mp_1mp_bf16_gelu_behind_compiled_blocks_s"] > 0
    assert results["step_1mp_1mp_bf16_gelu_within_compiled_blocks_s"] > 0


def test_a_part_that_fails_or_takes_too_long_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench) -> None:
        raise RuntimeError("no such kernel")

    def endless(bench: Bench) -> None:
        while True:
            pass

    parts = {"ceilings": (broken, 60.0), "bf16": (endless, 0.05), "load": (gpu_parts.load, 60.0)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    results = gpu.main(["--size", "small", "--device", "cpu", "--backend", "none", "--out", str(tmp_path)])
    assert results["failed"] == {
        "ceilings": "RuntimeError: no such kernel",
        "bf16": "OutOfTime: given up after 0 s",
    }
    assert results["load_gb"] > 0


def test_what_was_measured_is_written_while_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends the process takes the rest along; the file says which part it was in."""

    def long(bench: Bench) -> None:
        bench.figures["first_s"] = 1.0
        (file,) = until(lambda: list(tmp_path.glob("*.json")))
        until(lambda: "first_s" in json.loads(file.read_text()))
        assert json.loads(file.read_text())["part"] == "bf16"

    monkeypatch.setattr(gpu, "PARTS", {"bf16": (long, 60.0)})
    monkeypatch.setattr(gpu, "WRITE_EVERY_S", 0.01)
    results = gpu.main(["--size", "small", "--device", "cpu", "--backend", "none", "--out", str(tmp_path)])
    assert results["failed"] == {}
    assert "part" not in results


def until(find: Callable[[], Any]) -> Any:
    for _ in range(3000):
        if found := find():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_a_run_that_hangs_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that never ends can't be interrupted: no signal's handler runs meanwhile."""
    written: list[dict[str, Any]] = []
    codes: list[int] = []
    monkeypatch.setattr(gpu, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr("bench.gpu.os._exit", codes.append)
    bench = Bench(size=SMALL, device=CPU)
    with gpu.writing(bench, written.append, give_up_s=0.05):
        assert until(lambda: codes)[0] == 3
    assert written[0]["failed"] == {}
    assert written[-1]["failed"] == {"run": "it hung: ended after the budget"}


@pytest.mark.usefixtures("patience")
def test_blocks_that_do_not_compile_cost_no_other_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then ours are measured as they are, and diffusers' compiled all the same."""

    def broken(*_: object) -> object:
        raise RuntimeError("no such instruction")

    passes: list[int] = []
    first = gpu_parts._first_pass_s

    def fails_first(bench: Bench, step: Step, transformer: KontextTransformer) -> float:
        passes.append(1)
        if len(passes) == 1:
            for block in transformer.double_blocks:
                block._compiled_call_impl = broken
            vars(transformer.single_blocks[-1])["forward_part"] = broken
        return first(bench, step, transformer)

    monkeypatch.setattr(gpu_parts, "_first_pass_s", fails_first)
    torch.compiler.reset()
    options = ["--size", "small", "--device", "cpu", "--backend", "eager", "--out", str(tmp_path)]
    results = gpu.main([*options, "--only", "bf16"])
    assert results["failed"] == {"compile": "RuntimeError: no such instruction"}
    assert results["compiler"] == "eager for diffusers; ours failed to compile"
    assert results["step_1mp_1mp_bf16_s"] > 0


def test_no_run_takes_the_figures_of_another_away(tmp_path: Path) -> None:
    """Not even on the same day."""
    names = []
    for _ in range(3):
        free = gpu.free_name(tmp_path / "cpu-2026-01-31.json")
        free.write_text("{}")
        names.append(free.name)
    assert names == ["cpu-2026-01-31.json", "cpu-2026-01-31-2.json", "cpu-2026-01-31-3.json"]


def test_a_part_that_no_time_is_left_for_is_not_started(tmp_path: Path) -> None:
    options = ["--size", "small", "--device", "cpu", "--only", "load", "--budget", "1", "--out", str(tmp_path)]
    assert gpu.main(options)["failed"] == {"load": "not started: the budget of 1 s was spent"}
