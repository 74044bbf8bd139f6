"""`--lora` and `--lora-folder`: a model with LoRAs, and LoRAs on offer, on the command line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rekontext.cli.doctor import Finding, examine
from rekontext.contract import ModelCard
from rekontext.engine.checkpoint import open_model
from rekontext.models import offered_loras
from rekontext.settings import Settings, SettingsError, load_settings
from tests.cli.commands import forget_settings, outcome_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "teal").save("photo.png")
    return tmp_path


@pytest.fixture
def lora(folder: Path) -> Path:
    """One for mini, whose pictures it changes."""
    parts = open_model("mini", device=torch.device("cpu"), dtype=torch.float32)
    o, d = parts.transformer.final_layer.linear.weight.shape
    module = "diffusion_model.final_layer.linear"
    factors = {f"{module}.lora_A.weight": torch.ones(1, d) * 0.05, f"{module}.lora_B.weight": torch.ones(o, 1) * 0.05}
    save_file(factors, folder / "warm.safetensors")
    return folder / "warm.safetensors"


def test_edit_merges_it(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the strength that is named, and from the environment's setting as from the flag."""
    digests = {}
    for out, flags in (("plain", []), ("full", [lora.name]), ("half", [f"{lora.name}:0.5"]), ("again", [lora.name])):
        given = [part for flag in flags for part in ("--lora", flag)]
        arguments = ["edit", "photo.png", "night", "-o", f"{out}.png", "--steps", "4", "--seed", "1", *given]
        outcome = outcome_of(arguments, capsys)
        assert outcome.code == 0, outcome.err
        digests[out] = hashlib.sha256(Path(f"{out}.png").read_bytes()).digest()
    assert len({digests["plain"], digests["full"], digests["half"]}) == 3
    assert digests["again"] == digests["full"]


def found_of(entries: list[str], model: str | None = None) -> list[Finding]:
    return [each for each in examine(model, lora=entries) if each.subject == "lora"]


def test_doctor_says_whether_it_fits(lora: Path, folder: Path) -> None:
    (fits,) = found_of([f"{lora}:0.5"])
    assert fits.verdict == "ok"
    assert fits.says == f"{lora} fits the transformer of mini, to be merged at strength 0.5"
    save_file({"transformer.nowhere.lora_A.weight": torch.ones(1, 2)}, folder / "half.safetensors")
    save_file(
        {"lora_unet_nowhere.lora_down.weight": torch.ones(1, 2), "lora_unet_nowhere.lora_up.weight": torch.ones(2, 1)},
        folder / "other.safetensors",
    )
    half, other, gone, hub = found_of(["half.safetensors", "other.safetensors", "gone.safetensors", "owner/name:2"])
    assert half.verdict == other.verdict == gone.verdict == "broken"
    assert "nowhere lacks a factor" in half.says
    assert "made for another model: nowhere" in other.says
    assert "no LoRA at 'gone.safetensors'" in gone.says
    assert (hub.verdict, hub.says) == (
        "note",
        "owner/name isn't here, so it is of the hub: the first start downloads it",
    )


def test_doctor_says_what_is_on_offer_and_whether_it_fits(
    lora: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that edits ask for; and what has a name that none can."""

    def found() -> list[tuple[str, str]]:
        return [(each.verdict, each.says) for each in examine(None) if each.subject in ("loras on offer", "lora")]

    assert found() == []
    offers = folder / "offers"
    monkeypatch.setenv("REKONTEXT_LORA_FOLDER", str(offers))
    [(verdict, says)] = found()
    assert (verdict, says) == (
        "broken",
        f"{offers} can't be read: No such file or directory; make it, or change REKONTEXT_LORA_FOLDER",
    )
    offers.mkdir()
    (offers / "README.md").write_text("no LoRA")
    assert found() == [("note", f"none: {offers} has no .safetensors file to be asked for")]
    for name in ("warm", "warm and cold", "a,b"):
        (offers / f"{name}.safetensors").write_bytes(lora.read_bytes())
    save_file({"transformer.nowhere.lora_A.weight": torch.ones(1, 2)}, offers / "half.safetensors")
    count, half, warm, nameless = found()
    assert count == ("ok", f"2 in {offers}: half, warm")
    assert (half[0], "nowhere lacks a factor" in half[1]) == ("broken", True)
    assert warm == ("ok", "warm fits the transformer of mini, for edits that ask for it")
    assert nameless[0] == "note"
    assert nameless[1].startswith("a,b.safetensors, warm and cold.safetensors can't be asked for by name: allowed are")


def test_what_can_be_asked_for_is_what_doctor_names(lora: Path, folder: Path) -> None:
    """The flag is the setting; a folder of a file's name is none."""
    (folder / "sub.safetensors").mkdir()
    assert offered_loras(folder) == {"warm": lora}
    [count, fits] = [each for each in examine("/nowhere/model", lora_folder=folder) if "lora" in each.subject]
    assert count.says == f"1 in {folder}: warm"
    assert (fits.verdict, fits.says) == ("ok", "warm can be read, for edits that ask for it")


def test_a_folder_that_this_user_may_not_look_into_offers_nothing(
    lora: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is asked for what it offers then says none, and doesn't fail."""

    def refuse(_self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert offered_loras(folder) == {}


@pytest.mark.parametrize("flags", [["--lora-folder", "gone"], ["--lora-folder", "photo.png"]])
def test_serve_stops_where_there_is_no_folder_of_loras(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    """Nothing would be on offer, and nobody told why."""
    outcome = outcome_of(["serve", "--port", "0", *flags], capsys)
    assert outcome.code == 2
    assert f"the folder of LoRAs {flags[1]} can't be read: " in outcome.err
    assert not (folder / "data").exists()


def test_a_front_needs_no_folder_of_loras(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns of the others' what they offer, so doctor doesn't look here."""
    monkeypatch.setenv("REKONTEXT_DEVICE", "none")
    monkeypatch.setenv("REKONTEXT_LORA_FOLDER", str(folder / "gone"))
    assert [each for each in examine(None) if "lora" in each.subject] == []


def test_serve_stops_before_it_makes_a_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its key would be shown to nobody who is still looking."""
    outcome = outcome_of(["serve", "--port", "0", "--lora", "gone.safetensors:0.5"], capsys)
    assert outcome.code == 2
    assert "the LoRA gone.safetensors can't be loaded: there is no such folder or file" in outcome.err
    assert not (folder / "data").exists()


@pytest.mark.parametrize(
    "entry", ["it.safetensors:", ":0.5", "it.safetensors:much", "it.safetensors:0", "it:nan", "it:inf"]
)
def test_a_wrong_strength_is_told_with_the_setting(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKONTEXT_LORA", f"fine.safetensors, {entry}")
    with pytest.raises(SettingsError, match=rf'REKONTEXT_LORA is .*"{entry}" is no LoRA; allowed is FILE or FILE:'):
        load_settings()


def test_several_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKONTEXT_LORA", "a.safetensors:0.8, owner/name/b.safetensors")
    assert Settings().lora == ("a.safetensors:0.8", "owner/name/b.safetensors")


def test_what_made_a_picture_is_the_model_with_its_loras() -> None:
    card = ModelCard(name="kontext", canvas_area=1, parameters=1, device="cpu", dtype="float32", is_mini=False)
    assert card.title == "kontext"
    with_loras = ModelCard(**{**card.__dict__, "loras": ("watercolour:0.8", "sharp")})
    assert with_loras.title == "kontext + watercolour:0.8 + sharp"
