"""GGUF files: what they hold is what the format's own library reads out of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFWriter, quants
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from rekontext.engine import CheckpointError, Engine
from rekontext.engine.checkpoint import model_sizes, open_model
from rekontext.engine.layouts import diffusers_recipe
from rekontext.engine.memory import Placement
from rekontext.engine.tensors import TensorSource
from tests.small_model import SHAPES, build

ROWS, COLUMNS = 8, 512
SCALES: Final = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
"""Where a block has its scales in float16. The library can't quantise to these kinds; any bytes are numbers in them,
but for scales that would be infinite."""


def blocks(kind: Kind) -> NDArray[np.uint8]:
    """A matrix (ROWS, COLUMNS) in `kind`, as stored."""
    random = np.random.default_rng(int(kind))
    if kind not in SCALES:
        return quants.quantize(random.standard_normal((ROWS, COLUMNS), dtype=np.float32), kind)
    elements, size = GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (ROWS, COLUMNS // elements, size), dtype=np.uint8)
    for at in SCALES[kind]:
        data[..., at : at + 2] = np.frombuffer(np.float16(0.03).tobytes(), dtype=np.uint8)
    return data.reshape(ROWS, -1)


def written(path: Path, tensors: dict[str, tuple[NDArray[Any], Kind | None]]) -> Path:
    writer = GGUFWriter(path, "flux")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "kind",
    [Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, *SCALES],
    ids=lambda kind: kind.name,
)
def test_a_quantised_matrix_is_what_the_formats_library_says(tmp_path: Path, kind: Kind) -> None:
    data = blocks(kind)
    source = TensorSource([written(tmp_path / "it.gguf", {"layer.weight": (data, kind)})])
    assert source.shape("layer.weight") == (ROWS, COLUMNS)
    expected = torch.from_numpy(quants.dequantize(data, kind))
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(source.read("layer.weight", torch.float32), expected, rtol=1e-6, atol=1e-6)
    assert source.read_e4m3("layer.weight") is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_not_quantised_is_read_as_it_is(tmp_path: Path, dtype: type) -> None:
    data: NDArray[Any] = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
    source = TensorSource([written(tmp_path / "it.gguf", {"layer.bias": (data, None)})])
    assert torch.equal(source.read("layer.bias", torch.float32), torch.from_numpy(data).float())


def test_a_kind_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    data: NDArray[np.uint8] = np.zeros((ROWS, GGML_QUANT_SIZES[Kind.IQ1_S][1] * COLUMNS // 256), dtype=np.uint8)
    source = TensorSource([written(tmp_path / "it.gguf", {"layer.weight": (data, Kind.IQ1_S)})])
    with pytest.raises(CheckpointError, match=r"it\.gguf: layer\.weight is stored as IQ1_S: only .* GGUF's Q2 to Q8"):
        source.read("layer.weight", torch.float32)


def test_one_of_several_files_is_refused(tmp_path: Path) -> None:
    """Its tensors alone are no model."""
    path = tmp_path / "it-00001-of-00002.gguf"
    writer = GGUFWriter(path, "flux")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("layer.bias", np.ones(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"it-00001-of-00002\.gguf .* one part of several: join them"):
        TensorSource([path])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in diffusers' layout, and beside it what a single file of it needs."""
    folder = tmp_path_factory.mktemp("gguf")
    build(folder, SHAPES["deep"])
    return folder


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """As published: matrices in Q8_0, all else in float32."""
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors: dict[str, tuple[NDArray[Any], Kind | None]] = {}
    for name in open_model(str(folder), device=torch.device("cpu"), dtype=torch.float32).transformer.state_dict():
        recipe = diffusers_recipe(name)
        tensor = torch.cat([state[source] for source in recipe.sources])
        data = (torch.cat(tensor.chunk(2)[::-1]) if recipe.swap else tensor).numpy()
        is_quantised = data.ndim == 2 and data.shape[1] % 32 == 0
        tensors[name] = (quants.quantize(data, Kind.Q8_0), Kind.Q8_0) if is_quantised else (data, None)
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(folder / part, tmp_path / part)
    (tmp_path / "rekontext.json").write_text((folder / "rekontext.json").read_text())
    return written(tmp_path / "flux1-kontext-dev-Q8_0.gguf", tensors)


def test_a_file_opens_as_a_model(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures are those of its weights made wide; in fp8, too, and its sizes are known before it is read."""
    original = open_model(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    # The original's own file of the autoencoder is tested with the other layouts.
    monkeypatch.setattr(
        "rekontext.engine.checkpoint.open_original_autoencoder", lambda *_: original.autoencoder.to(torch.float32)
    )
    parts = open_model(str(file), device=torch.device("cpu"), dtype=torch.float32)
    assert parts.name == "flux1-kontext-dev-Q8_0"
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name, tensor in parts.transformer.state_dict().items():
        wide = quants.dequantize(stored[name].data, stored[name].tensor_type)
        torch.testing.assert_close(tensor, torch.from_numpy(wide.copy()), rtol=1e-6, atol=1e-6)
        error = (tensor - original.transformer.state_dict()[name]).norm() / tensor.norm()
        assert error < 0.01, name
    fp8 = open_model(str(file), device=torch.device("cpu"), dtype=torch.bfloat16, placement=Placement(fp8=True))
    assert fp8.transformer.state_dict()["single_blocks.0.linear1.weight"].dtype == torch.float8_e4m3fn
    with Engine.open(str(file), device="cpu", dtype="float32") as engine:
        assert engine.edit(Image.new("RGB", (64, 64), "teal"), "night", steps=4, seed=1).size == (96, 96)


def test_a_file_cut_short_is_refused(file: Path) -> None:
    """Wherever it is cut: in its header, or in the last tensor."""
    whole = file.read_bytes()
    for length in (0, 3, 40, 4000, len(whole) - 4096):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"Q8_0\.gguf is not a readable GGUF file"):
            model_sizes(str(file))
