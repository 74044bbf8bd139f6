"""A pass of the transformer on a GPU by our own kernels: the same as its `forward`, with less passing through memory.

Products and attention are the libraries'. What stands between them is `kernels.py`: a residual branch is added as the
next norm reads it, queries and keys are normed and turned where they lie, and in fp8 what a product reads is quantised
where it is made. Nothing is compiled beforehand but the kernels themselves, in seconds.

Axis letters in this file: b edits, t text tokens, n all tokens, d width, m hidden values of the MLP, o outputs of any
layer, c latent token channels, w modulation values, h heads, k head width, r rows (the tokens of all edits, one after
the other).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekontext.engine import kernels
from rekontext.engine.fp8 import Fp8Linear, product
from rekontext.engine.kernels import Operand
from rekontext.engine.layers import DoubleStreamBlock, Modulation, QKNorm, SingleStreamBlock, linear_gelu
from rekontext.engine.rope import Rotation
from rekontext.engine.transformer import Conditioning, KontextTransformer, next_modulation

_ALL: Final = slice(None)


class Stream:
    """Tokens of all edits of a pass, one edit after the other, and the residual branch that is still to be added.

    Attributes:
        x_rd: the tokens.
        pending: the branch's gate (b, 1, d), and what came out of it (r, d).
    """

    def __init__(self, x_bnd: Tensor) -> None:
        self.edits, self.tokens, _ = x_bnd.shape
        self.x_rd = x_bnd.flatten(0, 1).contiguous()
        self.pending: tuple[Tensor, Tensor] | None = None

    def normed(self, modulation: Modulation, *, e4m3: bool) -> Operand:
        """Add what is left to be added; norm and modulate the sum."""
        self.x_rd, normed = kernels.modulated_norm(
            self.x_rd, modulation, tokens=self.tokens, e4m3=e4m3, added=self.pending
        )
        self.pending = None
        return normed

    def whole(self) -> Tensor:
        """(b, n, d), with nothing left to be added."""
        x_bnd: Tensor = self.x_rd.unflatten(0, (self.edits, self.tokens))
        if self.pending is None:
            return x_bnd
        gate, branch_rd = self.pending
        return torch.addcmul(x_bnd, gate, branch_rd.view_as(x_bnd))

    def part(self, tokens: slice) -> Stream:
        """Some of each edit's tokens."""
        assert self.pending is None, "a branch of all tokens is still to be added"
        return Stream(self.x_rd.unflatten(0, (self.edits, self.tokens))[:, tokens])

    def rows_of(self, y_ro: Tensor, tokens: slice) -> Tensor:
        """The rows that belong to some of each edit's tokens."""
        of_part: Tensor = y_ro.unflatten(0, (self.edits, self.tokens))[:, tokens].flatten(0, 1)
        return of_part


class FusedPass:
    """Stands in for a transformer's `forward`. Layers may be quantised later; the scales of norms are copied here."""

    def __init__(self, transformer: KontextTransformer) -> None:
        self.weights_changed(transformer)

    def weights_changed(self, transformer: KontextTransformer) -> None:
        """As `Pass.weights_changed`."""
        norms = (module for module in transformer.modules() if isinstance(module, QKNorm))
        self._scales = {norm: torch.stack([norm.query_norm.scale, norm.key_norm.scale]) for norm in norms}

    def __call__(
        self, transformer: KontextTransformer, latents_bnc: Tensor, conditioning: Conditioning, modulation_bw: Tensor
    ) -> Tensor:
        """See `KontextTransformer.forward`."""
        # Kernels run where the present device is, and that of another thread is another.
        with torch.cuda.device(latents_bnc.device) if latents_bnc.is_cuda else nullcontext():
            return self._run(transformer, latents_bnc, conditioning, modulation_bw)

    def _run(
        self, transformer: KontextTransformer, latents_bnc: Tensor, conditioning: Conditioning, modulation_bw: Tensor
    ) -> Tensor:
        rotation = conditioning.rotation
        values = transformer.modulation_values(modulation_bw)
        image = Stream(transformer.picture_tokens(latents_bnc, conditioning))
        text = Stream(conditioning.text_btd)
        for block in transformer.double_blocks:
            image_mod = next_modulation(values), next_modulation(values)
            text_mod = next_modulation(values), next_modulation(values)
            self._double(cast(DoubleStreamBlock, block), image, text, image_mod, text_mod, rotation)
        tokens = Stream(torch.cat([text.whole(), image.whole()], dim=1))
        *blocks, last = (cast(SingleStreamBlock, block) for block in transformer.single_blocks)
        for block in blocks:
            self._single(block, tokens, next_modulation(values), rotation)
        output = slice(text.tokens, text.tokens + latents_bnc.shape[1])
        tokens = self._last(last, tokens, next_modulation(values), rotation, output)
        shift, scale_plus_one = next(values), next(values)
        normed = tokens.normed(Modulation(shift, scale_plus_one, shift), e4m3=False)
        velocity: Tensor = transformer.final_layer.linear(
            normed.values.view(latents_bnc.shape[0], output.stop - output.start, -1)
        )
        return velocity

    def _double(
        self,
        block: DoubleStreamBlock,
        image: Stream,
        text: Stream,
        image_mod: tuple[Modulation, Modulation],
        text_mod: tuple[Modulation, Modulation],
        rotation: Rotation,
    ) -> None:
        """`DoubleStreamBlock.forward`; the last branch of both streams is left to be added."""
        both = (
            (text, block.txt_attn, block.txt_mlp, text_mod, slice(text.tokens)),
            (image, block.img_attn, block.img_mlp, image_mod, slice(text.tokens, None)),
        )
        tokens, heads = text.tokens + image.tokens, block.img_attn.heads
        qkv_rd = text.x_rd.new_empty(text.edits * tokens, 3 * text.x_rd.shape[1])
        for stream, attention, _, modulation, part in both:
            kernels.turned_norms(
                _projected(attention.qkv, stream.normed(modulation[0], e4m3=_reads_e4m3(attention.qkv))),
                self._scales[attention.norm],
                rotation,
                tokens=stream.tokens,
                heads=heads,
                out_rd=qkv_rd,
                first=part.start or 0,
                copied=1,
            )
        mixed_bnd = _attended(block, qkv_rd, edits=text.edits, heads=heads)
        for stream, attention, feed_forward, modulation, part in both:
            own_rd = mixed_bnd[:, part].flatten(0, 1).contiguous()
            stream.pending = modulation[0].gate, _projected(attention.proj, _as_read(attention.proj, own_rd))
            up, _, down = feed_forward
            normed = stream.normed(modulation[1], e4m3=_reads_e4m3(up))
            if block.gelu_within and isinstance(up, nn.Linear):
                hidden = Operand(_linear_gelu(normed, up.weight, up.bias), None)
            else:
                hidden = kernels.activated(None, _projected(up, normed), e4m3=_reads_e4m3(down))
            stream.pending = modulation[1].gate, _projected(down, hidden)

    def _single(self, block: SingleStreamBlock, tokens: Stream, modulation: Modulation, rotation: Rotation) -> None:
        """`SingleStreamBlock.forward`; its branch is left to be added."""
        first, second, d = block.linear1, block.linear2, block.width
        normed = tokens.normed(modulation, e4m3=_reads_e4m3(first))
        if block.gelu_within and isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
            mixed_rd = self._mixed(block, tokens, _projected(first, normed, slice(3 * d)), rotation)
            hidden_rm = _linear_gelu(normed, first.weight[3 * d :], first.bias[3 * d :])
            out_rd = F.linear(mixed_rd, second.weight[:, :d], second.bias).addmm_(hidden_rm, second.weight[:, d:].t())
        else:
            qkv_rd, hidden_rm = _projected(first, normed).tensor_split([3 * d], dim=1)
            mixed_rd = self._mixed(block, tokens, qkv_rd, rotation)
            out_rd = _projected(second, kernels.activated(mixed_rd, hidden_rm, e4m3=_reads_e4m3(second)))
        tokens.pending = modulation.gate, out_rd

    def _mixed(self, block: SingleStreamBlock, tokens: Stream, qkv_rd: Tensor, rotation: Rotation) -> Tensor:
        """Attention over all tokens: (r, d)."""
        kernels.turned_norms(qkv_rd, self._scales[block.norm], rotation, tokens=tokens.tokens, heads=block.heads)
        return _attended(block, qkv_rd, edits=tokens.edits, heads=block.heads).flatten(0, 1)

    def _last(
        self, block: SingleStreamBlock, tokens: Stream, modulation: Modulation, rotation: Rotation, part: slice
    ) -> Stream:
        """`SingleStreamBlock.forward_part`; its branch is left to be added."""
        first, second, d, heads = block.linear1, block.linear2, block.width, block.heads
        normed = tokens.normed(modulation, e4m3=_reads_e4m3(first))
        own = tokens.part(part)
        of_own = Operand(
            tokens.rows_of(normed.values, part), None if normed.scale is None else tokens.rows_of(normed.scale, part)
        )
        q_scale_1k, k_scale_1k = self._scales[block.norm].split(1)
        q_rd = _projected(first, of_own, slice(d))
        kernels.turned_norms(q_rd, q_scale_1k, rotation.part(part), tokens=own.tokens, heads=heads)
        kv_rd = _projected(first, normed, slice(d, 3 * d))
        kernels.turned_norms(kv_rd, k_scale_1k, rotation, tokens=tokens.tokens, heads=heads)
        k, v = kv_rd.view(tokens.edits, tokens.tokens, 2, heads, -1).unbind(2)
        mixed_rd = block.attend(q_rd.view(own.edits, own.tokens, heads, -1), k, v).flatten(0, 1)
        hidden_rm = _projected(first, of_own, slice(3 * d, None))
        out_rd = _projected(second, kernels.activated(mixed_rd, hidden_rm, e4m3=_reads_e4m3(second)))
        own.pending = modulation.gate, out_rd
        return own


def _attended(block: DoubleStreamBlock | SingleStreamBlock, qkv_rd: Tensor, *, edits: int, heads: int) -> Tensor:
    q, k, v = qkv_rd.unflatten(1, (3, heads, -1)).unflatten(0, (edits, -1)).unbind(2)
    return block.attend(q, k, v)


def _reads_e4m3(linear: nn.Module) -> bool:
    return isinstance(linear, Fp8Linear)


def _as_read(linear: nn.Module, x_rd: Tensor) -> Operand:
    """What isn't made by a kernel of ours, as a layer reads it."""
    return kernels.activated(x_rd, None, e4m3=True) if _reads_e4m3(linear) else Operand(x_rd, None)


def _linear_gelu(x: Operand, weight: Tensor, bias: Tensor) -> Tensor:
    return linear_gelu(x.values[None], weight, bias)[0]


def _projected(linear: nn.Module, x: Operand, part: slice = _ALL) -> Tensor:
    """A layer's outputs, or those in `part` only: (r, o)."""
    if x.scale is None:
        assert isinstance(linear, nn.Linear), "an operand in bfloat16 for a layer in e4m3"
        return F.linear(x.values, linear.weight[part], linear.bias[part])
    assert isinstance(linear, Fp8Linear), "an operand in e4m3 for a layer in bfloat16"
    return product(x.values, x.scale, linear.weight[part], linear.scale[part], linear.bias[part], linear.bias.dtype)
