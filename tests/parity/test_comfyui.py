"""ComfyUI's folders and files load to the same tensors as diffusers' folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rekontext.engine import CheckpointError, pretrained
from rekontext.engine.checkpoint import model_sizes
from tests.parity.published import State, assert_same, assert_same_text, opened, rewrite, with_vector, without


def test_comfyui_prefix(folder: Path, single: Path) -> None:
    """ComfyUI writes the original's tensors under a prefix."""
    rewrite(single, lambda state: {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()})
    assert_same(opened(str(folder)), opened(str(single)))


@pytest.fixture
def comfyui(folder: Path, single: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same model in ComfyUI's folders. Tokenizers come from the hub, and no weights of text encoders."""

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        assert hub_id == "black-forest-labs/FLUX.1-Kontext-dev"
        assert allow_patterns == [
            "text_encoder/config.json",
            "tokenizer/*",
            "text_encoder_2/config.json",
            "tokenizer_2/*",
        ]
        return str(fetched)

    fetched = single.parent / "fetched"
    for name in pretrained.TEXT_FOLDERS:
        shutil.copytree(folder / name, fetched / name, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(pretrained, "snapshot_download", download)
    models = single.parent / "models"
    for name in ("diffusion_models", "text_encoders", "vae"):
        (models / name).mkdir(parents=True)
    file = models / "diffusion_models" / "flux1-dev-kontext.safetensors"
    single.rename(file)
    (single.parent / "rekontext.json").rename(file.parent / "rekontext.json")
    (single.parent / "ae.safetensors").rename(models / "vae" / "ae.safetensors")
    clip = load_file(folder / "text_encoder" / "model.safetensors")
    clip = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in clip.items()}
    beside = {"logit_scale": torch.tensor(4.6), "text_model.embeddings.position_ids": torch.arange(32)[None]}
    save_file(clip | beside, models / "text_encoders" / "clip_l.safetensors")
    shutil.copy(folder / "text_encoder_2" / "model.safetensors", models / "text_encoders" / "t5xxl_fp16.safetensors")
    return file


def test_comfyuis_folders(folder: Path, comfyui: Path) -> None:
    """A file's autoencoder and text encoders are found where ComfyUI has them."""
    found, expected = opened(str(comfyui)), opened(str(folder))
    assert_same(found, expected)
    assert_same_text(found, expected)
    assert model_sizes(str(comfyui)) == model_sizes(str(folder))


def test_a_file_among_comfyuis_checkpoints_finds_them_too(folder: Path, comfyui: Path) -> None:
    """Where whoever has everything in one file keeps it; what else is in the file isn't read."""
    checkpoints = comfyui.parent.parent / "checkpoints"
    comfyui.parent.rename(checkpoints)
    others = {"vae.decoder.conv_in.weight": torch.zeros(1), "text_encoders.clip_l.x": torch.zeros(1)}
    rewrite(
        checkpoints / comfyui.name,
        lambda state: {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()} | others,
    )
    found, expected = opened(str(checkpoints / comfyui.name)), opened(str(folder))
    assert_same(found, expected)
    assert_same_text(found, expected)


def test_of_several_t5_files_the_one_in_fp8_is_the_last_choice(folder: Path, comfyui: Path) -> None:
    wide = comfyui.parent.parent / "text_encoders" / "t5xxl_fp16.safetensors"
    small: State = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in load_file(wide).items():
        scale = tensor.abs().max() / 448
        small[name] = (tensor / scale).to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor
        if tensor.ndim == 2:
            small[name.removesuffix("weight") + "scale_weight"] = scale
    save_file(small, wide.with_name("t5xxl_fp8_e4m3fn_scaled.safetensors"))
    expected = opened(str(folder))
    assert_same_text(opened(str(comfyui)), expected)
    wide.unlink()
    for ours, theirs in zip(opened(str(comfyui)).t5.parameters(), expected.t5.parameters(), strict=True):
        assert torch.all((ours - theirs).abs() <= theirs.abs() / 16 + theirs.abs().max() / 448 / 16)


def test_text_encoders_beside_a_file_come_before_comfyuis(folder: Path, comfyui: Path) -> None:
    """Then nothing is fetched: the fixture would refuse to."""
    for name in pretrained.TEXT_FOLDERS:
        shutil.copytree(folder / name, comfyui.parent / name)
    (comfyui.parent.parent / "text_encoders" / "clip_l.safetensors").write_bytes(b"x")
    shutil.rmtree(comfyui.parent.parent.parent / "fetched")
    assert_same_text(opened(str(comfyui)), opened(str(folder)))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "text_encoders/clip_l",
            without("text_model.final_layer_norm.weight"),
            r"clip_l\.safetensors: missing tensors: .*final_layer_norm\.weight",
        ),
        (
            "text_encoders/t5xxl_fp16",
            with_vector("shared.weight"),
            r"t5xxl_fp16\.safetensors: .*shared\.weight has shape \[3\], expected \[45, 32\]",
        ),
        (
            "text_encoders/t5xxl_fp16",
            lambda state: {name: tensor.char() for name, tensor in state.items()},
            r"t5xxl_fp16\.safetensors: .* is stored as I8: only bfloat16",
        ),
        ("vae/ae", without("decoder.conv_in.weight"), r"vae/ae\.safetensors: missing tensor: decoder\.conv_in"),
    ],
)
def test_a_broken_file_among_comfyuis_says_what_is_wrong(
    comfyui: Path, file: str, change: Callable[[State], State], message: str
) -> None:
    rewrite(comfyui.parent.parent / f"{file}.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        opened(str(comfyui))


def test_tokenizers_that_cannot_be_had_are_told(comfyui: Path) -> None:
    shutil.rmtree(comfyui.parent.parent.parent / "fetched" / "tokenizer")
    with pytest.raises(CheckpointError, match=r"the tokenizers of .*kontext\.safetensors are neither beside it nor"):
        opened(str(comfyui))
