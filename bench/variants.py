"""Other ways of computing the same blocks, to be timed beside the engine's. What wins here belongs into the engine.

Axis letters in this file: b batch, n tokens, d width, o outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rekontext.engine.layers import (
    DoubleStreamBlock,
    Linear,
    Modulation,
    SingleStreamBlock,
    joined,
    modulated_norm,
    split_heads,
)
from rekontext.engine.rope import Rotation
from rekontext.engine.transformer import KontextTransformer


def linear_gelu(x_bnd: Tensor, weight_od: Tensor, bias_o: Tensor) -> Tensor:
    """GELU of a projection, on a GPU by the product's own kernel before it writes: (b, n, d) -> (b, n, o).

    There it is the tanh form. The CPU, where this is only tested, takes the exact one.
    """
    hidden: Tensor = torch._addmm_activation(bias_o, x_bnd.flatten(0, 1), weight_od.t(), use_gelu=True)
    return hidden.view(*x_bnd.shape[:2], -1)


class EpilogueDouble(DoubleStreamBlock):
    """GELU within the products."""

    def forward(
        self,
        image_bnd: Tensor,
        text_bnd: Tensor,
        image_mod: tuple[Modulation, Modulation],
        text_mod: tuple[Modulation, Modulation],
        rotation: Rotation,
    ) -> tuple[Tensor, Tensor]:
        t = text_bnd.shape[1]
        of_text, of_image = rotation.part(slice(t)), rotation.part(slice(t, None))
        text_qkv = self.txt_attn.project(modulated_norm(text_bnd, text_mod[0]), of_text)
        image_qkv = self.img_attn.project(modulated_norm(image_bnd, image_mod[0]), of_image)
        mixed = self.attend(*(joined(*pair, rotation) for pair in zip(text_qkv, image_qkv, strict=True)))

        image_bnd = torch.addcmul(image_bnd, image_mod[0].gate, self.img_attn.proj(mixed[:, t:]))
        image_bnd = torch.addcmul(image_bnd, image_mod[1].gate, _mlp(self.img_mlp, image_bnd, image_mod[1]))
        text_bnd = torch.addcmul(text_bnd, text_mod[0].gate, self.txt_attn.proj(mixed[:, :t]))
        text_bnd = torch.addcmul(text_bnd, text_mod[1].gate, _mlp(self.txt_mlp, text_bnd, text_mod[1]))
        return image_bnd, text_bnd


class EpilogueSingle(SingleStreamBlock):
    """GELU within the product; two second projections added up, instead of one over both inputs joined."""

    def forward(self, x_bnd: Tensor, modulation: Modulation, rotation: Rotation) -> Tensor:
        assert isinstance(self.linear1, Linear), "for bfloat16 only"
        assert isinstance(self.linear2, torch.nn.Linear), "for bfloat16 only"
        d = self.width
        normed = modulated_norm(x_bnd, modulation)
        heads = split_heads(self.linear1.rows(normed, slice(3 * d)), 3, self.heads)
        hidden = linear_gelu(normed, self.linear1.weight[3 * d :], self.linear1.bias[3 * d :])
        q, k = self.norm(heads[:2], rotation)
        mixed = self.attend(q, k, heads[2])
        out = F.linear(mixed, self.linear2.weight[:, :d], self.linear2.bias)
        out = out + F.linear(hidden, self.linear2.weight[:, d:])
        return torch.addcmul(x_bnd, modulation.gate, out)


def with_epilogues(transformer: KontextTransformer) -> KontextTransformer:
    """The transformer itself, its blocks computing that way from now on; the last one stays as it is."""
    *single_blocks, _ = transformer.single_blocks
    for block in transformer.double_blocks:
        block.__class__ = EpilogueDouble
    for block in single_blocks:
        block.__class__ = EpilogueSingle
    return transformer


def _mlp(mlp: torch.nn.Sequential, x_bnd: Tensor, modulation: Modulation) -> Tensor:
    up, _, down = mlp
    assert isinstance(up, torch.nn.Linear), "for bfloat16 only"
    found: Tensor = down(linear_gelu(modulated_norm(x_bnd, modulation), up.weight, up.bias))
    return found
