"""The files of LoRAs, and the model's own, as they come, go and change while a model is in use."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rekontext.contract import EditRefused, EditRequest, LoRARefused
from rekontext.engine import Engine, EngineBroken, hotswap
from rekontext.engine.hotswap import Hotswap
from rekontext.engine.tensors import TensorSource
from tests.api.brought import lora_file
from tests.parity.hotswapping import BOTH, INK, SETS, drawn, opening
from tests.parity.loras import trained
from tests.parity.with_peft import EDIT
from tests.small_model import SHAPES, build


def test_a_lora_that_is_put_in_its_folder_is_on_offer_at_once(folder: Path, shelf: Path) -> None:
    """Also one that overwrites another, in the middle of its use: what was read stays as it was."""
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        ink, wash = (drawn(engine, ((name, 1.0),)) for name in ("ink", "wash"))
        (shelf / "new.safetensors").write_bytes((shelf / "ink.safetensors").read_bytes())
        assert drawn(engine, (("new", 1.0),)) == ink
        with (shelf / "new.safetensors").open("r+b") as file:  # not another file: the same, cut and written anew
            file.truncate(0)
            assert drawn(engine, (("ink", 1.0),)) == ink
            file.write((shelf / "wash.safetensors").read_bytes())
        assert drawn(engine, (("new", 1.0),)) == wash


def test_a_lora_is_another_though_its_size_and_its_date_are_the_same(folder: Path, shelf: Path) -> None:
    """Two of one rank are of one size, and those that came out of an archive or an image may be of one date."""
    first, header = trained(folder, lora_alpha=4)
    other_way = {name: -tensor if "lora_B" in name else tensor for name, tensor in first.items()}
    save_file(other_way, shelf / "other", metadata=header)
    ink, other = shelf / "ink.safetensors", shelf / "other"
    for file in (ink, other):
        os.utime(file, (0, 0))
    assert ink.stat().st_size == other.stat().st_size
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        before = drawn(engine, INK)
        other.replace(ink)
        assert drawn(engine, INK) != before


def test_a_file_that_is_no_lora_by_its_size_is_not_read(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole model, say, that somebody put there."""
    swap = Hotswap(opening(torch.float32)(folder, ()), shelf)
    with (shelf / "model.safetensors").open("wb") as file:
        file.truncate(hotswap.FILE_BYTES_MAX + 1)
    with pytest.raises(LoRARefused):
        swap.find((("model", 1.0),))
    assert "a LoRA has at most" in caplog.text


def test_no_more_files_are_kept_in_memory_than_fit(folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last that was asked for always is."""
    swap = Hotswap(opening(torch.float32)(folder, ()), shelf)
    monkeypatch.setattr(hotswap, "_KEPT_BYTES_MAX", (shelf / "ink.safetensors").stat().st_size)
    for loras, kept in ((INK, ["ink"]), (BOTH, ["wash"]), (INK, ["ink"])):
        swap.find(loras)
        assert [Path(file).stem for file, *_ in swap._sources] == kept


def test_a_file_is_in_memory_once_for_all_who_wait_and_for_nobody_who_is_done(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits that wait hold theirs whatever is kept besides: in turns, each would bring a copy of its own."""
    read: list[weakref.ref[TensorSource]] = []

    def counted(*given: Any, **options: Any) -> TensorSource:
        source = TensorSource(*given, **options)
        read.append(weakref.ref(source))
        return source

    monkeypatch.setattr(hotswap, "TensorSource", counted)
    monkeypatch.setattr(hotswap, "_KEPT_BYTES_MAX", 0)
    swap = Hotswap(opening(torch.float32)(folder, ()), shelf)
    waiting = [swap.find(loras) for loras in (INK, SETS[3]) * 3]
    assert [source() is None for source in read] == [False, False]
    del waiting
    assert [source() is None for source in read] == [True, False], "the last one is kept"
    read.clear()
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        tickets = [engine.submit(replace(EDIT, loras=loras)) for loras in (INK, SETS[3], ())]
        for ticket in tickets:
            ticket.result(60)
        gc.collect()
        assert [source() is None for source in read] == [True, False], "the tickets are still here"


def in_memory(source: TensorSource) -> bool:
    [file] = {id(file): file for _, file in source._files.values()}.values()
    return file._data is not None


def test_files_of_edits_that_wait_take_no_memory_beyond_the_bound(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read again when it is the edit's turn, and it has the bytes that it would have had."""
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        expected = [drawn(engine, loras) for loras in SETS]
    monkeypatch.setattr(hotswap, "_KEPT_BYTES_MAX", 0)
    swap = Hotswap(opening(torch.float32)(folder, ()), shelf)
    waiting = [swap.find(loras) for loras in (INK, SETS[3], INK)]
    assert [in_memory(source) for source in swap._alive.values()] == [True, False]
    assert waiting[0] == waiting[2] != waiting[1]
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        tickets = [engine.submit(replace(EDIT, loras=loras)) for loras in SETS]
        assert [ticket.result(60).picture.tobytes() for ticket in tickets] == expected


def test_a_file_that_is_overwritten_while_its_edit_waits_makes_no_other_edit(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that merely lost its name is still read as it was."""
    monkeypatch.setattr(hotswap, "_KEPT_BYTES_MAX", 0)
    swap = Hotswap(opening(torch.float32)(folder, ()), shelf)
    ink, wash = swap.find(INK), swap.find((("wash", 1.0),))
    (shelf / "new").write_bytes((shelf / "wash.safetensors").read_bytes())
    (shelf / "new").replace(shelf / "ink.safetensors")
    swap.merge(ink)
    swap.find((("ink", 1.0),))  # and the bytes of the other go
    with (shelf / "wash.safetensors").open("r+b") as file:
        file.write(b"another")
    with pytest.raises(LoRARefused, match="the LoRA wash can't be merged"):
        swap.merge(wash)
    assert "wash.safetensors was changed since it was opened" in caplog.text


def test_a_file_that_an_account_brought_is_merged_as_one_on_offer_is(folder: Path, shelf: Path, tmp_path: Path) -> None:
    """What is wrong with it may be told to whoever brought it, but not where it lies here."""
    brought = {"ink@0123456789abcdef": tmp_path / "copies-of-0123"}
    brought["ink@0123456789abcdef"].write_bytes((shelf / "ink.safetensors").read_bytes())
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        mixed = replace(EDIT, loras=(("ink@0123456789abcdef", 0.7), ("wash", -0.5)), lora_files=brought)
        assert engine.submit(mixed).result().picture.tobytes() == drawn(engine, BOTH)
    with Engine.open(str(folder), device="cpu", dtype="float32") as engine:
        alone = replace(EDIT, loras=(("ink@0123456789abcdef", 0.7),), lora_files=brought)
        engine.submit(alone).result()
        named = lora_file(seed=1)
        brought["ink@0123456789abcdef"].write_bytes(named)
        with pytest.raises(LoRARefused) as refused:
            engine.submit(alone)
    assert str(refused.value) == (
        "the LoRA ink@0123456789abcdef can't be merged into this model: ink@0123456789abcdef changes what this model's "
        "transformer doesn't have, so it was made for another model: x"
    )


def test_an_edit_in_python_takes_files_by_their_paths(folder: Path, shelf: Path, tmp_path: Path) -> None:
    """Beside names of those in the folder; two of one name can't be told apart."""
    (tmp_path / "wash.safetensors").write_bytes((shelf / "wash.safetensors").read_bytes())
    asked: dict[str, Any] = {"steps": EDIT.steps, "guidance": EDIT.guidance, "seed": EDIT.seed}
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        ink, wash = shelf / "ink.safetensors", tmp_path / "wash.safetensors"
        found = engine.edit(EDIT.photo, EDIT.prompt, loras={ink: 0.7, wash: -0.5}, **asked)
        assert found == engine.edit(EDIT.photo, EDIT.prompt, loras={"ink": 0.7, "wash": -0.5}, **asked)
        mixed: dict[str | Path, float] = {ink: 0.7, "wash": -0.5}
        assert found == engine.edit(EDIT.photo, EDIT.prompt, loras=mixed, **asked)
        with pytest.raises(EditRefused, match="loras has wash twice"):
            engine.edit(EDIT.photo, EDIT.prompt, loras={**mixed, wash: 0.5}, **asked)
        with pytest.raises(LoRARefused, match="none can't be merged into this model: none can't be read: No such file"):
            engine.edit(EDIT.photo, EDIT.prompt, loras={tmp_path / "none.safetensors": 0.5}, **asked)


@contextmanager
def overwritten(file: Path) -> Iterator[None]:
    before = file.read_bytes()
    with file.open("r+b") as mapped:
        mapped.truncate(4096)
    try:
        yield
    finally:
        file.write_bytes(before)


def test_a_model_that_was_overwritten_is_not_read_again(tmp_path: Path, shelf: Path) -> None:
    """It is mapped: reading what isn't there any more would end the process. What computes still is whole, and a new
    start has the new model; but which weights this one had can't be known."""
    build(tmp_path / "model", SHAPES["deep"])
    weights_file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    with Engine.open(str(tmp_path / "model"), device="cpu", dtype="bfloat16", lora_folder=shelf) as engine:
        before = drawn(engine)
        with overwritten(weights_file):
            assert drawn(engine) == before
            with pytest.raises(EngineBroken, match=r"was changed since it was opened"):
                drawn(engine, INK)
        with pytest.raises(EngineBroken):
            engine.submit(EDIT)


def test_a_model_that_was_replaced_is_still_there(tmp_path: Path, shelf: Path) -> None:
    """A file that another took the name of, or that was removed, is mapped for as long as it is used."""
    build(tmp_path / "model", SHAPES["deep"])
    weights_file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    with Engine.open(str(tmp_path / "model"), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        expected = drawn(engine, INK)
        other = tmp_path / "other.safetensors"
        other.write_bytes(b"other")
        other.replace(weights_file)
        drawn(engine)
        assert drawn(engine, INK) == expected
        weights_file.unlink()
        drawn(engine)
        assert drawn(engine, INK) == expected


def test_loras_of_a_request_have_one_order_and_one_strength_each() -> None:
    request = EditRequest(id="", prompt="", seed=0, loras=(("b", 1), ("a", -0.5)))
    assert request.loras == (("a", -0.5), ("b", 1.0))
