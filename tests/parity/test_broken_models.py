"""A model that can't be opened is refused in words that name the file, what is wrong in it and what would be right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rekontext.engine import CheckpointError
from rekontext.engine.checkpoint import facts_of, model_sizes
from rekontext.models import mini_folder
from tests.parity.published import SHAPE, State, index, opened, original_autoencoder, rewrite, with_vector, without
from tests.small_model import Shape, build


def test_sizes_of_an_encoder_without_a_file_are_not_zero(single: Path) -> None:
    (single.parent / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder_2 has no \.safetensors file"):
        model_sizes(str(single))


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
        (
            lambda f: (f / "transformer" / "config.json").write_text("[]"),
            r"config\.json must hold a JSON object, not list",
        ),
        (lambda f: (f / "text_encoder" / "config.json").write_text("[]"), r"config\.json must hold a JSON object"),
        (lambda f: (f / "transformer" / "config.json").write_bytes(b"\xff"), r"config\.json is no JSON"),
        (
            lambda f: changed(f / "transformer", axes_dims_rope=[8, 24]),
            r"config\.json .*\[8, 24\] must be three integers",
        ),
        (
            lambda f: changed(f / "transformer", axes_dims_rope=[8, 12, 13]),
            r"config\.json .*add up to the head width 96/3",
        ),
        (
            lambda f: changed(f / "transformer", num_layers="2"),
            r"config\.json .* num_layers is '2', expected an integer",
        ),
        (lambda f: changed(f / "vae", block_out_channels=8), r"config\.json: block_out_channels must be a list"),
        (lambda f: changed(f / "text_encoder", hidden_size="24"), "text_encoder: .*hidden_size"),
        (lambda f: index(f, "{"), r"index\.json is no JSON"),
        (lambda f: index(f, "{}"), r"index\.json: weight_map must be an object"),
        (lambda f: index(f, '{"weight_map": {"a": 1}}'), r"index\.json: weight_map must be an object"),
        (lambda f: truncate(f / "text_encoder"), r"text_encoder/model\.safetensors is not a readable safetensors file"),
        (lambda f: truncate(f / "text_encoder_2"), r"text_encoder_2/model\.safetensors is not a readable"),
        (
            lambda f: rewrite(f / "text_encoder" / "model.safetensors", with_vector("final_layer_norm.weight")),
            r"text_encoder: final_layer_norm\.weight has shape \[3\], expected \[24\]",
        ),
        (
            lambda f: rewrite(f / "text_encoder_2" / "model.safetensors", with_vector("shared.weight")),
            r"text_encoder_2: .*shared\.weight has shape \[3\], expected \[45, 32\]",
        ),
        (
            lambda f: rewrite(
                f / "text_encoder_2" / "model.safetensors", lambda s: {k: v.char() for k, v in s.items()}
            ),
            r"text_encoder_2/model\.safetensors: .* is stored as I8: only bfloat16",
        ),
        (
            lambda f: rewrite(
                f / "text_encoder" / "model.safetensors", lambda s: s | {"final_layer_norm.weight_scale": torch.ones(1)}
            ),
            r"text_encoder/model\.safetensors: final_layer_norm\.weight has a scale",
        ),
        (lambda f: (f / "tokenizer_2" / "tokenizer.json").write_text('{"version": 1}'), "tokenizer_2: no T5Tokenizer"),
        *(
            (lambda f, key=key, value=value: changed(f / "scheduler", **{key: value}), rf"{key} is {found}, .*{right}$")
            for key, value, found, right in (
                ("_class_name", "EulerDiscreteScheduler", '"Euler.*"', '"FlowMatchEulerDiscreteScheduler"'),
                ("use_dynamic_shifting", False, "false", "true"),
                ("time_shift_type", "linear", '"linear"', '"exponential"'),
                ("shift_terminal", 0.02, "0.02", "null"),
                ("use_beta_sigmas", True, "true", "false"),
                ("num_train_timesteps", 500, "500", "1000"),
            )
        ),
        (lambda f: changed(f / "scheduler", base_shift="0.5"), r'base_shift is "0\.5": it must be a number'),
        (lambda f: changed(f / "scheduler", max_image_seq_len=256), r"max_image_seq_len must differ"),
        (lambda f: changed(f / "vae", shift_factor=None), r"vae: shift_factor is None: it must be a number"),
        (lambda f: changed(f / "vae", scaling_factor=0), r"vae: scaling_factor is 0"),
        (
            lambda f: (f / "rekontext.json").write_text('{"text_tokens": 0}'),
            r"rekontext\.json: text_tokens is 0: at least 1",
        ),
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


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        *(
            ("flux1-kontext-dev", without(name), rf"flux1-kontext-dev\.safetensors: missing tensor: {name}")
            for name in (
                "img_in.weight",
                "txt_in.weight",
                "vector_in.in_layer.weight",
                "single_blocks.0.norm.query_norm.scale",
            )
        ),
        (
            "flux1-kontext-dev",
            lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("guidance_in.")},
            r"has no guidance_in\.in_layer\.weight, so it is not FLUX\.1 Kontext \[dev\]",
        ),
        ("flux1-kontext-dev", with_vector("img_in.weight"), r"img_in\.weight has shape \[3\], expected 2 axes"),
        (
            "flux1-kontext-dev",
            lambda state: state | {"img_in.weight": torch.zeros(40, 64)},
            r"safetensors .*its width 40 \(img_in.weight\) is no multiple of the heads' 32",
        ),
        ("ae", without("decoder.conv_in.weight"), r"ae\.safetensors: missing tensor: decoder\.conv_in\.weight"),
        ("ae", with_vector("decoder.conv_in.weight"), r"decoder\.conv_in\.weight has shape \[3\], expected 4 axes"),
        (
            "ae",
            with_vector("decoder.conv_in.bias"),
            r"ae\.safetensors: decoder\.conv_in\.bias .*\[3\], expected \[16\]",
        ),
        ("ae", without("decoder.up.1.upsample.conv.bias"), r"missing tensor: decoder\.up\.1\.upsample\.conv\.bias"),
        ("ae", without("encoder.down.0.downsample.conv.bias"), r"ae\.safetensors: missing tensors .*downsamplers"),
        ("ae", lambda state: state | {"decoder.mid.attn_1.extra": torch.zeros(1)}, "ae.safetensors: unexpected"),
    ],
)
def test_a_broken_file_says_what_is_wrong(
    single: Path, file: str, change: Callable[[State], State], message: str
) -> None:
    """Its name, the tensor, and the shape that would be right."""
    rewrite(single.parent / f"{file}.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        opened(str(single))


@pytest.mark.parametrize(
    ("part", "other", "message"),
    [
        ("text_encoder_2", replace(SHAPE, text_width=48), r"joint_attention_dim\) of width 32, and T5 .* gives 48"),
        ("text_encoder", replace(SHAPE, pooled_width=32), r"pooled_projection_dim\) of width 24, and CLIP gives 32"),
        ("vae", replace(SHAPE, latent_channels=8), r"in_channels\) of width 64, and the autoencoder .* gives 32"),
        ("vae", replace(SHAPE, autoencoder_channels=(8, 16, 16)), r"a latent stands for 4 x 4 pixels, .* for 8 x 8"),
    ],
)
@pytest.mark.parametrize("layout", ["folder", "file"])
def test_parts_of_different_models_are_not_opened_together(
    folder: Path, single: Path, tmp_path: Path, part: str, other: Shape, message: str, layout: str
) -> None:
    """Each opens by itself; the first edit would fail."""
    stranger, copy = tmp_path / "stranger", tmp_path / "copy"
    build(stranger, other)
    if layout == "folder":
        shutil.copytree(folder, copy)
        shutil.rmtree(copy / part)
        shutil.copytree(stranger / part, copy / part)
    elif part == "vae":
        save_file(original_autoencoder(stranger), tmp_path / "ae.safetensors")
    else:
        shutil.rmtree(tmp_path / part)
        shutil.copytree(stranger / part, tmp_path / part)
    with pytest.raises(CheckpointError, match=message):
        opened(str(copy if layout == "folder" else single))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"axes": [8, 12]}, r"axes \[8, 12\] of rekontext\.json .*must be three integers"),
        ({"axes": 8}, r"rekontext\.json: axes must be a list, not 8"),
        ({"canvas_area": 7}, r"rekontext\.json: a canvas of 7 pixels is too small"),
        ({"autoencoder": []}, r"rekontext\.json: autoencoder must be an object"),
        ({"autoencoder": {"norm_num_groups": 7}}, r"ae\.safetensors, with .*norm_num_groups.* of rekontext\.json"),
    ],
)
def test_facts_that_fit_no_model_are_named(single: Path, facts: dict[str, object], message: str) -> None:
    (single.parent / "rekontext.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=message):
        opened(str(single))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_without_words_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """A copy that broke off: the library would read every prompt as the same, and each edit would ignore its own."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / name / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{name} has no tokenizer\.json or "):
        opened(str(copy))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """Its words would be none of the encoder's, and fail at the first edit."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.copy(mini_folder() / name / "tokenizer.json", copy / name / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"words, and its encoder knows \d+: these are parts of different models"):
        opened(str(copy))


def test_a_file_in_another_format_is_refused_by_its_name(tmp_path: Path) -> None:
    """Whichever way it is looked at first."""
    file = tmp_path / "flux1-kontext-dev.onnx"
    file.write_bytes(b"ONNX")
    for look in (opened, model_sizes, facts_of):
        with pytest.raises(CheckpointError, match=r"only \.safetensors and \.gguf files can be opened, not \.onnx"):
            look(str(file))


@pytest.mark.parametrize(
    "name", ["nowhere", "./nowhere", "../x", "~/nowhere", "~nobody-here/x", "/nowhere", "owner/a--b"]
)
def test_no_such_model(name: str) -> None:
    """What begins as a path does is one, even if it would else pass for owner/name."""
    with pytest.raises(CheckpointError, match=f"no model at '{name}'"):
        opened(name)


def changed(folder: Path, **values: object) -> None:
    """Another configuration."""
    path = next(folder.glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(folder: Path) -> None:
    """As a download that broke off leaves it."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
