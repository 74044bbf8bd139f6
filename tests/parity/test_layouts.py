"""The published layouts of the same weights load to identical tensors. diffusers' own translators are the judge."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id  # type: ignore[attr-defined]
from safetensors.torch import load_file, save_file
from torch import Tensor

from rekontext.engine import CheckpointError, checkpoint, pretrained
from rekontext.engine.checkpoint import Parts, facts_of, model_sizes, open_model
from rekontext.engine.layouts import diffusers_recipe
from rekontext.engine.memory import Sizes
from rekontext.engine.prompt import PromptEncoder
from rekontext.models import is_hub_id, mini_folder
from tests.small_model import SHAPES, Shape, build

State = dict[str, Tensor]
SHAPE = SHAPES["deep"]


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def with_vector(name: str) -> Callable[[State], State]:
    """The tensor in a shape that no part of any model has."""
    return lambda state: state | {name: torch.zeros(3)}


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


def test_a_lone_files_text_encoders_are_the_published_models(
    folder: Path, single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those folders are fetched, and nothing to count them: they are as large as published."""
    asked: list[tuple[str, list[str]]] = []

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    without_text(single.parent)
    assert model_sizes(str(single)).text_encoder_parameters == Sizes().text_encoder_parameters
    assert not asked
    found, expected = opened(str(single)), opened(str(folder))
    assert asked == [
        (
            "black-forest-labs/FLUX.1-Kontext-dev",
            ["text_encoder/*", "tokenizer/*", "text_encoder_2/*", "tokenizer_2/*"],
        )
    ]
    assert_same(found, expected)
    assert_same_text(found, expected)


class Hub:
    """A repository on the hub: what of it is fetched lies in `cache`."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository = repository
        self.cache = cache

    def download(self, hub_id: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None = None) -> str:
        assert hub_id == "owner/name"
        files = [str(path.relative_to(self.repository)) for path in self.repository.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / file, self.cache / file)
        return str(self.cache)

    @property
    def fetched(self) -> set[str]:
        return {str(path.relative_to(self.cache)) for path in self.cache.rglob("*") if path.is_file()}


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "repository", tmp_path / "cache")
    shutil.copytree(folder, hub.repository)
    monkeypatch.setattr(checkpoint, "snapshot_download", hub.download)
    return hub


def test_of_a_hub_repository_only_what_is_read_is_fetched(folder: Path, hub: Hub) -> None:
    """Not the same weights in other formats or layouts, which may be as large again."""
    others = [
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "text_encoder_2/model.bf16.safetensors",
        "text_encoder/pytorch_model.bin",
        "safety_checker/model.safetensors",
        "split_files/diffusion_models/flux1-dev-kontext.safetensors",
        "flux1-kontext-dev.safetensors",
        "README.md",
    ]
    for name in others:
        (hub.repository / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.repository / name).write_text("not wanted")
    assert_same(opened("owner/name"), opened(str(folder)))
    assert hub.fetched.isdisjoint(others)


def test_a_hub_repository_in_shards_is_fetched_whole(folder: Path, hub: Hub) -> None:
    part = hub.repository / "transformer"
    state = load_file(part / "diffusion_pytorch_model.safetensors")
    (part / "diffusion_pytorch_model.safetensors").unlink()
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = sorted(state)
    for i, shard in enumerate(shards):
        save_file({name: state[name] for name in names[i::2]}, part / shard)
    index(hub.repository, json.dumps({"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}}))
    assert_same(opened("owner/name"), opened(str(folder)))


def test_a_hub_repository_in_no_layout_of_diffusers_is_refused_before_it_is_fetched(hub: Hub) -> None:
    """ComfyUI's has 12 GB, and could not be opened then."""
    (hub.repository / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"owner/name has no model_index\.json on the hub"):
        opened("owner/name")
    assert not hub.fetched


def test_text_encoders_that_cannot_be_had_are_told_before_the_transformer_is_read(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 GB take minutes to read. Offline, an incomplete cache is as good as none."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("the transformer was read")

    def refused(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(checkpoint, "load_transformer", read)
    without_text(single.parent)
    for download in (refused, lambda *_, **__: str(single.parent)):
        monkeypatch.setattr(pretrained, "snapshot_download", download)
        with pytest.raises(CheckpointError, match=r"text encoders of .*dev\.safetensors .* accept the licence at"):
            opened(str(single))
    (single.parent / "tokenizer").mkdir()
    with pytest.raises(CheckpointError, match="text_encoder is missing"):
        opened(str(single))


def test_a_folder_never_takes_another_models_text_encoders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "snapshot_download", lambda *_, **__: str(folder))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    without_text(copy)
    for look in (opened, model_sizes):
        with pytest.raises(CheckpointError, match="text_encoder is missing"):
            look(str(copy))


def test_sizes_of_an_encoder_without_a_file_are_not_zero(single: Path) -> None:
    (single.parent / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder_2 has no \.safetensors file"):
        model_sizes(str(single))


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


def test_a_file_in_another_format_is_refused_by_its_name(tmp_path: Path) -> None:
    """Whichever way it is looked at first."""
    file = tmp_path / "flux1-kontext-dev.onnx"
    file.write_bytes(b"ONNX")
    for look in (opened, model_sizes, facts_of):
        with pytest.raises(CheckpointError, match=r"only \.safetensors and \.gguf files can be opened, not \.onnx"):
            look(str(file))


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


@pytest.mark.parametrize(
    "name", ["nowhere", "./nowhere", "../x", "~/nowhere", "~nobody-here/x", "/nowhere", "owner/a--b"]
)
def test_no_such_model(name: str) -> None:
    """What begins as a path does is one, even if it would else pass for owner/name."""
    with pytest.raises(CheckpointError, match=f"no model at '{name}'"):
        opened(name)


@pytest.mark.parametrize(
    "name",
    [
        "black-forest-labs/FLUX.1-Kontext-dev",
        *(f"o/{name}" for name in ("a", "_", "a.b", "a-b", ".a", "a.", "-a", "a-", "a--b", "a..b", "a.git", "a b", "")),
        *("o", "o/a/b", "/a", "-o/a", "o-/a", "o.git/a", "o--p/a", "o/" + "a" * 96, "o/" + "a" * 97),
    ],
)
def test_hub_ids_are_those_that_the_hub_allows(name: str) -> None:
    """As its library has it, which a service without the engine does without."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not is_hub_id(name)
    else:
        assert is_hub_id(name) is (name.count("/") == 1)


def opened(model: str) -> Parts:
    """As its files say it, nothing packed or quantised yet."""
    return open_model(model, device=torch.device("cpu"), dtype=torch.float32)


def without_text(folder: Path) -> None:
    for name in pretrained.TEXT_FOLDERS:
        shutil.rmtree(folder / name)


def changed(folder: Path, **values: object) -> None:
    """Another configuration."""
    path = next(folder.glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def index(folder: Path, text: str) -> None:
    """Of shards, written to the transformer's folder."""
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)


def truncate(folder: Path) -> None:
    """As a download that broke off leaves it."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def assert_same(one: Parts, other: Parts) -> None:
    """Bit for bit, transformer and autoencoder."""
    for left, right in ((one.transformer, other.transformer), (one.autoencoder, other.autoencoder)):
        ours, theirs = left.state_dict(), right.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert one.transformer.config == other.transformer.config


def assert_same_text(one: Parts, other: Parts) -> None:
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
