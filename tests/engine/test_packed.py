"""Packed weights: the same products as PyTorch's own layer, in one piece and in parts."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bench.random_model import random_transformer
from rekontext.engine import Engine, packed, placement
from rekontext.engine.fp8 import relative_error
from rekontext.engine.packed import PackedGELU, PackedLinear, can_pack
from rekontext.engine.precision import multiplies_bfloat16
from rekontext.engine.transformer import TransformerConfig
from tests.engine.test_fp8 import velocity
from tests.small_model import SHAPES, build

CONFIG = TransformerConfig(
    width=64, heads=2, axes=(8, 12, 12), double_blocks=1, single_blocks=2, text_width=32, pooled_width=24, channels=64
)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU has no units")),
]


def layer(width: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, outputs, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 640), (3, 77), (2, 1)])
def test_products_are_the_layers_own(shape: tuple[int, int], dtype: torch.dtype) -> None:
    linear, x = layer(40, 72, dtype), torch.randn(*shape, 40).to(dtype)
    expected = F.linear(x.float(), linear.weight.float(), linear.bias.float())
    assert can_pack(dtype)
    assert relative_error(PackedLinear(linear)(x), expected) < ROUNDING[dtype]
    activated = F.gelu(expected, approximate="tanh")
    assert relative_error(PackedGELU(linear)(x), activated) < ROUNDING[dtype]
    cut = PackedLinear(linear, cuts=(16, 48))
    assert relative_error(cut.rows(x, slice(16)), expected[..., :16]) < ROUNDING[dtype]
    assert relative_error(cut.rows(x, slice(16, 48)), expected[..., 16:48]) < ROUNDING[dtype]
    assert relative_error(cut.rows(x, slice(48, None), activated=True), activated[..., 48:]) < ROUNDING[dtype]


def test_only_parts_that_it_was_cut_into_can_be_had() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        PackedLinear(layer(8, 24, torch.float32), cuts=(8,)).rows(torch.zeros(1, 8), slice(4, 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_transformer_has_the_same_velocities_and_as_many_parameters(dtype: torch.dtype) -> None:
    plain = random_transformer(CONFIG, device=torch.device("cpu"), dtype=dtype)
    transformer = copy.deepcopy(plain)
    transformer.pack()
    assert sum(p.numel() for p in transformer.parameters()) == sum(p.numel() for p in plain.parameters())
    assert {type(m) for m in transformer.single_blocks.modules()} >= {PackedLinear}
    with torch.inference_mode():
        assert relative_error(velocity(transformer), velocity(plain)) < 2 * ROUNDING[dtype]


def test_an_engine_on_the_cpu_packs_and_draws_the_same_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, SHAPES["plain"])
    photo = Image.linear_gradient("L").convert("RGB")

    def drawn() -> tuple[bool, np.ndarray]:
        with Engine.open(str(tmp_path), device="cpu", dtype="float32") as engine:
            is_packed = any(isinstance(layer, PackedLinear) for layer in engine.model.transformer.modules())
            return is_packed, np.asarray(engine.edit(photo, "night", steps=2, seed=1), int)

    was_packed, picture = drawn()
    assert was_packed
    monkeypatch.setattr(placement, "can_pack", lambda dtype: False)
    is_packed, plain = drawn()
    assert not is_packed
    assert np.abs(picture - plain).max() <= 1


@pytest.mark.parametrize("fault", [AttributeError("no such operator"), RuntimeError("could not create a primitive")])
def test_without_the_library_nothing_is_packed(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def missing(weight_od: Tensor) -> Tensor:
        raise fault

    monkeypatch.setattr(packed, "_packed", missing)
    assert not can_pack.__wrapped__(torch.float32)
    assert not can_pack(torch.float64)
