"""LoRAs change a model as diffusers and PEFT have them change it, under whichever names they were published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin
from httpx2 import Request, Response
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rekontext.engine import CheckpointError, Engine, lora
from rekontext.engine.checkpoint import OpenedModel, open_model
from rekontext.engine.layouts import diffusers_recipe
from rekontext.engine.lora import LoRAs
from rekontext.engine.memory import Placement
from rekontext.engine.transformer import KontextTransformer, TransformerConfig
from tests.needed import missing
from tests.parity.loras import RANK, State, factors, trained, weights
from tests.parity.test_diffusers_pixels import TOLERANCE, pixels
from tests.parity.with_peft import EDIT

PEFT: Final = Path(sys.prefix) / "peft"
PUBLISHED: Final = TransformerConfig(double_blocks=1, single_blocks=1)
"""One block of each kind, as wide as published: diffusers translates no other widths."""


HEADERS: Final[tuple[dict[str, object], ...]] = (
    {"lora_alpha": 2, "alpha_pattern": {"single_transformer_blocks.1.proj_mlp": 5, "norm_out.linear": 7}},
    {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"to_v": 1}},
    {"lora_alpha": None},  # then it is PEFT's default
)


def test_pixels_agree_with_two_loras_at_their_strengths(folder: Path, tmp_path: Path) -> None:
    """One with settings in its header, the other with none, both at once, one of them negative; and one with settings
    beside it, which diffusers doesn't read: we don't where a file comes alone, as accounts bring it."""
    if not PEFT.is_dir():
        missing("PEFT", "make install")
    second = factors(weights(folder, "transformer"), "transformer_blocks.0.attn.to_q", seed=7)
    save_file({f"transformer.{k}": v for k, v in second.items()}, tmp_path / "second.safetensors")
    sets = []
    for i, settings in enumerate(HEADERS):
        first, header = trained(folder, **settings)
        save_file(first, tmp_path / f"first{i}.safetensors", metadata=header)
        sets.append([f"{tmp_path / f'first{i}.safetensors'}:0.7", f"{tmp_path / 'second.safetensors'}:-0.5"])
    alone, _ = trained(folder)
    saved_by_peft = tmp_path / "peft" / "adapter_model.safetensors"
    saved_by_peft.parent.mkdir()
    saved_by_peft.with_name("adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 5 * RANK}))
    for file in (saved_by_peft, tmp_path / "brought.safetensors"):
        save_file(alone, file)

    command = [sys.executable, "-m", "tests.parity.with_peft", str(folder), str(tmp_path / "theirs.safetensors")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PEFT), *sys.path])}
    subprocess.run([*command, *map(",".join, sets), str(saved_by_peft)], env=environment, check=True, timeout=120)
    theirs = load_file(tmp_path / "theirs.safetensors")
    with Engine.open(str(folder), device="cpu", dtype="float32") as engine:
        without = pixels(engine, EDIT)
    for i, entries in enumerate(sets):
        with Engine.open(str(folder), device="cpu", dtype="float32", loras=entries) as engine:
            ours = pixels(engine, EDIT)
            assert engine.card.title == f"{folder.name} + first{i}:0.7 + second:-0.5"
        assert (ours - theirs[str(i)]).abs().max() <= TOLERANCE, HEADERS[i]
        assert (ours - without).abs().max() > 100 * TOLERANCE, "LoRAs that change nothing would agree, too"
    for file, is_theirs in ((tmp_path / "brought.safetensors", True), (saved_by_peft, False)):
        with Engine.open(str(folder), device="cpu", dtype="float32", loras=[str(file)]) as engine:
            off = (pixels(engine, EDIT) - theirs[str(len(sets))]).abs().max()
            assert off <= TOLERANCE if is_theirs else off > 100 * TOLERANCE, file


def kohya(state: State) -> State:
    """sd-scripts' names for a file in the original's, with alphas of half the rank."""
    named: State = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".lora_")
        base = f"lora_unet_{module.replace('.', '_')}"
        named[f"{base}.lora_{'down' if kind.startswith('A') else 'up'}.weight"] = tensor
        named[f"{base}.alpha"] = torch.tensor(RANK / 2)
    return named


def comfyui(state: State) -> State:
    return {
        f"diffusion_model.{name.replace('lora_A', 'lora_down').replace('lora_B', 'lora_up')}": tensor
        for name, tensor in state.items()
    }


def xlabs(_: State) -> State:
    width, mlp = PUBLISHED.width, 4 * PUBLISHED.width
    shapes = {
        "double_blocks.0.processor.qkv_lora1": (3 * width, width),
        "double_blocks.0.processor.proj_lora1": (width, width),
        "double_blocks.0.processor.qkv_lora2": (3 * width, width),
        "double_blocks.0.processor.proj_lora2": (width, width),
        "single_blocks.0.processor.qkv_lora": (3 * width, width),
        "single_blocks.0.processor.proj_lora": (width, width + mlp),
    }
    return {
        f"{module}.{kind}.weight": torch.randn((RANK, d) if kind == "down" else (o, RANK))
        for module, (o, d) in shapes.items()
        for kind in ("down", "up")
    }


def mixture(_: State) -> State:
    """kohya's letters for diffusers' names."""
    width = PUBLISHED.width
    modules = ("transformer_blocks_0_attn_to_out_0", "single_transformer_blocks_0_attn_to_q")
    named = {}
    for module in modules:
        named[f"lora_transformer_{module}.lora_down.weight"] = torch.randn(RANK, width)
        named[f"lora_transformer_{module}.lora_up.weight"] = torch.randn(width, RANK)
        named[f"lora_transformer_{module}.alpha"] = torch.tensor(2.0)
    return named


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(KontextTransformer(PUBLISHED).named_parameters())


def of_all_kinds(published: dict[str, Tensor]) -> State:
    """Factors for a matrix of each kind, in the original's names."""
    modules = ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj", "single_blocks.0.linear1"]
    return {name: t for module in modules for name, t in factors(dict(published), module).items()}


@pytest.mark.parametrize("spelled", [kohya, comfyui, xlabs, mixture], ids=lambda spelled: spelled.__name__)
def test_names_mean_what_diffusers_takes_them_for(
    spelled: Callable[[State], State], published: dict[str, Tensor], tmp_path: Path
) -> None:
    """Its translator gives a product for each of its own modules; ours gives the same rows of the fused matrices."""
    state = spelled(of_all_kinds(published))
    save_file(state, tmp_path / "it.safetensors")
    translated = FluxLoraLoaderMixin.lora_state_dict(dict(state))
    theirs = {
        name.removeprefix("transformer.").removesuffix(".lora_A.weight"): translated[name.replace("_A.", "_B.")] @ down
        for name, down in translated.items()
        if name.endswith(".lora_A.weight")
    }
    assert_same_changes(tmp_path / "it.safetensors", published, theirs)


def test_pefts_prefix_and_none_are_understood(published: dict[str, Tensor], tmp_path: Path) -> None:
    """diffusers translates the first for whole LoRAs of all 57 blocks only."""
    named = factors(dict(published), "double_blocks.0.img_attn.proj")
    for i, prefix in enumerate(("base_model.model.", "model.diffusion_model.", "")):
        save_file({f"{prefix}{name}": tensor for name, tensor in named.items()}, tmp_path / f"{i}.safetensors")
        down, up = named.values()
        assert_same_changes(tmp_path / f"{i}.safetensors", published, {"transformer_blocks.0.attn.to_out.0": up @ down})


def test_the_final_layers_halves_are_exchanged_in_diffusers_names(published: dict[str, Tensor], tmp_path: Path) -> None:
    """As in its weights; the original's own names leave them as they are."""
    named = factors(dict(published), "final_layer.adaLN_modulation.1")
    save_file(comfyui(named), tmp_path / "original.safetensors")
    down, up = named.values()
    swapped = {"norm_out.linear.lora_A.weight": down, "norm_out.linear.lora_B.weight": torch.cat(up.chunk(2)[::-1])}
    save_file({f"transformer.{k}": v.contiguous() for k, v in swapped.items()}, tmp_path / "diffusers.safetensors")
    for file in ("original", "diffusers"):
        changes = LoRAs([str(tmp_path / f"{file}.safetensors")]).of_transformer(published)
        name = "final_layer.adaLN_modulation.1.weight"
        torch.testing.assert_close(changes.merged(name, torch.zeros(published[name].shape)), up @ down)


def assert_same_changes(file: Path, published: dict[str, Tensor], theirs: State) -> None:
    changes = LoRAs([str(file)]).of_transformer(published)
    seen = set()
    for name, parameter in published.items():
        if name not in changes:
            continue
        modules = [source.removesuffix(".weight") for source in diffusers_recipe(name).sources]
        seen |= set(modules) & theirs.keys()
        ours = changes.merged(name, torch.zeros(parameter.shape))
        sizes = [PUBLISHED.width] * (len(modules) - 1)
        for module, rows in zip(modules, ours.split([*sizes, len(ours) - sum(sizes)]), strict=True):
            assert (rows - theirs.get(module, torch.zeros(1))).abs().max() < 1e-5, module
    assert seen == theirs.keys()


def test_text_encoders_are_changed_too(folder: Path, tmp_path: Path) -> None:
    """T5's as well, which diffusers leaves out; under PEFT's names, kohya's and ComfyUI's."""
    clip, t5 = weights(folder, "text_encoder"), weights(folder, "text_encoder_2")
    module = next(name for name in clip if name.endswith("layers.0.mlp.fc1.weight")).removesuffix(".weight")
    down, up = factors(clip, module).values()
    t5_down, t5_up = factors(t5, "encoder.block.1.layer.0.SelfAttention.q").values()
    states = [
        {
            "text_encoder.text_model.encoder.layers.0.mlp.fc1": (down, up),
            "text_encoder_2.encoder.block.1.layer.0.SelfAttention.q": (t5_down, t5_up),
        },
        {
            "lora_te1_text_model_encoder_layers_0_mlp_fc1": (down, up),
            "lora_te3_encoder_block_1_layer_0_SelfAttention_q": (t5_down, t5_up),
        },
        {
            "lora_te_text_model_encoder_layers_0_mlp_fc1": (down, up),
            "lora_te2_encoder_block_1_layer_0_SelfAttention_q": (t5_down, t5_up),
            "lora_te_text_projection": (torch.ones(1, 8), torch.ones(8, 1)),
        },
        {
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": (down, up),
            "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q": (t5_down, t5_up),
        },
    ]
    plain = open_model(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    for i, state in enumerate(states):
        file = tmp_path / f"{i}.safetensors"
        save_file({f"{m}.lora_{k}.weight": t for m, (d, u) in state.items() for k, t in (("A", d), ("B", u))}, file)
        parts = open_model(str(folder), device=torch.device("cpu"), dtype=torch.float32, loras=[f"{file}:2"])
        for part, name, change in (
            ("clip", "encoder.layers.0.mlp.fc1.weight", up @ down),
            ("t5", "encoder.block.1.layer.0.SelfAttention.q.weight", t5_up @ t5_down),
        ):
            before = getattr(plain, part).state_dict()
            for key, found in getattr(parts, part).state_dict().items():
                expected = before[key] + 2 * change if key == name else before[key]
                torch.testing.assert_close(found, expected)


def test_a_lora_is_merged_before_a_weight_is_rounded(folder: Path, tmp_path: Path) -> None:
    """Once: to bfloat16 from the sum in float32, and to e4m3 from that."""
    name = "single_blocks.0.linear2.weight"
    named = factors(weights(folder, "transformer"), "single_transformer_blocks.0.proj_out")
    save_file({f"transformer.{k}": v for k, v in named.items()}, tmp_path / "it.safetensors")
    stored = weights(folder, "transformer")["single_transformer_blocks.0.proj_out.weight"]
    down, up = named.values()
    merged = (stored + 0.5 * (up @ down)).to(torch.bfloat16)

    def opened(placement: Placement) -> KontextTransformer:
        entry = f"{tmp_path / 'it.safetensors'}:0.5"
        parts = open_model(
            str(folder), device=torch.device("cpu"), dtype=torch.bfloat16, placement=placement, loras=[entry]
        )
        return parts.transformer

    assert opened(Placement()).state_dict()[name].equal(merged)
    fp8 = opened(Placement(fp8=True)).state_dict()
    wide = fp8[name].float() * fp8[name.replace(".weight", ".scale")]
    assert (wide - merged.float()).norm() / merged.float().norm() < 0.04


def test_differences_of_whole_weights_and_biases_are_added(folder: Path, tmp_path: Path) -> None:
    """What an extraction writes for norms and biases, and PEFT's biases of up-projections."""
    state = weights(folder, "transformer")
    down, up = factors(state, "proj_out").values()
    bias, scale = torch.randn(len(up)), torch.randn_like(state["transformer_blocks.0.attn.norm_q.weight"])
    changes = {
        "diffusion_model.final_layer.linear.lora_A.weight": down,
        "diffusion_model.final_layer.linear.lora_B.weight": up,
        "diffusion_model.final_layer.linear.lora_B.bias": bias,
        "diffusion_model.final_layer.linear.alpha": torch.tensor(2.0 * RANK),
        "diffusion_model.img_in.diff_b": torch.ones(len(state["x_embedder.bias"])),
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": scale,
    }
    save_file(changes, tmp_path / "it.safetensors")
    found, before = (
        open_model(str(folder), device=torch.device("cpu"), dtype=torch.float32, loras=loras).transformer.state_dict()
        for loras in ([f"{tmp_path / 'it.safetensors'}:0.5"], [])
    )
    expected = before | {
        "final_layer.linear.weight": before["final_layer.linear.weight"] + up @ down,
        "final_layer.linear.bias": before["final_layer.linear.bias"] + bias,
        "img_in.bias": before["img_in.bias"] + 0.5,
        "double_blocks.0.img_attn.norm.query_norm.scale": before["double_blocks.0.img_attn.norm.query_norm.scale"]
        + 0.5 * scale,
    }
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def opened_with(folder: Path, entry: object) -> OpenedModel:
    return open_model(str(folder), device=torch.device("cpu"), dtype=torch.float32, loras=[str(entry)])


A, B = torch.ones(RANK, 96), torch.ones(96, RANK)
Q = "transformer.transformer_blocks.0.attn.to_q"
FACTORS: State = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({f"{Q}.lora_A.weight": A}, r"attn.to_q lacks a factor"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": torch.ones(95, RANK)}, r"shape \[95, 3\], and .* \[96, 3\]"),
        ({f"{Q}.lora_A.weight": torch.ones(RANK, 8), f"{Q}.lora_B.weight": B}, r"shape \[3, 8\], and .* \[3, 96\]"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": torch.ones(96, 4)}, r"shape \[96, 4\], and .* \[96, 3\]"),
        ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.alpha": torch.ones(2)}, r"alpha must be one number"),
        ({f"{Q}.alpha": torch.ones(())}, r"attn.to_q lacks a factor"),
        (
            {"unet.mid_block.attn.lora_A.weight": A, "unet.mid_block.attn.lora_B.weight": B},
            r"made for another model: unet",
        ),
        (FACTORS | {f"{Q}.dora_scale": torch.ones(48)}, r"is DoRA \("),
        (FACTORS | {f"{Q}.lora_magnitude_vector": torch.ones(48)}, r"is DoRA \("),
        (FACTORS | {f"{Q}.lora_mid.weight": torch.ones(48)}, r"is LoCon \("),
        (FACTORS | {f"{Q}.set_weight": torch.ones(48)}, r"is a control LoRA \("),
        (
            FACTORS | {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(48)},
            r"holds more than a LoRA, as control LoRAs do: double_blocks\.0\.img_attn\.norm\.query_norm\.scale",
        ),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": A}, r"is LoKr \("),
        ({"lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a": A}, r"is LoHa \("),
        (FACTORS | {"bundle_emb.me.clip_l": torch.ones(48)}, r"holds more than a LoRA, as .* do: bundle_emb"),
        (FACTORS | {f"{Q}.lora_down.weight": A.clone()}, r"has transformer\..*to_q twice: .*lora_A.* and .*lora_down"),
        (
            {
                "diffusion_model.double_blocks.0.img_attn.qkv.diff": torch.ones(288, 96),
                "diffusion_model.transformer_blocks.0.attn.to_k.diff": torch.ones(96, 96),
            },
            r"changes .* twice: as ",
        ),
        (FACTORS | {f"{Q}.lora_B.bias": torch.ones(95)}, r"shape \[95\], and .* \[96\]"),
        ({f"{Q}.lora_B.bias": torch.ones(96)}, r"attn.to_q lacks a factor"),
        ({"diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff_b": torch.ones(48)}, r"query_norm \(a bias\)"),
        (
            {f"{Q}.lora_A.weight": torch.ones(0, 96), f"{Q}.lora_B.weight": torch.ones(96, 0)},
            r"lora_A\.weight is empty",
        ),
        (FACTORS | {f"{Q}.alpha": torch.ones(1, dtype=torch.complex64)}, r"alpha is stored as C64"),
        (
            {
                "double_blocks.0.img_attn.qkv.weight": A,
                "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(48),
            },
            r"holds no LoRA: double_blocks",
        ),
        ({}, r"holds no LoRA"),
    ],
)
def test_what_cannot_be_merged_is_refused(folder: Path, tmp_path: Path, state: State, says: str) -> None:
    """Never silently left out: the pictures would be another model's."""
    save_file(state, tmp_path / "it.safetensors")
    with pytest.raises(CheckpointError, match=says):
        opened_with(folder, tmp_path / "it.safetensors")


@pytest.mark.parametrize(
    "header", ['{"transformer.lora_alpha": []}', "{", "[" * 99_999, '{"transformer.lora_alpha": 1e999}'], ids=range(4)
)
def test_a_header_that_cannot_be_read_is_refused(folder: Path, tmp_path: Path, header: str) -> None:
    state, _ = trained(folder)
    save_file(state, tmp_path / "it.safetensors", metadata={"lora_adapter_metadata": header})
    with pytest.raises(
        CheckpointError, match=r"it\.safetensors: (its header's lora_adapter_metadata can't|the alpha of .* is inf)"
    ):
        opened_with(folder, tmp_path / "it.safetensors")


class Hub:
    """A repository on the hub, and what of it was fetched."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        self.is_away = False
        monkeypatch.setattr(lora, "hf_hub_download", self.download)
        monkeypatch.setattr(lora, "HfApi", lambda: self)
        monkeypatch.setattr(lora, "snapshot_download", self.cached)

    def list_repo_files(self, repository: str) -> list[str]:
        if self.is_away:
            raise ConnectionError("no network")
        assert repository == "owner/name"
        return [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]

    def download(self, repository: str, file: str) -> str:
        assert repository == "owner/name"
        if not (self.folder / file).is_file():
            if self.is_away:
                raise LocalEntryNotFoundError("no network")
            raise RemoteEntryNotFoundError(
                "no such file", response=Response(404, request=Request("GET", "http://hub/"))
            )
        self.fetched.append(file)
        return str(self.folder / file)

    def cached(self, repository: str, *, local_files_only: bool) -> str:
        assert local_files_only
        if repository != "owner/name":
            raise LocalEntryNotFoundError("not cached")
        return str(self.folder)


@pytest.fixture
def hub(published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """With one LoRA, and below it what else such repositories have."""
    state = comfyui(factors(dict(published), "double_blocks.0.img_attn.proj"))
    for name in ("pytorch_lora_weights.safetensors", "checkpoint-500/pytorch_lora_weights.safetensors", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file(state, tmp_path / name)
    return Hub(tmp_path, monkeypatch)


def test_one_on_the_hub_is_fetched_alone(hub: Hub) -> None:
    """By its id where the repository has one, else by its file, which may be in a folder; a name is no pattern."""
    assert LoRAs(["owner/name:0.5"]).names == ["owner/name:0.5"]
    hub.is_away = True
    assert LoRAs(["owner/name"]).names == ["owner/name"]
    hub.is_away = False
    (hub.folder / "pytorch_lora_weights.safetensors").rename(hub.folder / "ink[v2].safetensors")
    assert LoRAs(["owner/name/ink[v2].safetensors"]).names == ["owner/name/ink[v2]"]
    assert LoRAs(["owner/name/checkpoint-500/pytorch_lora_weights.safetensors"])
    assert hub.fetched == [
        *["pytorch_lora_weights.safetensors"] * 2,
        "ink[v2].safetensors",
        "checkpoint-500/pytorch_lora_weights.safetensors",
    ]
    (hub.folder / "watercolour.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files in it \(ink.*, watercolour.*\): name the one"):
        LoRAs(["owner/name"])
    with pytest.raises(CheckpointError, match=r"repository owner/name has no file for 'owner/name/gone\.safetensors'"):
        LoRAs(["owner/name/gone.safetensors"])


def test_one_that_is_nowhere_is_told_by_its_name(hub: Hub) -> None:
    hub.is_away = True
    with pytest.raises(CheckpointError, match=r"'owner/other' is neither a local path nor in the hub's local cache"):
        LoRAs(["owner/other"])
    for path in ("/nowhere/it.safetensors", "loras/it.safetensors"):
        with pytest.raises(CheckpointError, match=rf"no LoRA at '{path}'"):
            LoRAs([path])


def test_files_that_tools_name_alike_are_told_apart(published: dict[str, Tensor], tmp_path: Path) -> None:
    state = comfyui(factors(dict(published), "double_blocks.0.img_attn.proj"))
    for folder in ("ink", "watercolour"):
        (tmp_path / folder).mkdir()
        save_file(state, tmp_path / folder / "pytorch_lora_weights.safetensors")
    entries = [f"{tmp_path / 'ink'}:2", str(tmp_path / "watercolour" / "pytorch_lora_weights.safetensors")]
    assert LoRAs(entries).names == ["ink:2", "watercolour"]


@pytest.mark.parametrize(
    "spellings",
    [
        ["transformer.{diffusers}", "lora_unet_{original}"],
        ["lora_transformer_{diffusers}", "lora_unet_{original}"],
        ["lycoris_{diffusers}"],
        ["transformer.base_model.model.{diffusers}"],
        ["base_model.model.transformer.{diffusers}"],
        ["{diffusers}"],
    ],
    ids="+".join,
)
def test_a_change_in_two_spellings_is_made_once(
    published: dict[str, Tensor], tmp_path: Path, spellings: list[str]
) -> None:
    """Merges found in the wild carry both; diffusers takes diffusers' own."""
    diffusers, original = "transformer_blocks.0.attn.to_out.0", "double_blocks.0.img_attn.proj"
    down, up = factors(dict(published), original).values()
    state: State = {}
    for i, spelling in enumerate(spellings):
        names = {"diffusers": diffusers, "original": original}
        if "_{" in spelling:
            names = {which: name.replace(".", "_") for which, name in names.items()}
        module = spelling.format(**names)
        kinds = ("down", "up") if "_{" in spelling else ("A", "B")
        state |= {f"{module}.lora_{kinds[0]}.weight": down + i, f"{module}.lora_{kinds[1]}.weight": up + i}
    save_file(state, tmp_path / "it.safetensors")
    assert_same_changes(tmp_path / "it.safetensors", published, {diffusers: up @ down})


@pytest.mark.parametrize("alpha", [torch.tensor(6), torch.tensor([6.0]), torch.tensor(6.0, dtype=torch.bfloat16)])
def test_an_alpha_may_be_any_number(published: dict[str, Tensor], tmp_path: Path, alpha: Tensor) -> None:
    """sd-scripts' extractor writes integers."""
    state = kohya(factors(dict(published), "double_blocks.0.img_attn.proj"))
    state["lora_unet_double_blocks_0_img_attn_proj.alpha"] = alpha
    save_file(state, tmp_path / "it.safetensors")
    down, up = (tensor for name, tensor in state.items() if name.endswith(".weight"))
    theirs = {"transformer_blocks.0.attn.to_out.0": 6 / RANK * (up @ down)}
    assert_same_changes(tmp_path / "it.safetensors", published, theirs)


@pytest.mark.parametrize(
    ("settings", "scale"), [({"lora_alpha": 12}, 4), ({"lora_alpha": 3, "use_rslora": True}, 3**0.5)]
)
def test_what_peft_saved_is_merged_as_its_settings_say(
    published: dict[str, Tensor], tmp_path: Path, settings: dict[str, object], scale: float
) -> None:
    """They lie beside it, where diffusers doesn't look."""
    named = factors(dict(published), "double_blocks.0.img_attn.proj")
    save_file({f"base_model.model.{name}": t for name, t in named.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, **settings}))
    down, up = named.values()
    changes = LoRAs([str(tmp_path)]).of_transformer(published)
    name = "double_blocks.0.img_attn.proj.weight"
    torch.testing.assert_close(changes.merged(name, torch.zeros(published[name].shape)), scale * (up @ down))
    (tmp_path / "adapter_config.json").write_text('{"use_dora": true}')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json says that it is DoRA"):
        LoRAs([str(tmp_path)])


@pytest.mark.parametrize("where", ["factor", "alpha", "difference"])
def test_what_is_not_finite_is_refused_before_any_edit(folder: Path, tmp_path: Path, where: str) -> None:
    """With the file's name: later it would be the model's pixels that are NaN."""
    state: State = {f"{Q}.lora_A.weight": A.clone(), f"{Q}.lora_B.weight": B.clone()}
    match where:
        case "factor":
            state[f"{Q}.lora_B.weight"][0, 0] = torch.inf
        case "alpha":
            state[f"{Q}.alpha"] = torch.tensor(torch.nan)
        case "difference":
            state = {"transformer.proj_out.diff_b": torch.full((64,), torch.nan)}
    save_file(state, tmp_path / "it.safetensors")
    with pytest.raises(CheckpointError, match=r"it\.safetensors: (what it adds to .* is NaN|the alpha of .* is nan)"):
        opened_with(folder, tmp_path / "it.safetensors")
