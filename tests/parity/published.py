"""The small model as others publish theirs, what may befall its files, and how two opened ones are compared."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from rekontext.engine import pretrained
from rekontext.engine.checkpoint import OpenedModel, open_model
from rekontext.engine.layouts import diffusers_recipe
from tests.small_model import SHAPES

State = dict[str, Tensor]
SHAPE = SHAPES["deep"]


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def with_vector(name: str) -> Callable[[State], State]:
    """The tensor in a shape that no part of any model has."""
    return lambda state: state | {name: torch.zeros(3)}


def opened(model: str) -> OpenedModel:
    """As its files say it, nothing packed or quantised yet."""
    return open_model(model, device=torch.device("cpu"), dtype=torch.float32)


def without_text(folder: Path) -> None:
    for name in pretrained.TEXT_FOLDERS:
        shutil.rmtree(folder / name)


def index(folder: Path, text: str) -> None:
    """Of shards, written to the transformer's folder."""
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)


def assert_same(one: OpenedModel, other: OpenedModel) -> None:
    """Bit for bit, transformer and autoencoder."""
    for left, right in ((one.transformer, other.transformer), (one.autoencoder, other.autoencoder)):
        ours, theirs = left.state_dict(), right.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert one.transformer.config == other.transformer.config


def assert_same_text(one: OpenedModel, other: OpenedModel) -> None:
    """Bit for bit, both text encoders."""
    for left, right in ((one.clip, other.clip), (one.t5, other.t5)):
        assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


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
