"""A pass by our own kernels against the same by the blocks. There may be no GPU here: Triton's interpreter runs them.

It computes what they say, but cuts numbers off where a GPU rounds to the nearest: what is written may be off by twice
as much as there.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.random_model import SMALL, random_transformer
from rekontext.engine import tuning
from rekontext.engine.costs import CostModel
from rekontext.engine.fp8 import quantise, relative_error
from rekontext.engine.layers import Modulation, modulated_norm, turned_norm
from rekontext.engine.rope import Rotation, picture_positions, rotation_of, text_positions
from rekontext.engine.transformer import Conditioning, KontextTransformer
from rekontext.engine.tuning import choose_pass, missing_kernels
from tests.triton import APART, need_triton

need_triton()

from rekontext.engine import kernels  # noqa: E402
from rekontext.engine.fused import FusedPass  # noqa: E402
from rekontext.engine.kernels import Operand  # noqa: E402

CPU = torch.device("cpu")
ERROR_MAX = {False: 5e-3, True: 0.1}
"""Relative L2 of what a kernel writes: in bfloat16, and in e4m3."""
TEXT_TOKENS, SIDE = 5, 32
CONFIG = replace(SMALL.transformer, double_blocks=2, single_blocks=2)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Normal random numbers in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator).bfloat16()


def read(operand: Operand) -> Tensor:
    """As the product reads them."""
    return operand.values.float() if operand.scale is None else operand.values.float() * operand.scale


def rotation() -> Rotation:
    pictures = [picture_positions((SIDE, SIDE), stream=stream) for stream in (0, 1)]
    return rotation_of(torch.cat([text_positions(TEXT_TOKENS), *pictures]), CONFIG.axes, CPU)


@pytest.mark.parametrize("e4m3", [False, True])
@pytest.mark.parametrize("width", [48, 64])
def test_norm_and_modulation_of_each_edit(draw: Callable[..., Tensor], width: int, e4m3: bool) -> None:
    """Also of widths that are no power of two, and with the edits' values far apart in memory."""
    x_bnd, branch_bnd = draw(2, 3, width) + 2, draw(2, 3, width)
    row = draw(2, 9 * width).unflatten(-1, (-1, 1, width)).unbind(1)
    gate, modulation = row[4], Modulation(row[0], row[2], row[7])
    exact = Modulation(*(each.float() for each in modulation))
    x_rd = x_bnd.flatten(0, 1)
    same, plain = kernels.modulated_norm(x_rd, modulation, tokens=3, e4m3=e4m3)
    assert same is x_rd
    expected = modulated_norm(x_bnd.float(), exact).flatten(0, 1)
    assert relative_error(read(plain), expected) < ERROR_MAX[e4m3]

    before = x_rd.clone()
    summed, added = kernels.modulated_norm(
        x_rd, modulation, tokens=3, e4m3=e4m3, added=(gate, branch_bnd.flatten(0, 1))
    )
    total = x_bnd.float() + gate.float() * branch_bnd.float()
    assert relative_error(summed, total.flatten(0, 1)) < ERROR_MAX[False]
    assert relative_error(read(added), modulated_norm(total, exact).flatten(0, 1)) < ERROR_MAX[e4m3]
    assert torch.equal(x_rd, before), "an edit's own tensors stay as they are"


def test_queries_and_keys_are_turned_where_they_lie(draw: Callable[..., Tensor]) -> None:
    """Three heads, beside other values, of two edits; those are left alone."""
    heads, width, turn = 3, sum(CONFIG.axes), rotation()
    tokens = len(turn.cos_nk)
    both_rd = draw(2 * tokens, 3 * heads * width + 7 * 2)
    before = both_rd.clone()
    scales = draw(2, width).abs() + 0.5
    kernels.turned_norms(both_rd[:, : 3 * heads * width], scales, turn, tokens=tokens, heads=heads)
    for part in range(2):
        columns = slice(part * heads * width, (part + 1) * heads * width)
        x_bnhk = before[:, columns].float().view(2, tokens, heads, width)
        expected = turned_norm(x_bnhk, scales[part].float(), turn).reshape(2 * tokens, -1)
        assert relative_error(both_rd[:, columns], expected) < ERROR_MAX[False]
    assert torch.equal(both_rd[:, 2 * heads * width :], before[:, 2 * heads * width :])


def test_two_streams_are_joined_as_they_are_turned(draw: Callable[..., Tensor]) -> None:
    """Each edit's text comes before its picture, and is turned to its own positions; values are copied."""
    heads, width, turn = 2, sum(CONFIG.axes), rotation()
    tokens = len(turn.cos_nk)
    text_rd = draw(2 * TEXT_TOKENS, 3 * heads * width)
    image_rd = draw(2 * (tokens - TEXT_TOKENS), 3 * heads * width)
    scales = draw(2, width).abs() + 0.5
    joined_rd = torch.full((2 * tokens, 3 * heads * width), torch.nan, dtype=torch.bfloat16)
    for source, first in ((text_rd, 0), (image_rd, TEXT_TOKENS)):
        kernels.turned_norms(
            source, scales, turn, tokens=len(source) // 2, heads=heads, out_rd=joined_rd, first=first, copied=1
        )
    together = torch.cat([text_rd.unflatten(0, (2, -1)), image_rd.unflatten(0, (2, -1))], dim=1).float()
    q, k, v = together.view(2, tokens, 3, heads, width).unbind(2)
    turned = [turned_norm(x, scale.float(), turn) for x, scale in zip((q, k), scales, strict=True)]
    found = joined_rd.view(2, tokens, 3, heads, width).unbind(2)
    for each, expected in zip(found, (*turned, v), strict=True):
        assert relative_error(each, expected) < ERROR_MAX[False]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # as it shall: 1 / infinity is 0
@pytest.mark.parametrize("e4m3", [False, True])
@pytest.mark.parametrize("parts", ["both", "plain", "hidden"])
def test_what_the_second_product_reads(draw: Callable[..., Tensor], parts: str, e4m3: bool) -> None:
    """Attention as it is, and hidden values through GELU, which lie beside others."""
    plain = draw(5, 24) if parts != "hidden" else None
    wide = 3 * draw(5, 20 + 96)
    hidden = wide[:, 20:] if parts != "plain" else None
    expected = [plain.float()] if plain is not None else []
    expected += [F.gelu(hidden.float(), approximate="tanh")] if hidden is not None else []
    found = kernels.activated(plain, hidden, e4m3=e4m3)
    assert relative_error(read(found), torch.cat(expected, dim=1)) < ERROR_MAX[e4m3]


def test_rows_of_zeros_stay_zeros() -> None:
    """Their largest value divides by nothing."""
    zeros = torch.zeros(2, 16, dtype=torch.bfloat16)
    assert torch.equal(read(kernels.activated(zeros, zeros, e4m3=True)), torch.zeros(2, 32))


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """For Ampere, which has no e4m3, and for Hopper: down to the device's own code."""
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    env["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), APART])
    command = [sys.executable, "-m", "tests.engine.compile_kernels", "80", "90"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ampere, hopper = done.stdout.splitlines()
    assert ampere.count("_activated") == 3
    assert hopper.count("_activated") == 6
    assert "_turned_norms" in hopper


@pytest.fixture
def transformer() -> KontextTransformer:
    return random_transformer(CONFIG, device=CPU, dtype=torch.bfloat16)


Inputs = tuple[Tensor, Conditioning, Tensor]


def inputs(transformer: KontextTransformer, *, edits: int = 1, has_reference: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(transformer.dtype)

    config, n = transformer.config, (SIDE // 16) ** 2
    turn = rotation() if has_reference else rotation().part(slice(TEXT_TOKENS + n))
    reference = draw(edits, n, config.channels) if has_reference else None
    conditioning = transformer.condition(draw(edits, TEXT_TOKENS, config.text_width), reference, turn)
    times = torch.linspace(0.2, 0.9, edits)
    return draw(edits, n, config.channels), conditioning, transformer.modulation(times, 2.0, draw(1, 32))


@pytest.mark.parametrize(
    ("edits", "has_reference", "within"), [(1, True, False), (1, False, True), (2, True, True), (2, False, False)]
)
def test_a_pass_is_that_of_the_blocks(
    transformer: KontextTransformer, edits: int, has_reference: bool, within: bool
) -> None:
    given = inputs(transformer, edits=edits, has_reference=has_reference)
    expected = transformer(*given)
    exact = random_transformer(CONFIG, device=CPU, dtype=torch.float32)
    exact.load_state_dict(transformer.state_dict())
    truth = exact(*inputs(exact, edits=edits, has_reference=has_reference))
    before = given[1].text_btd.clone()
    transformer.use_gelu_within(within)
    transformer.use_pass(FusedPass(transformer))
    found = transformer(*given)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1.5e-2
    assert relative_error(found, truth) < 2 * relative_error(expected, truth)
    assert torch.equal(given[1].text_btd, before), "the next step reads it again"


def test_a_pass_in_fp8_is_that_of_the_blocks(transformer: KontextTransformer) -> None:
    """Also where the model falls to fp8 after its pass was chosen, because memory ran out."""
    transformer.use_pass(FusedPass(transformer))
    given = inputs(transformer)
    wide = transformer(*given)
    quantise(transformer)
    found = transformer(*given)
    transformer.use_pass(None)
    assert relative_error(found, transformer(*given)) < 0.1
    assert 5e-3 < relative_error(found, wide) < 0.1


def test_a_pass_follows_its_weights(shallow: KontextTransformer) -> None:
    """Each of them, where LoRAs are merged while it is in use."""
    shallow.use_pass(FusedPass(shallow))
    given = inputs(shallow)
    before = shallow(*given)
    for name, parameter in shallow.named_parameters():
        of_norm = name.endswith("_norm.scale")  # all near 1
        parameter.copy_(torch.linspace(-2, 2, len(parameter)) if of_norm else parameter.roll(1, 0))
    shallow.weights_changed()
    found = shallow(*given)
    shallow.use_pass(None)
    assert relative_error(found, shallow(*given)) < 1.5e-2 < relative_error(found, before)


@pytest.fixture
def shallow() -> KontextTransformer:
    """A block of each kind: enough to choose by, and half of what the interpreter has to run."""
    return random_transformer(replace(CONFIG, double_blocks=1, single_blocks=1), device=CPU, dtype=torch.bfloat16)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "has_kernels_for", lambda _: True)


def choose(transformer: KontextTransformer, costs: CostModel) -> str:
    given = inputs(transformer)
    return choose_pass(transformer, costs, tokens=100, ready=lambda: lambda: transformer(*given))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("kernels_s", "expected"), [(0.8, "kernels"), (0.995, "blocks"), (2.0, "blocks")])
def test_every_start_takes_what_was_faster_at_first(
    shallow: KontextTransformer, monkeypatch: pytest.MonkeyPatch, kernels_s: float, expected: str
) -> None:
    monkeypatch.setattr(tuning, "seconds", lambda *_: kernels_s if shallow.own_pass else 1.0)
    costs = CostModel()
    assert choose(shallow, costs) == expected
    assert (shallow.own_pass is not None) == (expected == "kernels")
    monkeypatch.setattr(tuning, "seconds", lambda *_: 1.0 if shallow.own_pass else kernels_s)
    assert choose(shallow, costs) == expected


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("fault", ["raises", "differs", "is missing"])
def test_kernels_that_fail_are_not_taken(
    shallow: KontextTransformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """A GPU that Triton can't compile for, or no C compiler: edits go on as they did, and the log says why."""

    activated = kernels.activated

    def broken(*given: Any, **named: Any) -> Operand:
        if given[0] is not None and len(given[0]) == 1:
            return activated(*given, **named)  # whether kernels run at all is tried on one row
        if fault == "raises":
            raise RuntimeError("no such instruction")
        whole = activated(*given, **named)
        return Operand(torch.zeros_like(whole.values), None)

    if fault == "is missing":
        monkeypatch.setitem(sys.modules, "rekontext.engine.kernels", None)
    else:
        monkeypatch.setattr(kernels, "activated", broken)
    monkeypatch.setattr(tuning, "seconds", lambda *_: 0.5 if shallow.own_pass else 1.0)
    assert choose(shallow, CostModel()) == "blocks"
    assert shallow.own_pass is None
    (said,) = (record.getMessage() for record in caplog.records)
    assert {"raises": "no such instruction", "differs": "differ by", "is missing": "ModuleNotFoundError"}[fault] in said


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_passing_failure_is_not_remembered(
    shallow: KontextTransformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory that something else had for a moment must not cost every later start a third of its speed."""
    costs = CostModel()
    monkeypatch.setattr(tuning, "seconds", lambda *_: 0.5 if shallow.own_pass else 1.0)
    with monkeypatch.context() as broken:
        broken.setattr(kernels, "turned_norms", Mock(side_effect=torch.OutOfMemoryError("for a moment")))
        assert choose(shallow, costs) == "blocks"
    assert "for a moment" in caplog.text
    assert costs.seconds == {}
    assert choose(shallow, costs) == "kernels"
    assert costs.seconds == {"pass by blocks": {100: 1.0}, "pass by kernels": {100: 0.5}}


@pytest.mark.usefixtures("as_on_a_gpu")
def test_kernels_are_taken_where_only_they_fit(shallow: KontextTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold less at a time than the blocks do."""
    monkeypatch.setattr(tuning, "seconds", lambda *_: 1.0)
    for block in shallow.double_blocks:
        monkeypatch.setattr(block, "forward", Mock(side_effect=torch.OutOfMemoryError("too large")))
    assert choose(shallow, CostModel()) == "kernels"


def test_a_closed_engines_weights_are_freed_at_once() -> None:
    """A pass that kept its transformer alive would hold 24 GB until somebody collects cycles."""
    small = random_transformer(CONFIG, device=CPU, dtype=torch.bfloat16)
    small.use_pass(FusedPass(small))
    kept = weakref.ref(small)
    gc.disable()
    try:
        del small
        assert kept() is None
    finally:
        gc.enable()


def test_whether_kernels_run_is_tried() -> None:
    """Here in the interpreter; what is said where they don't is in the test above, and what `doctor` makes of it."""
    assert missing_kernels(CPU) == ""


def test_on_a_cpu_the_blocks_compute(transformer: KontextTransformer) -> None:
    def never() -> Callable[[], Tensor]:
        raise AssertionError("tried")

    assert choose_pass(transformer, CostModel(), tokens=100, ready=never) == "blocks"
