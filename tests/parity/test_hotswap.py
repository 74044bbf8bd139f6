"""LoRAs that an edit asks for: its bytes are those of a model opened with them, whatever else is drawn."""

from __future__ import annotations

import gc
import json
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rekontext.contract import EditRequest, EditResult, LoRARefused
from rekontext.engine import EditCancelled, Engine, EngineBroken, core, hotswap
from rekontext.engine import edit as stages
from rekontext.engine.checkpoint import Parts, open_model
from rekontext.engine.compilation import compile_blocks
from rekontext.engine.fp8 import quantise
from rekontext.engine.hotswap import Hotswap, _Transformer
from rekontext.engine.memory import Placement
from rekontext.engine.packed import can_pack
from rekontext.engine.tensors import TensorSource
from rekontext.engine.transformer import KontextTransformer
from tests.engine.test_memory import ladder, run_out_of_memory
from tests.parity.loras import factors, trained, weights
from tests.parity.with_peft import EDIT
from tests.small_model import SHAPES, build

CPU: Final = torch.device("cpu")
INK: Final = (("ink", 0.7),)
NAN: Final = (("nan", 1.0),)
BOTH: Final = (("ink", 0.7), ("wash", -0.5))
SETS: Final[tuple[tuple[tuple[str, float], ...], ...]] = ((), INK, BOTH, (("wash", 1.0),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hotswap")
    build(folder, SHAPES["deep"])
    return folder


@pytest.fixture
def shelf(folder: Path, tmp_path: Path) -> Path:
    """`ink` changes most kinds of the transformer's weights, and CLIP; `wash` one of these, and a bias."""
    shelf = tmp_path / "loras"
    shelf.mkdir()
    first, header = trained(folder, lora_alpha=4)
    save_file(first, shelf / "ink.safetensors", metadata=header)
    second = factors(weights(folder, "transformer"), "transformer_blocks.0.attn.to_q", seed=7)
    bias = torch.ones(len(weights(folder, "transformer")["transformer_blocks.0.ff.net.2.bias"]))
    second = {f"transformer.{name}": tensor for name, tensor in second.items()}
    save_file(second | {"transformer.double_blocks.0.img_mlp.2.diff_b": bias}, shelf / "wash.safetensors")
    return shelf


Opening = Callable[[Path, tuple[str, ...]], Parts]


def opening(dtype: torch.dtype, *, packed: bool = False, traced: bool = False, **placement: bool) -> Opening:
    def opened(folder: Path, loras: tuple[str, ...]) -> Parts:
        parts = open_model(str(folder), device=CPU, dtype=dtype, placement=Placement(**placement), loras=loras)
        if packed:
            parts.transformer.pack()
        if traced:
            compile_blocks(parts.transformer, backend="eager")
        return parts

    return opened


WAYS: Final = {
    "float32": opening(torch.float32),
    "bfloat16": opening(torch.bfloat16),
    "packed": opening(torch.float32, packed=True),
    "traced by the compiler": opening(torch.float32, traced=True),
    "fp8": opening(torch.bfloat16, fp8=True),
    "on the host": opening(torch.bfloat16, fp8=True, text_on_host=True, modulation_on_host=True),
}


def drawn(engine: Engine, loras: tuple[tuple[str, float], ...] = ()) -> bytes:
    return engine.submit(replace(EDIT, loras=loras)).result().picture.tobytes()


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
            swap.wear(swap.find(loras))
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
        swap.wear(swap.find(loras))
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
            at_once.append({prepare, wear}.issubset(going_on))
            try:
                assert not threading.Event().wait(0.01 * choice.random())
                if choice.random() < full:
                    raise torch.OutOfMemoryError("the device is full")
                return honest(*given)
            finally:
                going_on.remove(honest)

        return call

    prepare, wear = stages.prepare, Hotswap.wear
    for stage in ("prepare", "velocities", "finish"):
        monkeypatch.setattr(stages, stage, hampered(getattr(stages, stage), full=0.04))
    monkeypatch.setattr(Hotswap, "wear", hampered(wear, full=0.06))
    monkeypatch.setattr(hotswap._Transformer, "_put", hampered(hotswap._Transformer._put, full=0.008))
    monkeypatch.setattr(core, "STARTED_EDITS_MAX", places)
    monkeypatch.setattr(core, "_SWAPPING_MAX", swapping)
    ends: Counter[tuple[type, bool]] = Counter()
    with (
        ThreadPoolExecutor(1) as side,
        Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine,
    ):
        engine._core.device._second = side
        tickets = []
        for i in range(60):
            kind = replace(EDIT, loras=NAN) if i % 8 == 7 else choice.choice(kinds)
            asked = replace(kind, id=str(i), account=str(i % 3), priority=choice.randrange(-2, 3))
            tickets.append((asked, engine.submit(asked)))
            assert not threading.Event().wait(0.02 * choice.random())
            if choice.random() < 0.2:
                choice.choice(tickets[-4:])[1].cancel()
        for asked, ticket in tickets:
            try:
                result = ticket.result(60)
            except (EditCancelled, LoRARefused, torch.OutOfMemoryError) as error:
                ends[type(error), asked.loras == NAN] += 1
            else:
                assert result.picture.tobytes() == alone[asked.loras, asked.steps]
                ends[EditResult, False] += 1
    assert not any(at_once), "weights were changed while an edit was being prepared"
    assert ends[EditResult, False] > 20
    assert min(ends[EditCancelled, False], ends[LoRARefused, True], ends[torch.OutOfMemoryError, False]) > 0
    assert not ends[LoRARefused, False], "only one that can't be merged is refused"


def test_weights_are_changed_no_oftener_than_pays(folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two accounts in turns, each with a LoRA of its own: the device isn't kept busy by changing to and fro."""
    worn: list[str] = []
    honest = Hotswap.wear

    def slow(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        worn.append(wanted.name)
        assert not threading.Event().wait(0.2)
        return honest(self, wanted)

    monkeypatch.setattr(Hotswap, "wear", slow)
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        tickets = [
            engine.submit(replace(EDIT, id=str(i), account=name, loras=((name, 1.0),), steps=4 + i % 3))
            for i in range(8)
            for name in ("ink", "wash")
        ]
        for ticket in tickets:
            ticket.result(60)
    assert worn[:2] in (["ink", "wash"], ["wash", "ink"])
    assert len(worn) == 2, "all of one, then all of the other: they are done within the time that one change holds"


def test_weights_are_not_changed_while_one_is_finished_that_has_the_last_place(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next of its LoRAs waits for its place, not for the others' turn to be over."""
    worn: list[str] = []
    wear, finish = Hotswap.wear, stages.finish

    def slow(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        worn.append(wanted.name)
        assert not threading.Event().wait(0.3 if wanted.name == "wash" else 0)
        return wear(self, wanted)

    def slowly_finished(model: stages.Model, edit: stages.Edit) -> Tensor:
        assert not threading.Event().wait(0.1)
        return finish(model, edit)

    monkeypatch.setattr(Hotswap, "wear", slow)
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
        engine._core._worn_until_s = 0.0
        short = [engine.submit(replace(EDIT, steps=1, loras=SETS[3], priority=2)) for _ in range(4)]
        for ticket in (*short, long):
            ticket.result(60)
    assert worn == ["ink:0.7", "wash", "ink:0.7"]


def test_weights_are_not_changed_for_one_that_has_no_place_yet(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter edit comes, whose turn it would be: nothing could be done with its weights but change them again."""
    worn: list[str] = []
    honest = Hotswap.wear

    def noted(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        worn.append(wanted.name)
        return honest(self, wanted)

    monkeypatch.setattr(Hotswap, "wear", noted)
    monkeypatch.setattr(core, "STARTED_EDITS_MAX", 1)
    monkeypatch.setattr(core, "_SWAPPING_MAX", 1.0)
    stepped = threading.Event()
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        long = engine.submit(replace(EDIT, steps=20, loras=INK), on_progress=lambda _: stepped.set())
        assert stepped.wait(60)
        short = engine.submit(replace(EDIT, steps=1, loras=SETS[3]))
        for ticket in (short, long):
            ticket.result(60)
    assert worn == ["ink:0.7", "wash"]


def test_nothing_reads_weights_that_are_still_being_written(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they are only queued to be when `wear` returns, on another stream than prepares edits."""
    told: list[str] = []

    def noted(name: str, honest: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            told.append(name)
            return honest(*given)

        return call

    monkeypatch.setattr(Hotswap, "wear", noted("wear", Hotswap.wear))
    monkeypatch.setattr(stages, "prepare", noted("prepare", stages.prepare))
    with Engine.open(str(folder), device="cpu", lora_folder=shelf) as engine:
        monkeypatch.setattr(engine._core.device, "synchronize", lambda: told.append("synchronize"))
        for loras in (INK, ()):
            drawn(engine, loras)
    assert [told[i : i + 3] for i, event in enumerate(told) if event == "wear"] == 2 * [
        ["wear", "synchronize", "prepare"]
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
    honest = Hotswap.wear

    def slow(self: Hotswap, wanted: hotswap.Adaptation) -> bool:
        assert not threading.Event().wait(0.5)
        return honest(self, wanted)

    monkeypatch.setattr(Hotswap, "wear", slow)
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        for account, loras in (("with", INK), ("without", ())):
            engine.submit(replace(EDIT, account=account, loras=loras)).result(60)
        outlook = engine.outlook()
        used_s = outlook.scheduler._use.by_account(time.monotonic())
        assert used_s["with"] - used_s["without"] > 0.3
    assert replace(outlook, worn=INK).emptied().worn == (), "a device that starts anew has merged nothing"


def test_what_cannot_be_merged_is_refused_and_harms_nobody(
    folder: Path, shelf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By name, never by where it lies; why is in the log."""
    state = weights(folder, "transformer")
    broken = factors(state, "transformer_blocks.0.attn.to_q")
    broken["transformer_blocks.0.attn.to_q.lora_B.weight"][0, 0] = torch.nan
    save_file({f"transformer.{name}": tensor for name, tensor in broken.items()}, shelf / "nan.safetensors")
    save_file(
        {"unet.mid.lora_A.weight": torch.ones(1, 2), "unet.mid.lora_B.weight": torch.ones(2, 1)},
        shelf / "sdxl.safetensors",
    )
    (shelf / "half.safetensors").write_bytes((shelf / "ink.safetensors").read_bytes()[:1000])
    (shelf / "empty.safetensors").touch()
    told = {"transformer.proj_out.lora_A.weight": {"dtype": "F4", "shape": [1, 2], "data_offsets": [0, 1]}}
    header = json.dumps(told).encode()
    (shelf / "fp4.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    with Engine.open(str(folder), device="cpu", dtype="float32", lora_folder=shelf) as engine:
        expected = {loras: drawn(engine, loras) for loras in ((), INK)}
        for name in ("sdxl", "half", "empty", "fp4"):
            with pytest.raises(
                LoRARefused, match=rf"^the LoRA {name} can't be merged into this model; the server's log"
            ):
                engine.submit(replace(EDIT, loras=((name, 1.0),)))
        with pytest.raises(
            LoRARefused, match=r"^the LoRA x isn't on offer here; on offer: empty, fp4, half, ink, nan and"
        ):
            engine.edit(None, "night", loras={"x": 1})
        with pytest.raises(LoRARefused, match=r"^the LoRA \.\./loras/ink isn't on offer"):
            engine.edit(None, "night", loras={"../loras/ink": 1})
        waiting = [engine.submit(replace(EDIT, id=name, loras=((name, 1.0),))) for name in ("nan", "ink", "nan")]
        for ticket in (waiting[0], waiting[2]):
            with pytest.raises(LoRARefused, match=r"^the LoRA nan can't be merged"):
                ticket.result(60)
        assert waiting[1].result(60).loras == (("ink", 1.0),)
        for loras, picture in expected.items():
            assert drawn(engine, loras) == picture
    assert "what it adds to transformer_blocks.0.attn.to_q is NaN or infinite" in caplog.text
    assert "fp4.safetensors: transformer.proj_out.lora_A.weight is stored as F4: only bfloat16" in caplog.text
    with Engine.open(str(folder), device="cpu") as engine, pytest.raises(LoRARefused, match="on offer: none"):
        engine.edit(None, "night", loras={"ink": 1})


def test_where_memory_runs_out_copies_go_before_precision_does(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is merged stays merged through a fall, and afterwards all is as if it had been opened that way."""
    smallest = {"fp8": True, "text_on_host": True, "modulation_on_host": True}
    expected = {}
    for loras in (INK, BOTH, ()):
        entries = tuple(f"{shelf / name}.safetensors:{strength}" for name, strength in loras)
        with Engine(opening(torch.bfloat16, **smallest)(folder, entries)) as engine:
            expected[loras] = drawn(engine, loras=())
    monkeypatch.setattr(hotswap._Transformer, "_has_room", lambda *_: True)
    again = run_out_of_memory(monkeypatch)
    parts = opening(torch.bfloat16)(folder, ())
    with Engine(parts, plans=ladder(Placement(), Placement(**smallest)), lora_folder=shelf) as engine:
        drawn(engine, INK)
        assert engine.card.dtype == "bfloat16"
        again()
        drawn(engine, INK)
        assert engine.card.dtype == "fp8"
        for loras, picture in expected.items():
            assert drawn(engine, loras) == picture


def test_running_out_of_memory_half_way_through_merging_falls_to_the_next_plan_and_goes_on(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(opening(torch.bfloat16, fp8=True)(folder, ()), lora_folder=shelf) as engine:
        expected = {loras: drawn(engine, loras) for loras in (INK, ())}
    put: list[str] = []
    honest = hotswap._Transformer._put

    def once_full(self: hotswap._Transformer, name: str, wide: Tensor) -> None:
        put.append(name)
        if len(put) == 4:
            raise torch.OutOfMemoryError("the device is full")
        honest(self, name, wide)

    monkeypatch.setattr(hotswap._Transformer, "_put", once_full)
    plans = ladder(Placement(), Placement(fp8=True))
    with Engine(opening(torch.bfloat16)(folder, ()), plans=plans, lora_folder=shelf) as engine:
        for loras, picture in expected.items():
            assert drawn(engine, loras) == picture
        assert engine.card.dtype == "fp8"


@pytest.mark.parametrize("fell", [False, True])
def test_what_a_file_has_in_e4m3_is_put_back_as_it_was_held(
    folder: Path, single: Path, shelf: Path, *, fell: bool
) -> None:
    """With the file's own scales, or with those of a fall to fp8: an edit without LoRAs, before and after one with
    them, gets one picture."""
    state = load_file(single)
    for name in [name for name, tensor in state.items() if tensor.ndim == 2]:
        scale = state[name].abs().max() / 300
        state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
        state[f"{name.removesuffix('weight')}scale_weight"] = scale
    save_file(state, single)
    parts = opening(torch.bfloat16, fp8=not fell)(single, ())
    if fell:
        quantise(parts.transformer)
    before = {name: tensor.clone() for name, tensor in parts.transformer.state_dict().items()}
    swap = Hotswap(parts, shelf)
    for loras in (INK, ()):
        swap.wear(swap.find(loras))
        found = parts.transformer.state_dict()
        same = [name for name, tensor in found.items() if torch.equal(tensor.float(), before[name].float())]
        assert (len(same) == len(found)) == (loras == ()), found.keys() - same


class PassOfOneNorm:
    """Copies what it needs of the weights, as a GPU's pass does."""

    def __init__(self, transformer: KontextTransformer) -> None:
        self.weights_changed(transformer)

    def weights_changed(self, transformer: KontextTransformer) -> None:
        self.scale = transformer.get_parameter("double_blocks.0.img_attn.norm.query_norm.scale").clone()

    def __call__(self, *_: object) -> Tensor:
        raise AssertionError("no step is run")


def test_what_was_put_back_before_a_failure_counts_as_changed(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made something of the weights as they were is told by the next call, which finds nothing left to do."""
    transformer, clip, t5 = (weights(folder, part) for part in ("transformer", "text_encoder", "text_encoder_2"))
    scale = torch.full_like(transformer["transformer_blocks.0.attn.norm_q.weight"], 0.5)
    norm = {"transformer.double_blocks.0.img_attn.norm.query_norm.diff": scale}
    q_of_clip, q_of_t5 = (
        next(name for name in state if name.endswith(end)).removesuffix(".weight")
        for state, end in ((clip, "q_proj.weight"), (t5, "SelfAttention.q.weight"))
    )
    words = {f"text_encoder.{name}": tensor for name, tensor in factors(clip, q_of_clip).items()}
    save_file(norm | words, shelf / "norm.safetensors")
    save_file({f"text_encoder_2.{n}": t for n, t in factors(t5, q_of_t5).items()}, shelf / "t5.safetensors")

    def full(self: hotswap._Held, name: str) -> None:
        raise torch.OutOfMemoryError(f"the device is full, and can't set {name} aside")

    for part, failing in ((hotswap._Transformer, "wash"), (hotswap._Encoder, "t5")):
        parts = opening(torch.float32)(folder, ())
        own = PassOfOneNorm(parts.transformer)
        parts.transformer.use_pass(own)
        before, swap = own.scale, Hotswap(parts, shelf)
        assert swap.wear(swap.find((("norm", 1.0),)))
        assert torch.equal(own.scale, before + scale)
        other = swap.find(((failing, 1.0),))
        with monkeypatch.context() as short:
            short.setattr(part, "_set_aside", full)
            with pytest.raises(torch.OutOfMemoryError):
                swap.wear(other)
        is_other_text = swap.wear(hotswap.NONE)
        assert torch.equal(own.scale, before)
        assert is_other_text


def test_a_pass_that_is_shared_is_not_given_up_for_copies(
    folder: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it runs out of memory these go, and then it is shared as before."""
    monkeypatch.setattr(hotswap._Transformer, "_has_room", lambda *_: True)
    honest, shared = stages.velocities, [0]

    def short_of_memory(model: stages.Model, edits: Sequence[stages.Edit]) -> list[torch.Tensor]:
        shared[0] += len(edits) > 1
        if shared[0] == 1 and len(edits) > 1:
            raise torch.OutOfMemoryError("the device is full")
        return honest(model, edits)

    monkeypatch.setattr(stages, "velocities", short_of_memory)
    with Engine(opening(torch.float32)(folder, ()), batch="any", lora_folder=shelf) as engine:
        shape = stages.plan(engine.model, EDIT).shape
        engine._core.batching.limits[shape], engine._core.batching._tried[shape] = 2, 4
        for ticket in [engine.submit(replace(EDIT, id=str(i), steps=20, loras=INK)) for i in range(2)]:
            assert ticket.result(60).loras == INK
        assert engine._core.batching.limit(shape) == 2
    assert shared[0] > 2


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
