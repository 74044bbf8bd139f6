"""The published layouts of the same weights load to identical tensors. diffusers' own translators are the judge."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from rekontext.engine import CheckpointError
from rekontext.engine.checkpoint import Parts, model_sizes, open_model
from rekontext.engine.layouts import diffusers_recipe
from tests.small_model import SHAPES, build

State = dict[str, Tensor]
SHAPE = SHAPES["deep"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_the_original_file_equals_the_diffusers_folder(folder: Path, single: Path) -> None:
    assert_same(opened(str(folder)), opened(str(single)))


def test_sizes_are_the_same_in_both_layouts(folder: Path, single: Path) -> None:
    """They are read off the files' headers, to choose a memory plan before anything is loaded."""
    assert model_sizes(str(single)) == model_sizes(str(folder))


def test_comfyui_prefix(folder: Path, single: Path) -> None:
    """ComfyUI writes the original's tensors under a prefix."""
    rewrite(single, lambda state: {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()})
    assert_same(opened(str(folder)), opened(str(single)))


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


def test_missing_and_unexpected_tensors_are_named(single: Path) -> None:
    """The first five of each are in the message, and how many more there are."""
    rewrite(single, lambda state: {k: v for k, v in state.items() if not k.startswith("time_in")})
    with pytest.raises(CheckpointError, match=r"missing tensors: time_in\.in_layer\.bias, time_in\.in_layer\.weight"):
        opened(str(single))
    rewrite(single, lambda state: state | {f"extra.{i}": torch.zeros(1) for i in range(7)} | to_time(state))
    with pytest.raises(CheckpointError, match=r"unexpected tensors: extra.0, extra.1, .*extra.4 and 2 more"):
        opened(str(single))


def to_time(state: State) -> State:
    """The tensors that the first half of the test above took away."""
    width = state["img_in.bias"].shape[0]
    return {
        "time_in.in_layer.weight": torch.zeros(width, 256),
        "time_in.in_layer.bias": torch.zeros(width),
        "time_in.out_layer.weight": torch.zeros(width, width),
        "time_in.out_layer.bias": torch.zeros(width),
    }


def test_wrong_shape_is_named(single: Path) -> None:
    rewrite(single, lambda state: state | {"txt_in.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"txt_in.bias has shape \[3\], expected \[96\]"):
        opened(str(single))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth"])
def test_a_pickle_is_refused(tmp_path: Path, suffix: str) -> None:
    """Without a look inside: reading it could already run code."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="is a pickle"):
        opened(str(path))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
        (lambda f: (f / "transformer" / "config.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "transformer" / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "has no .safetensors file"),
        (lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"), "not a readable"),
        (lambda f: (f / "rekontext.json").write_text('{"colour": 1}'), "colour"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), "text_encoder_2 is missing"),
    ],
)
def test_a_broken_folder_says_what_is_wrong(
    folder: Path, tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    break_it(copy)
    with pytest.raises(CheckpointError, match=message):
        opened(str(copy))


def test_no_such_model() -> None:
    with pytest.raises(CheckpointError, match="no model at 'nowhere'"):
        opened("nowhere")


def opened(model: str) -> Parts:
    """As its files say it, nothing packed or quantised yet."""
    return open_model(model, device=torch.device("cpu"), dtype=torch.float32)


def assert_same(one: Parts, other: Parts) -> None:
    """Bit for bit, transformer and autoencoder."""
    for left, right in ((one.transformer, other.transformer), (one.autoencoder, other.autoencoder)):
        ours, theirs = left.state_dict(), right.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert one.transformer.config == other.transformer.config


def rewrite(path: Path, change: Callable[[State], State]) -> None:
    state = change(load_file(path))
    save_file(state, path)


def to_original(folder: Path) -> State:
    """diffusers' transformer in the original layout, proven by diffusers' own way back."""
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    original: State = {}
    for name in opened(str(folder)).transformer.state_dict():
        recipe = diffusers_recipe(name)
        tensor = torch.cat([state[source] for source in recipe.sources])
        original[name] = torch.cat(tensor.chunk(2)[::-1]) if recipe.swap else tensor
    back = official_translator(SHAPE.heads * SHAPE.head_width)(dict(original))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    return original


def official_translator(width: int) -> Callable[[State], State]:
    """diffusers' original-to-diffusers function. It has FLUX's width written into it, so that line is changed."""
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert "inner_dim = 3072" in source
    namespace = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), namespace)
    translate: Callable[[State], State] = namespace["convert_flux_transformer_checkpoint_to_diffusers"]
    return translate


def original_autoencoder(folder: Path) -> State:
    """diffusers' autoencoder under the names of the original: found by sending marked names through diffusers."""
    config = json.loads((folder / "vae" / "config.json").read_text())
    state = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    names = list(autoencoder_names(levels=len(config["block_out_channels"]), blocks=config["layers_per_block"]))
    marked = {name: torch.full((1, 1, 1, 1), float(i)) for i, name in enumerate(names)}
    where = single_file_utils.convert_ldm_vae_checkpoint(marked, config)
    original: State = {}
    for theirs, mark in where.items():
        if theirs in state:
            name = names[int(mark.item())]
            is_attention = ".attn_1." in name and ".norm." not in name and name.endswith("weight")
            original[name] = state[theirs][:, :, None, None] if is_attention else state[theirs]
    assert len(original) == len(state)
    return {name: tensor.contiguous() for name, tensor in original.items()}


def autoencoder_names(*, levels: int, blocks: int) -> Iterator[str]:
    """As in black-forest-labs/flux, src/flux/modules/autoencoder.py, shortcuts that a model lacks included."""

    def modules() -> Iterator[str]:
        for side, ladder, resample, count in (("encoder", "down", "downsample", 0), ("decoder", "up", "upsample", 1)):
            yield from (f"{side}.{name}" for name in ("conv_in", "norm_out", "conv_out"))
            places = [f"{side}.mid.block_{i}" for i in (1, 2)]
            places += [f"{side}.{ladder}.{i}.block.{j}" for i in range(levels) for j in range(blocks + count)]
            yield from (f"{place}.{part}" for place in places for part in ("norm1", "conv1", "norm2", "conv2"))
            yield from (f"{place}.nin_shortcut" for place in places)
            yield from (f"{side}.mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out"))
            yield from (f"{side}.{ladder}.{i}.{resample}.conv" for i in range(levels))

    return (f"{module}.{kind}" for module in modules() for kind in ("weight", "bias"))
