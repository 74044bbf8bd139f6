"""LoRAs that an edit asks for: its bytes are those of a model opened with them, whatever else is drawn."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Final, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rekontext.contract import EditRequest, EditResult, LoRARefused
from rekontext.engine import EditCancelled, Engine, core, hotswap
from rekontext.engine import edit as stages
from rekontext.engine.hotswap import Hotswap, _Transformer
from rekontext.engine.packed import can_pack
from tests.parity.hotswapping import BOTH, INK, SETS, drawn, opening
from tests.parity.loras import factors, weights
from tests.parity.with_peft import EDIT

WAYS: Final = {
    "float32": opening(torch.float32),
    "bfloat16": opening(torch.bfloat16),
    "packed": opening(torch.float32, packed=True),
    "traced by the compiler": opening(torch.float32, traced=True),
    "fp8": opening(torch.bfloat16, fp8=True),
    "on the host": opening(torch.bfloat16, fp8=True, text_on_host=True, modulation_on_host=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_gets_the_bytes_of_a_model_opened_with_its_loras(way: str, folder: Path, shelf: Path) -> None:
    """One after the other, there and back, in every way of holding weights; also where copies are set aside."""
    if way == "packed" and not can_pack(torch.float32):
        pytest.skip("this CPU's library packs nothing")
    expected = {}
    for loras in SETS:
        entries = tuple(f"{shelf / name}.safetensors:{strength}" for name, strength in loras)
        with Engine(WAYS[way](folder, entries)) as engine:
            expected[loras] = drawn(engine)
    assert len(set(expected.values())) == len(SETS), "LoRAs that change nothing would agree, too"
    with Engine(WAYS[way](folder, ()), lora_folder=shelf) as engine:
        for loras in (BOTH, (), INK, BOTH, SETS[3], ()):
            assert drawn(engine, loras) == expected[loras], loras
            assert engine.submit(replace(EDIT, loras=loras)).result().loras == loras


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_that_are_set_aside_give_the_same_bytes_as_the_file(
    dtype: torch.dtype, folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that has room for them. In bfloat16 the file has more digits than they, and is read again."""
    monkeypatch.setattr(hotswap._Transformer, "_has_room", lambda *_: True)
    for fp8 in (False, True):
        expected = {}
        for loras in SETS:
            entries = tuple(f"{shelf / name}.safetensors:{strength}" for name, strength in loras)
            expected[loras] = opening(dtype, fp8=fp8)(folder, entries).transformer.state_dict()
        parts = opening(dtype, fp8=fp8)(folder, ())
        swap = Hotswap(parts, shelf)
        for loras in (BOTH, INK, (), SETS[3], ()):
            swap.merge(swap.find(loras))
            assert swap.has_copies or loras != BOTH
            for name, tensor in parts.transformer.state_dict().items():
                assert torch.equal(tensor.float(), expected[loras][name].float()), (loras, name)
            if loras == INK:
                swap.release()
                assert not swap.has_copies
    # A model that was read from no file has nothing but its copies.
    parts = replace(opening(dtype)(folder, ()), stored=None)
    swap, before = Hotswap(parts, shelf), {n: t.clone() for n, t in parts.transformer.state_dict().items()}
    for loras in (BOTH, ()):
        swap.merge(swap.find(loras))
        same = all(torch.equal(t, before[n]) for n, t in parts.transformer.state_dict().items())
        assert same == (loras == ())
    assert not swap.has_copies, "what can't be done without isn't given back"


def test_edits_side_by_side_each_get_their_own(folder: Path, shelf: Path) -> None:
    """Steps of one between steps of another, as they come and are overtaken."""
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        alone = {loras: drawn(engine, loras) for loras in SETS}
        tickets = [
            (loras, engine.submit(replace(EDIT, id=str(i), account=str(i), steps=EDIT.steps, loras=loras)))
            for i, loras in enumerate(SETS * 4)
        ]
        for loras, ticket in tickets:
            assert ticket.result(60).picture.tobytes() == alone[loras]


@pytest.mark.parametrize(("places", "swapping"), [(1, 0.1), (2, 1.0), (8, 1.0)])
def test_whatever_happens_each_gets_its_own_or_an_error(
    places: int, swapping: float, folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared and finished on a thread of their own, as on a GPU, of which few places or many are taken; cancelled at
    any moment; refused, and short of memory, half way."""
    choice = random.Random(places)
    state = weights(folder, "transformer")
    broken = factors(state, "transformer_blocks.0.attn.to_q") | factors(state, "single_transformer_blocks.0.attn.to_q")
    broken["single_transformer_blocks.0.attn.to_q.lora_B.weight"][0, 0] = torch.nan
    save_file({f"transformer.{name}": tensor for name, tensor in broken.items()}, shelf / "nan.safetensors")
    kinds = [replace(EDIT, loras=loras, steps=steps) for loras in SETS for steps in (1, 3)]
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        alone = {(kind.loras, kind.steps): engine.submit(kind).result().picture.tobytes() for kind in kinds}

    going_on: list[Callable[..., object]] = []
    at_once: list[bool] = []

    def hampered(honest: Callable[..., object], *, full: float) -> Callable[..., object]:
        def call(*given: object) -> object:
            going_on.append(honest)
            at_once.append({prepare, merge}.issubset(going_on))
            try:
                assert not threading.Event().wait(0.01 * choice.random())
                if choice.random() < full:
                    raise torch.OutOfMemoryError("the device is full")
                return honest(*given)
            finally:
                going_on.remove(honest)

        return call

    prepare, merge = stages.prepare, Hotswap.merge
    for stage in ("prepare", "velocities", "finish"):
        monkeypatch.setattr(stages, stage, hampered(getattr(stages, stage), full=0.04))
    monkeypatch.setattr(Hotswap, "merge", hampered(merge, full=0.06))
    monkeypatch.setattr(hotswap._Transformer, "_put", hampered(hotswap._Transformer._put, full=0.008))
    monkeypatch.setattr(core, "STARTED_EDITS_MAX", places)
    monkeypatch.setattr(core, "_SWAPPING_MAX", swapping)
    ends: Counter[tuple[type, bool]] = Counter()

    def is_nan(asked: EditRequest) -> bool:
        return any(name == "nan" for name, _ in asked.loras)

    with (
        ThreadPoolExecutor(1) as side,
        Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine,
    ):
        engine._core.device._second = side
        tickets = []
        for i in range(60):
            # At another strength each time: what was refused before isn't merged again.
            kind = replace(EDIT, loras=(("nan", 1 + i / 100),)) if i % 8 == 7 else choice.choice(kinds)
            asked = replace(kind, id=str(i), account=str(i % 3), priority=choice.randrange(-2, 3))
            tickets.append((asked, engine.submit(asked)))
            assert not threading.Event().wait(0.02 * choice.random())
            if choice.random() < 0.2:
                choice.choice(tickets[-4:])[1].cancel()
        for asked, ticket in tickets:
            try:
                result = ticket.result(60)
            except (EditCancelled, LoRARefused, torch.OutOfMemoryError) as error:
                ends[type(error), is_nan(asked)] += 1
            else:
                assert result.picture.tobytes() == alone[asked.loras, asked.steps]
                ends[EditResult, False] += 1
    assert not any(at_once), "weights were changed while an edit was being prepared"
    assert ends[EditResult, False] > 20
    assert min(ends[EditCancelled, False], ends[LoRARefused, True], ends[torch.OutOfMemoryError, False]) > 0
    assert not ends[LoRARefused, False], "only one that can't be merged is refused"


def test_weights_are_changed_no_oftener_than_pays(folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two accounts in turns, each with a LoRA of its own: the device isn't kept busy by changing to and fro."""
    merged: list[str] = []
    honest = Hotswap.merge

    def slow(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        merged.append(wanted.name)
        assert not threading.Event().wait(0.2)
        return honest(self, wanted)

    monkeypatch.setattr(Hotswap, "merge", slow)
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        tickets = [
            engine.submit(replace(EDIT, id=str(i), account=name, loras=((name, 1.0),), steps=4 + i % 3))
            for i in range(8)
            for name in ("ink", "wash")
        ]
        for ticket in tickets:
            ticket.result(60)
    assert merged[:2] in (["ink", "wash"], ["wash", "ink"])
    assert len(merged) == 2, "all of one, then all of the other: they are done within the time that one change holds"


def test_weights_are_not_changed_while_one_is_finished_that_has_the_last_place(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next of its LoRAs waits for its place, not for the others' turn to be over."""
    merged: list[str] = []
    merge, finish = Hotswap.merge, stages.finish

    def slow(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        merged.append(wanted.name)
        assert not threading.Event().wait(0.3 if wanted.name == "wash" else 0)
        return merge(self, wanted)

    def slowly_finished(model: stages.Model, edit: stages.Edit, picture: int) -> Tensor:
        assert not threading.Event().wait(0.1)
        return finish(model, edit, picture)

    monkeypatch.setattr(Hotswap, "merge", slow)
    monkeypatch.setattr(stages, "finish", slowly_finished)
    monkeypatch.setattr(core, "STARTED_EDITS_MAX", 2)
    stepped = threading.Event()
    with (
        ThreadPoolExecutor(1) as side,
        Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine,
    ):
        engine._core.device._second = side
        long = engine.submit(replace(EDIT, steps=50, loras=INK), on_progress=lambda _: stepped.set())
        assert stepped.wait(60)
        engine._core._kept_until_s = 0.0
        short = [engine.submit(replace(EDIT, steps=1, loras=SETS[3], priority=2)) for _ in range(4)]
        for ticket in (*short, long):
            ticket.result(60)
    assert merged == ["ink:0.7", "wash", "ink:0.7"]


def test_weights_are_not_changed_for_one_that_has_no_place_yet(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter edit comes, whose turn it would be: nothing could be done with its weights but change them again."""
    merged: list[str] = []
    honest = Hotswap.merge

    def noted(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        merged.append(wanted.name)
        return honest(self, wanted)

    monkeypatch.setattr(Hotswap, "merge", noted)
    monkeypatch.setattr(core, "STARTED_EDITS_MAX", 1)
    monkeypatch.setattr(core, "_SWAPPING_MAX", 1.0)
    stepped = threading.Event()
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        long = engine.submit(replace(EDIT, steps=20, loras=INK), on_progress=lambda _: stepped.set())
        assert stepped.wait(60)
        short = engine.submit(replace(EDIT, steps=1, loras=SETS[3]))
        for ticket in (short, long):
            ticket.result(60)
    assert merged == ["ink:0.7", "wash"]


def test_nothing_reads_weights_that_are_still_being_written(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they are only queued to be when `merge` returns, on another stream than prepares edits."""
    told: list[str] = []

    def noted(name: str, honest: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            told.append(name)
            return honest(*given)

        return call

    monkeypatch.setattr(Hotswap, "merge", noted("merge", Hotswap.merge))
    monkeypatch.setattr(stages, "prepare", noted("prepare", stages.prepare))
    with Engine.open(str(folder), device="cpu", lora_folder=shelf) as engine:
        monkeypatch.setattr(engine._core.device, "synchronize", lambda: told.append("synchronize"))
        for loras in (INK, ()):
            drawn(engine, loras)
    assert [told[i : i + 3] for i, event in enumerate(told) if event == "merge"] == 2 * [
        ["merge", "synchronize", "prepare"]
    ]


def test_copies_leave_a_gpu_what_edits_need_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is free, also within PyTorch's own; and only for what is there, not for what waits on the host."""
    held = _Transformer(opening(torch.float32)(folder, ()).transformer, None, opened_in_fp8=False)
    free = hotswap._RESERVE_BYTES + 900
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free - 500, 2 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 200)

    def has_room(*sizes: int, on: str = "cuda") -> bool:
        tensors = tuple(SimpleNamespace(device=torch.device(on), nbytes=size) for size in sizes)
        return held._has_room(cast("tuple[Tensor, ...]", tensors))

    assert has_room(900)
    assert has_room(800, 100)
    assert not has_room(800, 101)
    assert not has_room(1, on="cpu")


def test_what_changing_takes_is_in_the_estimate_and_in_the_result(folder: Path, shelf: Path) -> None:
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        result = engine.submit(replace(EDIT, loras=INK)).result()
        assert set(result.timings) == {"swap", "prepare", "denoise", "decode"}
        assert result.inference_s == pytest.approx(sum(result.timings.values()))
        same, other, none = (engine.estimate(replace(EDIT, loras=loras)).finish_s for loras in (INK, BOTH, ()))
        assert other - same == none - same == pytest.approx(engine.costs.predict("swap", 1))
        assert set(engine.submit(EDIT).result().timings) == {"prepare", "denoise", "decode"}


def test_whoever_asks_for_loras_has_used_the_device_while_they_were_merged(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not who has them taken out again."""
    honest = Hotswap.merge

    def slow(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        assert not threading.Event().wait(0.5)
        return honest(self, wanted)

    monkeypatch.setattr(Hotswap, "merge", slow)
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        for account, loras in (("with", INK), ("without", ())):
            engine.submit(replace(EDIT, account=account, loras=loras)).result(60)
        outlook = engine.outlook()
        used_s = outlook.scheduler._use.by_account(time.monotonic())
        assert used_s["with"] - used_s["without"] > 0.3
    assert replace(outlook, merged=INK).emptied().merged == (), "a device that starts anew has merged nothing"
