"""Of the hub is fetched what is read and nothing else, and what cannot be had is told before anything large is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id  # type: ignore[attr-defined]
from safetensors.torch import load_file, save_file

from rekontext.engine import CheckpointError, checkpoint, pretrained
from rekontext.engine.checkpoint import model_sizes
from rekontext.engine.memory import Sizes
from rekontext.models import is_hub_id
from tests.parity.published import assert_same, assert_same_text, index, opened, without_text


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
