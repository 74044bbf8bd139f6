"""A stranger's file is looked at before an engine opens it, and what it isn't is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rekontext.models.lora_files import HEADER_BYTES_MAX, NoLora, check_lora

GOOD = {
    "transformer.x.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    "transformer.x.lora_B.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},
}
BYTES = bytes(16)


def packed(header: object, tensors: bytes = BYTES) -> bytes:
    told = json.dumps(header).encode()
    return len(told).to_bytes(8, "little") + told + tensors


def with_settings(**settings: object) -> bytes:
    return packed({**GOOD, "__metadata__": {"lora_adapter_metadata": json.dumps(settings)}})


@pytest.mark.parametrize(
    "data",
    [
        packed(GOOD),
        packed({**GOOD, "__metadata__": {"format": "pt"}}),
        with_settings(**{"transformer.alpha_pattern": {"x.attn.to_q": 4, r"^blocks\.0\.x$": 2}}),
        with_settings(**{"transformer.alpha_pattern": None, "transformer.r": 3}),
        packed({**GOOD, "lora_unet_x.alpha": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}}),
        packed({"lora_unet_x.alpha": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        packed({"diffusion_model.x.diff_b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    ],
)
def test_what_may_be_a_lora_is_let_through(tmp_path: Path, data: bytes) -> None:
    """Whether it fits a model is another question."""
    file = tmp_path / "x"
    file.write_bytes(data)
    check_lora(file)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no safetensors file: it begins with ''"),
        (b"<!doctype html>", "is no safetensors file: it begins with '<!doctype html>'"),
        ((2**40).to_bytes(8, "little") + bytes(100), "is no safetensors file"),
        (packed(GOOD)[:60], "is no safetensors file"),
        (b"\x05" + bytes(7) + b"[1,2]", "is no safetensors file: its header is no JSON object"),
        (b"\x05" + bytes(7) + b"{nope", "is no safetensors file: its header can't be read"),
        (packed(GOOD)[:-1], "is cut short: transformer.x.lora_B.weight ends at byte 205 of 204"),
        (packed(GOOD) + b"more", "has 209 bytes, and its header tells of 205"),
        (
            packed({"x.lora_A.weight": {"dtype": "F32"}}),
            "is no safetensors file: its header doesn't say what x.lora_A",
        ),
        (packed({"x.lora_A.weight": 7}), "is no safetensors file: its header doesn't say what x.lora_A"),
        (packed({"x.lora_A.weight": {"data_offsets": ["a", None]}}), "is no safetensors file: its header doesn't say"),
        (
            packed({"x.lora_A.weight": {"dtype": "F4", "shape": [1], "data_offsets": [8, 0]}}),
            "is no safetensors file: x.lora_A.weight is F4 of shape [1] in -8 bytes",
        ),
        (
            packed({"x.lora_A.weight": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}),
            "is no safetensors file: x.lora_A.weight is F32 of shape [5] in 16 bytes",
        ),
        (
            packed({"x.lora_A.weight": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
            "is no safetensors file: x.lora_A.weight doesn't begin where the tensor before it ends",
        ),
        (packed({**GOOD, "__metadata__": {"rank": 3}}), "is no safetensors file: the metadata in its header"),
        (packed({"img_in.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "holds no LoRA"),
        (packed({}, b""), "holds no LoRA"),
        (with_settings(**{"transformer.alpha_pattern": {"(a+)+$": 2}}), "has '(a+)+$' in its header's alpha_pattern"),
        (with_settings(**{"transformer.alpha_pattern": 7}), "has a header whose lora_adapter_metadata can't be read"),
        (packed({**GOOD, "__metadata__": {"lora_adapter_metadata": "["}}), "has a header whose lora_adapter_metadata"),
    ],
)
def test_what_is_none_is_refused_by_what_is_wrong(tmp_path: Path, data: bytes, why: str) -> None:
    """In a clause behind its address."""
    file = tmp_path / "x"
    file.write_bytes(data)
    with pytest.raises(NoLora) as refused:
        check_lora(file)
    assert str(refused.value).startswith(why)


def test_a_header_is_read_up_to_a_bound(tmp_path: Path) -> None:
    """A file of a gigabyte could be all header."""
    file = tmp_path / "x"
    with file.open("wb") as opened:
        opened.write((HEADER_BYTES_MAX + 1).to_bytes(8, "little"))
        opened.truncate(HEADER_BYTES_MAX + 100)
    with pytest.raises(NoLora, match="has a header of 4194305 bytes"):
        check_lora(file)


def test_a_header_that_is_nested_too_deeply_is_none(tmp_path: Path) -> None:
    told = b"[" * 100_000
    file = tmp_path / "x"
    file.write_bytes(len(told).to_bytes(8, "little") + told)
    with pytest.raises(NoLora, match="its header can't be read"):
        check_lora(file)
