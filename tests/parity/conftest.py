"""One small model in two layouts, diffusers' folder and the original's files, and LoRAs for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.loras import factors, trained, weights
from tests.parity.published import SHAPE, original_autoencoder, to_original
from tests.small_model import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In diffusers' layout, made once for a file of tests: they change copies of it."""
    folder = tmp_path_factory.mktemp("layouts") / "diffusers"
    build(folder, SHAPE)
    return folder


@pytest.fixture
def single(folder: Path, tmp_path: Path) -> Path:
    """The same model as an original single file with ae.safetensors and text encoders beside it."""
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(folder / part, tmp_path / part)
    facts = json.loads((folder / "rekontext.json").read_text()) | {"autoencoder": {"norm_num_groups": 8}}
    (tmp_path / "rekontext.json").write_text(json.dumps(facts))
    save_file(to_original(folder), tmp_path / "flux1-kontext-dev.safetensors")
    save_file(original_autoencoder(folder), tmp_path / "ae.safetensors")
    return tmp_path / "flux1-kontext-dev.safetensors"


@pytest.fixture
def shelf(folder: Path, tmp_path: Path) -> Path:
    """LoRAs for it: `ink` changes most kinds of a transformer's weights, and CLIP; `wash` one of these, and a bias."""
    shelf = tmp_path / "loras"
    shelf.mkdir()
    first, header = trained(folder, lora_alpha=4)
    save_file(first, shelf / "ink.safetensors", metadata=header)
    second = factors(weights(folder, "transformer"), "transformer_blocks.0.attn.to_q", seed=7)
    bias = torch.ones(len(weights(folder, "transformer")["transformer_blocks.0.ff.net.2.bias"]))
    second = {f"transformer.{name}": tensor for name, tensor in second.items()}
    save_file(second | {"transformer.double_blocks.0.img_mlp.2.diff_b": bias}, shelf / "wash.safetensors")
    return shelf
