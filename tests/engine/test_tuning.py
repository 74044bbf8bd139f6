"""Where GELU is computed: the same numbers either way, and the way that was faster, once and for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu_bench import Bench, Step
from bench.random_model import SMALL, random_transformer
from rekontext.engine import layers, tuning
from rekontext.engine.costs import CostModel
from rekontext.engine.fp8 import quantise, relative_error
from rekontext.engine.transformer import KontextTransformer
from rekontext.engine.tuning import PassBy, choose_gelu, choose_pass

CPU = torch.device("cpu")


@pytest.fixture
def transformer() -> KontextTransformer:
    return random_transformer(SMALL.transformer, device=CPU, dtype=torch.float32)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is there, and the product's GELU is the tanh form."""
    monkeypatch.setattr(KontextTransformer, "can_have_gelu_within", True)
    monkeypatch.setattr(
        layers, "linear_gelu", lambda x, weight, bias: F.gelu(F.linear(x, weight, bias), approximate="tanh")
    )


def a_pass(transformer: KontextTransformer) -> Callable[[], Tensor]:
    bench = Bench(size=SMALL, device=CPU)
    with torch.inference_mode():
        step = Step(bench, bench.cases["512_512_b2"], transformer)
    return lambda: step.run(transformer)


def choose(transformer: KontextTransformer, costs: CostModel, *, by: PassBy = "blocks") -> str:
    return choose_gelu(transformer, costs, tokens=100, by=by, ready=lambda: a_pass(transformer))


def test_the_products_gelu_is_a_gelu() -> None:
    """On a CPU the exact one."""
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 8), (12, 8), (12,)))
    found = layers.linear_gelu(x, weight, bias)
    assert relative_error(found, F.gelu(F.linear(x, weight, bias))) < 1e-6


@pytest.mark.usefixtures("as_on_a_gpu")
@torch.inference_mode()
def test_both_ways_are_the_same_pass(transformer: KontextTransformer) -> None:
    run = a_pass(transformer)
    behind = run()
    transformer.use_gelu_within(True)
    within = run()
    assert 0 < relative_error(within, behind) < 1e-5


@pytest.mark.usefixtures("as_on_a_gpu")
@torch.inference_mode()
def test_in_fp8_it_stays_behind(transformer: KontextTransformer) -> None:
    """Also where memory runs short, and layers are quantised, long after the choice."""
    quantise(transformer)
    run = a_pass(transformer)
    behind = run()
    transformer.use_gelu_within(True)
    assert torch.equal(run(), behind)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("within_s", "expected"), [(0.5, "within"), (0.995, "behind"), (2.0, "behind")])
def test_every_start_takes_the_way_that_was_faster_at_first(
    transformer: KontextTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within_s: float, expected: str
) -> None:
    """Another way means other bytes. A tie changes nothing."""
    block = transformer.double_blocks[0]
    monkeypatch.setattr(tuning, "seconds", lambda *_: within_s if block.gelu_within else 1.0)
    costs = CostModel()
    assert choose(transformer, costs) == expected
    assert {each.gelu_within for each in (block, *transformer.single_blocks)} == {expected == "within"}
    costs.save(tmp_path / "costs.json")
    monkeypatch.setattr(tuning, "seconds", lambda *_: 1.0 if block.gelu_within else within_s)
    again = CostModel.load(tmp_path / "costs.json")
    assert choose(transformer, again) == expected
    if within_s != 0.995:
        assert choose(transformer, again, by="compiled blocks") != expected, "compiled is another matter"


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_way_that_fails_is_not_taken(
    transformer: KontextTransformer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if fault == "raises":
            raise RuntimeError("no such kernel")
        return F.linear(x, weight, bias)

    monkeypatch.setattr(layers, "linear_gelu", broken)
    block = transformer.double_blocks[0]
    monkeypatch.setattr(tuning, "seconds", lambda *_: 0.1 if block.gelu_within else 1.0)
    assert choose(transformer, CostModel()) == "behind"
    assert not block.gelu_within


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, "behind"), (torch.bfloat16, "within")])
def test_in_float32_the_products_own_gelu_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, expected: str
) -> None:
    """How well it approximates is its library's affair, and pixels are promised to 1e-4."""
    transformer = random_transformer(SMALL.transformer, device=CPU, dtype=dtype)
    monkeypatch.setattr(KontextTransformer, "device", torch.device("cuda"))
    known = CostModel(seconds={"gelu behind, blocks": {100: 2.0}, "gelu within, blocks": {100: 1.0}})
    assert choose(transformer, known) == expected


def test_on_a_cpu_nothing_is_tried(transformer: KontextTransformer) -> None:
    def never() -> Callable[[], Tensor]:
        raise AssertionError("tried")

    assert choose_pass(transformer, CostModel(), tokens=100, ready=never) == "blocks"
    assert choose_gelu(transformer, CostModel(), tokens=100, by="blocks", ready=never) == "behind"
