"""What can't be merged, and what is done where memory runs out: who comes next has the right weights all the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rekontext.contract import LoRARefused
from rekontext.engine import Engine, hotswap
from rekontext.engine import edit as stages
from rekontext.engine.fp8 import quantise
from rekontext.engine.hotswap import Hotswap
from rekontext.engine.memory import Placement
from rekontext.engine.transformer import KontextTransformer
from tests.engine.test_memory import ladder, run_out_of_memory
from tests.parity.hotswapping import BOTH, INK, drawn, opening
from tests.parity.loras import factors, weights
from tests.parity.with_peft import EDIT


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
        nan, ink = [engine.submit(replace(EDIT, id=name, loras=((name, 1.0),))) for name in ("nan", "ink")]
        with pytest.raises(LoRARefused, match=r"^the LoRA nan can't be merged"):
            nan.result(60)
        assert ink.result(60).loras == (("ink", 1.0),)
        with pytest.raises(LoRARefused, match=r"^the LoRA nan can't be merged"):  # as is known by now
            engine.submit(replace(EDIT, loras=(("nan", 1.0),)))
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
        swap.merge(swap.find(loras))
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
        assert swap.merge(swap.find((("norm", 1.0),)))
        assert torch.equal(own.scale, before + scale)
        other = swap.find(((failing, 1.0),))
        with monkeypatch.context() as short:
            short.setattr(part, "_set_aside", full)
            with pytest.raises(torch.OutOfMemoryError):
                swap.merge(other)
        is_other_text = swap.merge(hotswap.NONE)
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
