"""Positions and rotation: diffusers' embedding is the judge, and the CPU's short way equals the written-out one."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from rekontext.engine.rope import Rotation, picture_positions, rotate, rotation_of, text_positions

AXES = (16, 56, 56)
POSITIONS = torch.cat(
    [text_positions(5), picture_positions((1568, 672), stream=0), picture_positions((672, 1568), stream=1)]
)


def test_rotation_equals_that_of_diffusers() -> None:
    ours = rotation_of(POSITIONS, AXES, torch.device("cpu"))
    theirs = FluxPosEmbed(theta=10000, axes_dim=list(AXES))(POSITIONS)
    x = torch.randn(2, 3, len(POSITIONS), sum(AXES), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x, ours), apply_rotary_emb(x, theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_complex_way_equals_the_written_out_one(dtype: torch.dtype) -> None:
    short = rotation_of(POSITIONS, AXES, torch.device("cpu"))
    written_out = Rotation(short.cos_nk, short.sin_nk, None)
    x = torch.randn(1, 2, len(POSITIONS), sum(AXES), generator=torch.Generator().manual_seed(0)).to(dtype)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(rotate(x, short), rotate(x, written_out), rtol=0, atol=tolerance)


def test_text_is_not_turned() -> None:
    x = torch.randn(1, 1, 7, 32)
    assert torch.equal(rotate(x, rotation_of(text_positions(7), (8, 12, 12), torch.device("cpu"))), x)
