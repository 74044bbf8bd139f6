"""Which number formats a weight file may hold, and that others are refused by name instead of making noise."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rekontext.engine import CheckpointError
from rekontext.engine.tensors import TensorSource

ROWS, COLUMNS = 4, 64
E4M3 = torch.float8_e4m3fn
OPENED = (
    "only bfloat16, float16, float32, e4m3 or e5m2 with one scale or one for each row, "
    "and GGUF's Q2 to Q8 can be opened"
)


def source(folder: Path, **tensors: Tensor) -> TensorSource:
    """Of one layer's tensors, in a file of their own."""
    path = folder / "model.safetensors"
    save_file({f"layer.{name}": tensor for name, tensor in tensors.items()}, path)
    return TensorSource([path])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, E4M3, torch.float8_e5m2])
def test_what_needs_no_scale_is_read_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(ROWS, COLUMNS).to(dtype)
    assert torch.equal(source(tmp_path, weight=weight).read("layer.weight", torch.float32), weight.float())


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (ROWS,), (ROWS, 1)])
def test_one_scale_or_one_for_each_row(tmp_path: Path, suffix: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """A scale means the same beside every format: files leave some layers wide and scale them too."""
    weight, scale = torch.randn(ROWS, COLUMNS).to(dtype), torch.rand(shape) + 1
    opened = source(tmp_path, weight=weight, **{suffix: scale})
    for again in opened, opened, TensorSource(opened.paths, mapped=False):
        found = again.read("layer.weight", torch.float32)
        assert torch.equal(found, weight.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"weight": torch.ones(ROWS, COLUMNS, dtype=torch.int8)}, "is stored as I8"),
        (
            {
                "weight": torch.ones(ROWS, COLUMNS, dtype=torch.int8),
                "weight_scale": torch.ones(ROWS, 1),
                "comfy_quant": torch.ones(9, dtype=torch.uint8),
            },
            "is stored as I8",
        ),
        (
            {
                "weight": torch.ones(ROWS, COLUMNS // 2, dtype=torch.uint8),
                "weight_scale": torch.ones(ROWS, COLUMNS // 16).to(E4M3),
                "weight_scale_2": torch.ones(()),
            },
            "is stored as U8",
        ),
        (
            {
                "weight": torch.ones(ROWS, COLUMNS).to(E4M3),
                "weight_scale": torch.ones(ROWS, COLUMNS // 32, dtype=torch.uint8),
            },
            "_scale is stored as U8",
        ),
        (
            {"weight": torch.ones(ROWS, COLUMNS).to(E4M3), "weight_scale": torch.ones(ROWS, COLUMNS // 32)},
            r"has scales of shape \[4, 2\] for 4 rows",
        ),
        (
            {"weight": torch.ones(ROWS, ROWS).to(E4M3), "weight_scale": torch.ones(1, ROWS)},
            r"has scales of shape \[1, 4\] for 4 rows",
        ),
    ],
    ids=["int8", "int8-with-scales", "nvfp4", "mxfp8", "blocks", "columns"],
)
def test_other_formats_are_refused(tmp_path: Path, tensors: dict[str, Tensor], why: str) -> None:
    """Both ways of reading name the file, the tensor and what can be opened."""
    stored = source(tmp_path, **tensors)
    assert list(stored.names()) == ["layer.weight"]
    message = rf"model\.safetensors: layer\.weight.*{why}: {OPENED}"
    with pytest.raises(CheckpointError, match=message):
        stored.read("layer.weight", torch.bfloat16)
    if tensors["weight"].dtype == E4M3:
        with pytest.raises(CheckpointError, match=message):
            stored.read_e4m3("layer.weight")
    else:
        assert stored.read_e4m3("layer.weight") is None


def test_a_format_that_pytorch_has_no_name_for_is_refused(tmp_path: Path) -> None:
    """The header is enough to say so."""
    header = b'{"layer.weight":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(CheckpointError, match=r"layer\.weight is stored as F8_E8M0"):
        TensorSource([tmp_path / "odd.safetensors"]).read("layer.weight", torch.float32)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """With its prefix, as whoever looks into the file will see it."""
    stored = source(tmp_path, weight=torch.ones(2)).with_prefix("layer.")
    for look in (stored.shape, stored.read_e4m3, lambda name: stored.read(name, torch.float32)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: missing tensor: layer\.bias"):
            look("bias")
