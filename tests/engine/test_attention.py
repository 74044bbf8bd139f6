"""Attention backends: each that runs computes the same function; choosing goes by time, and no failure stops it."""

from __future__ import annotations

import sys
from copy import deepcopy
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.random_model import SMALL, random_transformer
from rekontext.contract import EditRefused
from rekontext.engine import attention
from rekontext.engine.attention import BACKENDS, Trial, candidates, fastest, try_backends
from rekontext.engine.costs import CostModel
from rekontext.engine.layers import DoubleStreamBlock, SingleStreamBlock
from rekontext.engine.transformer import KontextTransformer
from rekontext.engine.tuning import choose_attention

CPU = torch.device("cpu")


def tried(*names: str, dtype: torch.dtype = torch.float32) -> dict[str, Trial]:
    return try_backends(names, device=CPU, dtype=dtype, heads=2, head_width=16, tokens=40)


def test_backends_give_what_attention_is() -> None:
    """Softmax of the scaled products, in float64, heads merged."""
    q, k, v = (torch.randn(2, n, 3, 16) for n in (5, 9, 9))
    scores = torch.einsum("bnhk,bmhk->bhnm", q.double(), k.double()) / 4
    expected = torch.einsum("bhnm,bmhk->bnhk", scores.softmax(-1), v.double()).flatten(2)
    for name in ("sdpa", "products"):
        found = BACKENDS[name](q, k, v)
        assert found.shape == (2, 5, 48)
        assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("length", [1.0, 40.0])
@pytest.mark.parametrize("scores_max", [1 << 23, 100])
def test_products_are_right_for_short_and_long_vectors_whole_and_in_parts(
    length: float, scores_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long ones would overflow without their row's maximum taken off; many tokens are done some rows at a time."""
    monkeypatch.setattr(attention, "SCORES_MAX", scores_max)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 16, generator=generator) for n in (50, 70, 70))
    found = BACKENDS["products"](length * q, length * k, v)
    expected = BACKENDS["sdpa"]((length * q).double(), (length * k).double(), v.double())
    assert (found - expected).abs().max() < 4e-6 * length**2, "scores grow by the square, and their rounding too"
    narrow = BACKENDS["products"](*(x.bfloat16() for x in (q, k, v)))
    assert (narrow - BACKENDS["sdpa"](q, k, v)).norm() <= attention.ERROR_MAX[torch.bfloat16] * narrow.norm()


def test_products_give_an_edit_the_same_bits_beside_a_louder_one() -> None:
    q, k, v = (torch.randn(2, n, 3, 16, dtype=torch.bfloat16) for n in (5, 9, 9))
    q[1] *= 100
    assert torch.equal(BACKENDS["products"](q, k, v)[:1], BACKENDS["products"](q[:1], k[:1], v[:1]))


@pytest.mark.parametrize(
    ("device", "dtype", "multiplies", "amx", "expected"),
    [
        ("cpu", torch.bfloat16, True, False, "products"),
        ("cpu", torch.bfloat16, True, True, "sdpa"),
        ("cpu", torch.bfloat16, False, False, "sdpa"),
        ("cpu", torch.float32, True, False, "sdpa"),
        ("cuda", torch.bfloat16, True, False, None),
    ],
)
def test_on_a_cpu_its_units_and_the_format_decide(
    device: str, dtype: torch.dtype, multiplies: bool, amx: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: multiplies)
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    assert attention.without_trial(torch.device(device), dtype) == expected


class Switches(TorchDispatchMode):
    """Whether all of PyTorch's own kernels stay switched on, at every operator on the way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.are_on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernels = ("cudnn", "flash", "mem_efficient", "math")
        self.are_on &= all(getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")() for kernel in kernels)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn"])
def test_a_chosen_kernel_takes_none_from_other_threads(name: str) -> None:
    """PyTorch's switches are the process's: whoever encodes a prompt meanwhile must find all of its kernels."""
    q, k, v = (torch.randn(1, n, 2, 16, device="meta", dtype=torch.bfloat16) for n in (5, 9, 9))
    with Switches() as switches:
        assert BACKENDS[name](q, k, v).shape == (1, 5, 32)
    assert switches.are_on


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn", "flash-3", "flash-4"])
@pytest.mark.filterwarnings("default")
def test_a_gpus_kernels_are_traced_whole_and_once_for_all_lengths(name: str) -> None:
    """On tensors without values, as the compiler sees them; a kernel itself runs on a GPU only."""
    torch.compiler.reset()
    counter = CompileCounter()
    traced = torch.compile(BACKENDS[name], backend=counter, fullgraph=True, dynamic=True)
    for tokens in (40, 72, 56):
        q, k, v = (torch.empty(1, tokens, 2, 16, device="meta", dtype=torch.bfloat16) for _ in range(3))
        assert traced(q, k, v).shape == (1, tokens, 32)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("name", "library"),
    [("flash-3", "flash_attn_interface"), ("flash-3", "fa3_fwd_interface"), ("flash-4", "flash_attn.cute")],
)
@pytest.mark.parametrize("with_normaliser", [False, True])
def test_flash_libraries_are_called_in_their_own_layout(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str, with_normaliser: bool
) -> None:
    """They take (b, n, h, k), and slices of a fused projection as they are; some versions return a pair.

    Their function is stood in for, as none runs on a CPU.
    """

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, None]:
        assert v.data_ptr() == values.data_ptr(), "nothing was copied"
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        mixed = mixed.transpose(1, 2).contiguous()
        return (mixed, None) if with_normaliser else mixed

    for each in (library.split(".")[0], library):
        module = ModuleType(each)
        module.__spec__ = ModuleSpec(each, loader=None)
        module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, each, module)
    q, k = (torch.randn(1, n, 2, 16) for n in (4, 7))
    values = torch.randn(1, 7, 3, 2, 16)[:, :, 2]
    assert torch.allclose(BACKENDS[name](q, k, values), BACKENDS["sdpa"](q, k, values), atol=1e-6)


def test_a_backend_that_cannot_run_or_is_wrong_is_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that fails here must not keep the model from opening."""
    monkeypatch.setitem(BACKENDS, "sdpa-flash", lambda q, k, v: 1.1 * attention.sdpa(q, k, v))
    monkeypatch.setitem(BACKENDS, "flex", lambda q, k, v: torch.full_like(attention.sdpa(q, k, v), float("nan")))
    found = tried("sdpa", "sdpa-cudnn", "sdpa-flash", "flash-4", "flex")
    assert found["sdpa"].seconds is not None
    assert found["sdpa"].seconds > 0
    assert found["sdpa-flash"] == Trial(reason="differs from the default by 0.1")
    assert found["flex"] == Trial(reason="differs from the default by nan")
    assert found["flash-4"].seconds is None
    assert "flash_attn" in found["flash-4"].reason


def test_float32_asks_for_all_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are promised to 1e-4 there; between bfloat16 kernels so little is nothing."""
    monkeypatch.setitem(BACKENDS, "flex", lambda q, k, v: 1.001 * attention.sdpa(q, k, v))
    assert tried("flex")["flex"] == Trial(reason="differs from the default by 0.001")
    assert tried("flex", dtype=torch.bfloat16)["flex"].seconds is not None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"sdpa": 1.0}, "sdpa"),
        ({"sdpa": 1.0, "flex": 0.5}, "flex"),
        ({"sdpa": 1.0, "sdpa-cudnn": 0.98}, "sdpa"),
        ({"sdpa": 1.0, "sdpa-cudnn": 0.6, "flash-3": 0.59}, "sdpa-cudnn"),
        ({"flash-3": 0.6}, "flash-3"),
    ],
    ids=["alone", "fastest", "tie", "tie-of-others", "default-missing"],
)
def test_the_fastest_wins_and_a_tie_changes_nothing(seconds: dict[str, float], expected: str) -> None:
    assert fastest(seconds) == expected


def backend_of(transformer: KontextTransformer) -> set[str]:
    """The names of the kernels that its blocks use."""
    names = {function: name for name, function in BACKENDS.items()}
    found = set()
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        assert isinstance(block, DoubleStreamBlock | SingleStreamBlock)
        found.add(names[block.attend])
    return found


def test_every_start_takes_the_backend_that_the_first_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backend means other bytes, so a choice once made is kept with the step times."""
    transformer = random_transformer(SMALL.transformer, device=CPU, dtype=torch.float32)
    monkeypatch.setattr(attention, "candidates", lambda _: ("sdpa", "sdpa-flash", "flex"))
    monkeypatch.setattr(attention, "without_trial", lambda *_: None)
    times = {"sdpa": Trial(seconds=2.0), "sdpa-flash": Trial(seconds=1.0), "flex": Trial(reason="no")}
    monkeypatch.setattr(attention, "try_backends", lambda *_, **__: times)
    costs = CostModel()
    assert choose_attention(transformer, costs, tokens=100) == "sdpa-flash"
    assert backend_of(transformer) == {"sdpa-flash"}
    costs.save(tmp_path / "costs.json")
    times["sdpa"] = Trial(seconds=0.1)
    assert choose_attention(transformer, CostModel.load(tmp_path / "costs.json"), tokens=100) == "sdpa-flash"
    assert choose_attention(transformer, CostModel(), tokens=100) == "sdpa"


@pytest.mark.parametrize("change", ["installed", "upgraded", "older file"])
def test_what_was_measured_among_others_or_with_another_pytorch_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What was installed since may be faster, and what was the fastest may be so no longer."""
    transformer = random_transformer(SMALL.transformer, device=CPU, dtype=torch.float32)
    monkeypatch.setattr(attention, "candidates", lambda _: ("sdpa", "sdpa-cudnn"))
    monkeypatch.setattr(attention, "without_trial", lambda *_: None)
    times = {"sdpa": Trial(seconds=2.0), "sdpa-cudnn": Trial(seconds=1.0), "flash-3": Trial(seconds=0.5)}
    monkeypatch.setattr(attention, "try_backends", lambda names, **_: {name: times[name] for name in names})
    costs = CostModel()
    if change == "older file":
        costs.seconds = {"attention sdpa-cudnn": {100: 1.0}}
    else:
        assert choose_attention(transformer, costs, tokens=100) == "sdpa-cudnn"
    if change == "upgraded":
        monkeypatch.setattr(torch, "__version__", "99.0")
    else:
        monkeypatch.setattr(attention, "candidates", lambda _: ("sdpa", "sdpa-cudnn", "flash-3"))
    times["sdpa"] = Trial(seconds=0.1)
    assert choose_attention(transformer, costs, tokens=100) == "sdpa"


def test_the_fastest_gives_way_while_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its library was replaced by one for another PyTorch: the start must not fail for it."""
    transformer = random_transformer(SMALL.transformer, device=CPU, dtype=torch.float32)
    monkeypatch.setattr(attention, "candidates", lambda _: ("sdpa", "sdpa-cudnn", "flash-3"))
    monkeypatch.setattr(attention, "without_trial", lambda *_: None)
    times = {"sdpa": Trial(seconds=3.0), "sdpa-cudnn": Trial(seconds=2.0), "flash-3": Trial(seconds=1.0)}
    monkeypatch.setattr(attention, "try_backends", lambda names, **_: {name: times[name] for name in names})
    costs = CostModel()
    assert choose_attention(transformer, costs, tokens=100) == "flash-3"
    measured = deepcopy(costs)
    times |= {"sdpa": Trial(seconds=0.1), "flash-3": Trial(reason="ImportError: undefined symbol")}
    assert choose_attention(transformer, costs, tokens=100) == "sdpa-cudnn", "as measured, not as it is now"
    assert costs == measured
    times["flash-3"] = Trial(seconds=9.0)
    assert choose_attention(transformer, costs, tokens=100) == "flash-3"


def test_a_backend_can_be_named_and_an_unknown_one_is_refused() -> None:
    transformer = random_transformer(SMALL.transformer, device=CPU, dtype=torch.float32)
    assert candidates(CPU) == ("sdpa", "products")
    assert choose_attention(transformer, CostModel(), tokens=100, name="sdpa") == "sdpa"
    with pytest.raises(EditRefused, match="attention is 'flash-9': on cpu it must be one of sdpa"):
        choose_attention(transformer, CostModel(), tokens=100, name="flash-9")
