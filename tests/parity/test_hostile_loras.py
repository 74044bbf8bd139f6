"""Files of strangers: whatever is in them, the engine goes on, and who brought them bears it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rekontext.contract import EditRequest, LoRARefused
from rekontext.engine import Engine, hotswap, lora
from rekontext.engine.batching import Batching
from rekontext.engine.memory import Placement
from rekontext.models.lora_files import check_lora
from tests.engine.test_memory import ladder
from tests.parity.hotswapping import INK, drawn, opening
from tests.parity.loras import factors, weights
from tests.parity.with_peft import EDIT

NAME = "odd@0123456789abcdef"
Q = "transformer.transformer_blocks.0.attn.to_q"


def asking(file: Path, strength: float = 1.0) -> EditRequest:
    """An edit that brings a file."""
    return replace(EDIT, account="stranger", loras=((NAME, strength),), lora_files={NAME: file})


def factors_of_q(folder: Path, **changes: Tensor) -> dict[str, Tensor]:
    found = factors(weights(folder, "transformer"), "transformer_blocks.0.attn.to_q")
    return {f"transformer.{name}": tensor for name, tensor in found.items()} | changes


def raw(header: dict[str, Any], size: int) -> bytes:
    told = json.dumps(header).encode()
    return len(told).to_bytes(8, "little") + told + bytes(size)


def with_a_scale(shape: list[int]) -> Callable[[Path], bytes]:
    """Of a file whose factor has a scale of this shape."""

    def made(folder: Path) -> bytes:
        o, d = weights(folder, "transformer")["transformer_blocks.0.attn.to_q.weight"].shape
        sizes = {"lora_A.weight": [1, d], "lora_B.weight": [o, 1], "lora_A.scale_weight": shape}
        header, at = {}, 0
        for name, shape_ in sizes.items():
            size = 4 * int(torch.tensor(shape_).prod())
            header[f"{Q}.{name}"] = {"dtype": "F32", "shape": shape_, "data_offsets": [at, at + size]}
            at += size
        return raw(header, at)

    return made


@pytest.mark.parametrize("shape", [[1, 1, 1], [0, 2**30], [0, 2**30, 2**30, 2**30], [1] * 8, [2, 2]])
def test_a_scale_of_any_shape_ends_no_engine(folder: Path, tmp_path: Path, shape: list[int]) -> None:
    """It is refused when the edit is submitted or when its turn comes, and the next edit is as ever."""
    file = tmp_path / "odd"
    file.write_bytes(with_a_scale(shape)(folder))
    check_lora(file)
    with Engine.open(str(folder), device="cpu", dtype="float32") as engine:
        before = drawn(engine)
        with pytest.raises(LoRARefused, match=f"the LoRA {NAME} can't be merged into this model"):
            engine.submit(asking(file)).result(60)
        assert drawn(engine) == before


def test_whatever_goes_wrong_with_a_file_is_its_edit_s_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """But what the device says of itself isn't."""
    save_file(factors_of_q(folder), tmp_path / "odd")
    fault: list[Exception] = [TypeError("something that nobody thought of")]

    def fail(*_given: object, **_asked: object) -> Tensor:
        raise fault[0]

    with Engine.open(str(folder), device="cpu", dtype="float32") as engine:
        before = drawn(engine)
        with monkeypatch.context() as patched:
            patched.setattr(lora._Layer, "change", fail)
            with pytest.raises(LoRARefused, match="it holds what no LoRA does"):
                engine.submit(asking(tmp_path / "odd")).result(60)
        assert "something that nobody thought of" in caplog.text
        assert drawn(engine) == before
    fault[0] = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with Engine.open(str(folder), device="cpu", dtype="float32") as engine, monkeypatch.context() as patched:
        patched.setattr(lora._Layer, "change", fail)
        with pytest.raises(Exception, match=r"broke|illegal") as broke:
            engine.submit(asking(tmp_path / "odd")).result(60)
        assert not isinstance(broke.value, LoRARefused)


def test_pixels_that_a_lora_makes_nan_are_its_edit_s(folder: Path, tmp_path: Path) -> None:
    """No fault of the server's, which would try it again; and which passes may be shared is measured by others."""
    file = tmp_path / "odd"
    found = factors(weights(folder, "transformer"), "proj_out")
    state = {f"transformer.{name}": tensor for name, tensor in found.items()}
    save_file(state | {"transformer.proj_out.alpha": torch.tensor(1e38)}, file)
    with Engine.open(str(folder), device="cpu", dtype="float32") as engine:
        before = drawn(engine)
        with pytest.raises(LoRARefused, match=f"with {NAME} merged, the model's pixels are NaN or infinite"):
            engine.submit(asking(file)).result(60)
        assert drawn(engine) == before


def test_nothing_is_learned_of_passes_that_are_not_finite() -> None:
    """NaN is unequal to itself: edits of this shape would share no pass any more."""
    batching = Batching(mode="exact")
    times = iter([0.0, 2.0, 3.0, 3.0, 5.0, 6.0])
    nan, good = [torch.full((2,), torch.nan)] * 2, [torch.ones(2)] * 2
    shape: Any = "shape"

    velocities: list[Tensor] = []
    for found, is_finite in ((nan, False), (good, True)):
        velocities[:] = found
        before = batching.limit(shape)
        batching.learn(shape, tokens=1, alone=velocities.copy, together=velocities.copy, clock=lambda: next(times))
        assert (batching.limit(shape) != before) == is_finite


def test_a_rank_beyond_the_matrix_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its product would take memory that no adapter needs."""
    o, d = weights(folder, "transformer")["transformer_blocks.0.attn.to_q.weight"].shape
    rank = max(o, d) + 1
    state = {f"{Q}.lora_A.weight": torch.zeros(rank, d), f"{Q}.lora_B.weight": torch.zeros(o, rank)}
    save_file(state, tmp_path / "odd")
    with (
        Engine.open(str(folder), device="cpu", dtype="float32") as engine,
        pytest.raises(LoRARefused, match=f"has rank {rank}, more than the {max(o, d)} rows or columns"),
    ):
        engine.submit(asking(tmp_path / "odd"))


def test_a_caller_s_file_takes_no_precision_away_from_others(
    folder: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory runs out as it is merged its edit fails; with an operator's the next plan is fallen to."""
    save_file(factors_of_q(folder), tmp_path / "odd")
    honest = hotswap._Transformer._put
    full = [True]

    def once_full(self: hotswap._Transformer, name: str, wide: Tensor) -> None:
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("the device is full")
        honest(self, name, wide)

    monkeypatch.setattr(hotswap._Transformer, "_put", once_full)
    plans = ladder(Placement(), Placement(fp8=True))
    with Engine(opening(torch.bfloat16)(folder, ()), plans=plans, lora_folder=shelf) as engine:
        with pytest.raises(LoRARefused, match=f"there is no memory to merge the LoRA {NAME}"):
            engine.submit(asking(tmp_path / "odd")).result(60)
        assert engine.card.dtype == "bfloat16"
        full.append(True)
        drawn(engine, INK)
        assert engine.card.dtype == "fp8"


def test_a_file_that_was_refused_is_not_merged_again_and_its_time_is_paid_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each edit that asks for it would keep the device busy for nothing."""
    state = factors_of_q(folder)
    state[f"{Q}.lora_B.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "odd")
    merges: list[str] = []
    honest = hotswap.Hotswap.merge

    def counted(self: hotswap.Hotswap, wanted: hotswap.Adaptation) -> bool:
        merges.append(wanted.name)
        return honest(self, wanted)

    monkeypatch.setattr(hotswap.Hotswap, "merge", counted)
    with Engine.open(str(folder), device="cpu", dtype="float32") as engine:
        served: list[float] = []
        honestly = engine._core._scheduler.served

        def noted(number: object, *, took_s: float, **others: Any) -> None:
            served.append(took_s)
            honestly(number, took_s=took_s, **others)

        monkeypatch.setattr(engine._core._scheduler, "served", noted)
        first = engine.submit(asking(tmp_path / "odd"))
        with pytest.raises(LoRARefused, match="is NaN or infinite"):
            first.result(60)
        for _ in range(5):
            with pytest.raises(LoRARefused, match="is NaN or infinite"):
                engine.submit(asking(tmp_path / "odd"))
    assert merges == [NAME]
    assert len(served) == 1
    assert served[0] > 0
