"""Positions and rotation: diffusers' embedding is the judge, and the CPU's way equals the written-out one."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from rekontext.engine.layers import QKNorm, split_heads
from rekontext.engine.rope import Rotation, picture_positions, rotate, rotation_of, text_positions

AXES = (16, 56, 56)
POSITIONS = torch.cat(
    [text_positions(5), picture_positions((1568, 672), stream=0), picture_positions((672, 1568), stream=1)]
)


def test_rotation_equals_that_of_diffusers() -> None:
    ours = rotation_of(POSITIONS, AXES, torch.device("cpu"))
    theirs = FluxPosEmbed(theta=10000, axes_dim=list(AXES))(POSITIONS)
    x = torch.randn(2, 3, len(POSITIONS), sum(AXES), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x, ours.cos_nk, ours.sin_nk), apply_rotary_emb(x, theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpus_way_to_norm_and_turn_equals_the_written_out_one(dtype: torch.dtype) -> None:
    short = rotation_of(POSITIONS, AXES, torch.device("cpu"))
    written_out = Rotation(short.cos_nk, short.sin_nk, None)
    norm, generator = QKNorm(sum(AXES)).to(dtype), torch.Generator().manual_seed(0)
    for weights in (norm.query_norm.scale, norm.key_norm.scale):
        torch.nn.init.normal_(weights, generator=generator)
    x = torch.randn(1, len(POSITIONS), 3 * 2 * sum(AXES), generator=generator).to(dtype)
    before, qk = x.clone(), split_heads(x, 3, 2)[:2]
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    for found, expected in zip(norm(qk, short), norm(qk, written_out), strict=True):
        assert found.dtype == dtype
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error < tolerance
    assert torch.equal(x, before)


def test_text_is_not_turned() -> None:
    x = torch.randn(1, 1, 7, 32)
    rotation = rotation_of(text_positions(7), (8, 12, 12), torch.device("cpu"))
    assert torch.equal(rotate(x, rotation.cos_nk, rotation.sin_nk), x)
