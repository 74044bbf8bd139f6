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

from rekontext.contract import EditRequest, LoRARefused
from rekontext.engine import Engine, EngineBroken, hotswap
from rekontext.engine.hotswap import Hotswap
from rekontext.engine.tensors import TensorSource
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
