"""What a number format asks of a device."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import torch

from rekontext.engine import placement
from rekontext.engine.placement import open_placed


class _Opened(Exception):
    """In place of a model, for whose weights there is no such device here."""


@pytest.mark.parametrize(
    ("device", "dtype", "allowed"), [("cuda", "float32", False), ("cuda", "bfloat16", True), ("cpu", "float32", True)]
)
def test_a_gpu_multiplies_whole_float32_numbers_where_a_model_computes_in_them(
    device: str, dtype: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PyTorch's default its convolutions take ten bits of each. Nobody else's are changed."""

    def refuse(*_given: Any, **_asked: Any) -> NoReturn:
        raise _Opened

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(placement, "open_model", refuse)
    with pytest.raises(_Opened):
        open_placed("mini", device=torch.device(device), dtype=dtype)
    assert torch.backends.cudnn.allow_tf32 is allowed
