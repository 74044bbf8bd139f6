"""e4m3 linear layers: their arithmetic, which layers they cover, and how far they lead from the wide formats."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.random_model import random_transformer
from rekontext.contract import EditRefused
from rekontext.engine import Engine, fp8
from rekontext.engine.fidelity import compare
from rekontext.engine.fp8 import (
    E4M3,
    Fp8Linear,
    on_matrix_units,
    product,
    quantise,
    quantise_rows,
    quantised_names,
    relative_error,
)
from rekontext.engine.loading import StoredWeights, load_transformer
from rekontext.engine.memory import Placement
from rekontext.engine.precision import choose_dtype
from rekontext.engine.rope import Rotation, picture_positions, rotation_of, text_positions
from rekontext.engine.tensors import TensorSource
from rekontext.engine.transformer import KontextTransformer, TransformerConfig
from tests.small_model import SHAPES, build

FULL_WIDTH = TransformerConfig(double_blocks=0, single_blocks=2, text_width=64, pooled_width=32)
"""A double block's errors at this width `bench.gpu` measures: here it would take half a minute."""
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8), "RGB")


CPU = torch.device("cpu")


def velocity(model: KontextTransformer) -> Tensor:
    """Of one step on few tokens, the same values at each call."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 8, config.text_width, generator=generator)
    pooled = torch.randn(1, config.pooled_width, generator=generator)
    latents, reference = (torch.randn(1, 9, config.channels, generator=generator) for _ in range(2))
    positions = [text_positions(8), *(picture_positions((48, 48), stream=stream) for stream in (0, 1))]
    rotation = rotation_of(torch.cat(positions), config.axes, model.device)
    modulation = model.modulation(torch.tensor([0.7]), 2.5, pooled)
    found: Tensor = model(latents, model.condition(text, reference, rotation), modulation)
    return found


def test_rows_come_back_within_e4m3s_rounding() -> None:
    """Three bits of mantissa: 1/16 of each value, and the row's own scale however large or small it is."""
    x = torch.randn(7, 64) * torch.tensor([1e-6, 1e-3, 1, 10, 1e3, 1e6, 0])[:, None]
    small, scale = quantise_rows(x)
    assert small.dtype == E4M3
    assert scale.shape == (7, 1)
    back = small.float() * scale
    assert ((back - x).abs() <= x.abs() / 16 + scale * 2**-9).all()
    assert torch.equal(small[:-1].float().abs().amax(1), torch.full((6,), torch.finfo(E4M3).max))
    assert not back[-1].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_is_its_formula(dtype: torch.dtype) -> None:
    """In float64, from the quantised values: what is left is the rounding of the result."""
    linear = nn.Linear(64, 48).to(dtype).requires_grad_(False)
    x = torch.randn(2, 5, 64, dtype=dtype)
    found = Fp8Linear.of(linear)(x)
    weight, weight_scale = quantise_rows(linear.weight)
    inputs, input_scale = quantise_rows(x)
    sums = inputs.double() @ weight.double().T * input_scale.double() * weight_scale.double().T
    expected = (sums + linear.bias.double()).to(dtype)
    assert found.dtype == dtype
    assert found.shape == (2, 5, 48)
    assert relative_error(found, expected) <= (1e-5 if dtype == torch.float32 else 4e-3)


def test_the_matrix_units_are_asked_for_the_same() -> None:
    """The call that runs on a GPU, on the CPU's version of it: operands, scales and bias where they belong."""
    linear = nn.Linear(64, 48).bfloat16().requires_grad_(False)
    layer = Fp8Linear.of(linear)
    x8, scale = quantise_rows(torch.randn(40, 64))
    rows = slice(16, 48)
    try:
        found = on_matrix_units(
            x8[:24], scale[:24], layer.weight[rows], layer.scale[rows], layer.bias[rows], torch.bfloat16
        )
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"this build of torch has no fp8 product on the CPU: {error}")
    expected = product(x8, scale, layer.weight, layer.scale, layer.bias, torch.bfloat16)[:24, rows]
    assert relative_error(found, expected) < 4e-3


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("columns", [64, 78], ids=["1024x1024", "1248x832"])
def test_the_matrix_units_take_what_a_full_step_gives_them(
    monkeypatch: pytest.MonkeyPatch, batch: int, columns: int
) -> None:
    """Layouts, alignments, scales and types of every product at full width, checked by torch's own conditions for a
    GPU: tensors without values are held to them on any machine."""
    monkeypatch.setattr(fp8, "product", on_matrix_units)
    config = TransformerConfig(double_blocks=1, single_blocks=2)
    size = (16 * columns, 16 * (4096 // columns))
    n = columns * (4096 // columns)
    positions = [text_positions(512), *(picture_positions(size, stream=stream) for stream in (0, 1))]
    cos, sin, _ = rotation_of(torch.cat(positions), config.axes, torch.device("cpu"))
    rotation = Rotation(cos.to("meta"), sin.to("meta"), None)
    with torch.device("meta"):
        model = KontextTransformer(config).bfloat16()
        model.use_attention(lambda q, k, v: torch.empty_like(q).flatten(2))
        quantise(model)
        latents = torch.empty(batch, n, config.channels)
        text = torch.empty(batch, 512, config.text_width)
        modulation = model.modulation(torch.empty(batch), 2.5, torch.empty(1, config.pooled_width))
        conditioning = model.condition(text, latents, rotation)
        velocity = model(latents, conditioning, modulation)
    assert velocity.shape == latents.shape
    assert velocity.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="divisible by 16"):
        Fp8Linear.of(nn.Linear(24, 16, device="meta").bfloat16())(torch.empty(4, 24, device="meta").bfloat16())


def test_a_part_of_the_outputs_is_what_the_whole_has_there() -> None:
    """But for the bias, which is added after the rounding to the dtype."""
    layer = Fp8Linear.of(nn.Linear(64, 96).bfloat16())
    x = torch.randn(1, 5, 64).bfloat16()
    whole = layer(x)
    for part in (slice(16), slice(16, 48), slice(48, None)):
        assert relative_error(layer.rows(x, part), whole[..., part]) < 4e-3


def test_only_the_blocks_large_projections_are_covered() -> None:
    """Embedders, modulation and the final layer decide what all tokens get, and cost nothing: they stay wide."""
    config = TransformerConfig(width=32, heads=2, axes=(4, 6, 6), double_blocks=1, single_blocks=1, text_width=32)
    model = random_transformer(config, device=CPU, dtype=torch.bfloat16)
    streams = [
        f"{stream}_{layer}" for stream in ("img", "txt") for layer in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    ]
    expected = {f"double_blocks.0.{layer}" for layer in streams}
    expected |= {"single_blocks.0.linear1", "single_blocks.0.linear2"}
    assert set(quantised_names(model)) == expected
    quantise(model)
    assert {name for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)} == expected
    assert not quantised_names(model)


def test_a_width_that_the_matrix_units_cannot_take_stays_wide() -> None:
    config = TransformerConfig(width=24, heads=2, axes=(4, 4, 4), double_blocks=1, single_blocks=1, text_width=32)
    assert not quantised_names(random_transformer(config, device=CPU, dtype=torch.bfloat16))


def test_errors_at_full_width_stay_in_their_bounds() -> None:
    """At FLUX.1's own width: bfloat16 within 1e-2 of float32, fp8 within 5e-2 of bfloat16, by block and at the end."""
    narrow = random_transformer(FULL_WIDTH, device=CPU, dtype=torch.bfloat16)
    wide = copy.deepcopy(narrow).float()
    rounded = compare(wide, narrow, velocity)
    assert list(rounded.blocks) == ["single_blocks.0"]
    assert 0 < max(*rounded.blocks.values(), rounded.end) <= 1e-2
    del wide
    smaller = copy.deepcopy(narrow)
    quantise(smaller)
    quantised = compare(narrow, smaller, velocity)
    assert 0 < max(*quantised.blocks.values(), quantised.end) <= 5e-2
    assert quantised.end > rounded.end


def test_an_engine_in_fp8_stays_near_bfloat16_and_says_what_it_is(tmp_path: Path) -> None:
    """Block weights in e4m3, all else as in bfloat16; the last block, which computes a part of the tokens, included."""
    build(tmp_path, SHAPES["deep"])
    pictures = []
    for dtype in ("bfloat16", "fp8"):
        with Engine.open(str(tmp_path), device="cpu", dtype=dtype) as engine:
            assert engine.card.dtype == dtype
            pictures.append(np.asarray(engine.edit(PHOTO, "night", steps=4, seed=1), float))
            small = [layer for layer in engine.model.transformer.modules() if isinstance(layer, Fp8Linear)]
            assert len(small) == (2 * 8 + 3 * 2 if dtype == "fp8" else 0)
    error = np.sqrt(np.mean((pictures[0] - pictures[1]) ** 2))
    assert 0 < error < 0.05 * 255


@pytest.mark.parametrize("scale_shape", [(), (1,), None], ids=["scalar", "one", "rows"])
def test_weights_that_are_stored_in_e4m3_are_taken_as_they_are(tmp_path: Path, scale_shape: tuple[int, ...]) -> None:
    """A file's scale, one for the tensor or one for each row, becomes the layer's; nothing is rounded twice."""
    config = TransformerConfig(width=32, heads=2, axes=(4, 6, 6), double_blocks=1, single_blocks=1, text_width=32)
    state = random_transformer(config, device=CPU, dtype=torch.float32).state_dict()
    name = "single_blocks.0.linear1"
    weight = state[f"{name}.weight"]
    largest = weight.abs().amax(1) if scale_shape is None else weight.abs().max().reshape(scale_shape)
    scale = largest / torch.finfo(E4M3).max
    state[f"{name}.weight"] = (weight / (scale[:, None] if scale_shape is None else scale)).to(E4M3)
    state[f"{name}.scale_weight"] = scale
    save_file(state, tmp_path / "model.safetensors")
    source = TensorSource([tmp_path / "model.safetensors"])
    stored = StoredWeights(source, config, dtype=torch.bfloat16)
    model = load_transformer(stored, device=CPU, placement=Placement(fp8=True))
    layer, other = model.get_submodule(name), model.get_submodule("single_blocks.0.linear2")
    assert isinstance(layer, Fp8Linear)
    assert torch.equal(layer.weight.float(), state[f"{name}.weight"].float())
    assert torch.equal(layer.scale[:, 0], scale.expand(len(weight)))
    assert layer.bias.dtype == torch.bfloat16
    assert isinstance(other, Fp8Linear)
    assert relative_error(other.weight.float() * other.scale, state["single_blocks.0.linear2.weight"]) < 4e-2
    assert model.img_in.weight.dtype == torch.bfloat16


def test_a_gpu_without_fp8_units_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fp8.missing_units.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(EditRefused, match=r"dtype is 'fp8': .* capability 8.9 or above, and cuda:0 has 8.0"):
        choose_dtype("fp8", torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (product, ""),
        (lambda *given: product(*given) * 2, "multiplies wrongly"),
        (None, "has no kernel for it on cpu: CUBLAS_STATUS_NOT_SUPPORTED"),
    ],
    ids=["works", "wrong", "none"],
)
def test_fp8_units_are_tried_before_they_are_relied_on(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor] | None, expected: str
) -> None:
    """Chips newer than the libraries have the units and no kernel for them: they get another plan, no failing edits."""

    def unsupported(*_: object) -> Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nwhen calling it")

    fp8.missing_units.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))
    monkeypatch.setattr(fp8, "on_matrix_units", kernel or unsupported)
    found = fp8.missing_units(CPU)
    fp8.missing_units.cache_clear()
    assert (expected in found) if expected else not found
