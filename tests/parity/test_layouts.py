"""The published layouts of the same weights load to identical tensors. diffusers' own translators are the judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rekontext.engine import CheckpointError
from rekontext.engine.checkpoint import model_sizes
from rekontext.engine.prompt import PromptEncoder
from tests.parity.published import State, assert_same, assert_same_text, opened, rewrite


def test_the_original_file_equals_the_diffusers_folder(folder: Path, single: Path) -> None:
    assert_same(opened(str(folder)), opened(str(single)))


def test_sizes_are_the_same_in_both_layouts(folder: Path, single: Path) -> None:
    """They are read off the files' headers, to choose a memory plan before anything is loaded."""
    assert model_sizes(str(single)) == model_sizes(str(folder))


def test_sharded_folder(folder: Path, tmp_path: Path) -> None:
    """A sharded folder is put together from its index."""
    copy = tmp_path / "sharded"
    shutil.copytree(folder, copy)
    whole = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: state[name] for name in members}, whole.parent / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (whole.parent / f"{whole.name}.index.json").write_text(json.dumps(index))
    assert_same(opened(str(folder)), opened(str(copy)))


@pytest.mark.parametrize("rows", [False, True], ids=["tensor-scale", "row-scale"])
def test_fp8_scaled_files_are_dequantised(folder: Path, single: Path, rows: bool) -> None:
    """e4m3 weights times their scale come within e4m3's rounding (3 mantissa bits: 1/16) of the originals."""

    def quantise(state: State) -> State:
        small: State = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
        for name, tensor in state.items():
            if tensor.ndim < 2:
                small[name] = tensor
                continue
            scale = (tensor.abs().amax(1) if rows else tensor.abs().max()) / 448
            divisor = scale[:, None] if rows else scale
            small[name] = (tensor / divisor).to(torch.float8_e4m3fn)
            small[name.removesuffix("weight") + "scale_weight"] = scale
        return small

    rewrite(single, quantise)
    exact = opened(str(folder)).transformer.state_dict()
    close = opened(str(single)).transformer.state_dict()
    for name, tensor in exact.items():
        row_max = tensor.abs().amax(-1, keepdim=True) if rows else tensor.abs().max()
        assert torch.all((close[name] - tensor).abs() <= tensor.abs() / 16 + row_max / 448 / 16), name
    assert any(not torch.equal(close[name], exact[name]) for name in exact), "nothing was quantised"


@pytest.mark.parametrize(
    "name",
    [
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp8.safetensors",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
    ],
)
def test_the_same_weights_in_another_format_beside_them_are_not_read(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / name).write_text("not wanted")
    assert_same(opened(str(copy)), opened(str(folder)))
    assert model_sizes(str(copy)) == model_sizes(str(folder))


def test_a_text_encoder_s_one_file_is_read_before_its_shards(folder: Path, tmp_path: Path) -> None:
    """By the library, so it is the one that is looked at."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    part = copy / "text_encoder_2"
    state = load_file(part / "model.safetensors")
    (part / "model.safetensors").rename(part / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(state, "model-00001-of-00001.safetensors")
    (part / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same_text(opened(str(copy)), opened(str(folder)))
    save_file(state | {"shared.scale_weight": torch.ones(())}, part / "model.safetensors")
    with pytest.raises(CheckpointError, match="has a scale"):
        opened(str(copy))


def test_a_link_to_a_folder_is_named_by_itself(folder: Path, tmp_path: Path) -> None:
    """What it leads to may be called by a commit, as in the hub's cache."""
    (tmp_path / "kontext").symlink_to(folder)
    facts = json.loads((folder / "rekontext.json").read_text())
    assert "name" not in facts
    assert opened(f"{tmp_path}/kontext/").name == "kontext"
    assert opened(f"{folder}/transformer/..").name == folder.name


def test_a_tokenizer_that_was_not_told_its_length_pads_to_the_encoders(folder: Path, tmp_path: Path) -> None:
    """transformers then has 10^30 for it."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config.pop("model_max_length") == 32
    path.write_text(json.dumps(config))
    found, expected = (PromptEncoder(opened(str(where))).encode("night") for where in (copy, folder))
    assert torch.equal(found.pooled_1p, expected.pooled_1p)
