"""The building blocks of the FLUX transformer.

Axis letters in this file: b batch, n tokens, t text tokens, d width, h heads, k head width.
Parameters carry the names and the fused layout of the original checkpoint (black-forest-labs/flux,
src/flux/modules/layers.py): one matrix for Q, K and V, and in single-stream blocks one for Q, K, V and the MLP's input.

Modulation isn't computed here. It depends on time, guidance and pooled prompt only, so the transformer computes
it for all steps of an edit at once and hands each block its slice: shift, 1 + scale, gate, each (b, 1, d).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekontext.engine.attention import Attend, sdpa
from rekontext.engine.fp8 import Fp8Linear
from rekontext.engine.packed import PackedGELU, PackedLinear
from rekontext.engine.rope import Rotation, rotate

EPS: Final = 1e-6
MLP_RATIO: Final = 4


def _numbers_of_gelu() -> tuple[float, float]:
    """2 * sqrt(2 / pi), and what the cube counts for.

    Digits, from a function: numbers that stand in a module, `math.pi` too, would be handed to compiled kernels at each
    call.
    """
    return 1.5957691216057308, 0.044715


TWICE_ROOT, CUBE = _numbers_of_gelu()


class Modulation(NamedTuple):
    """What time, guidance and prompt do to one residual branch; each (b, 1, d)."""

    shift: Tensor
    scale_plus_one: Tensor
    gate: Tensor


def modulated_norm(x_bnd: Tensor, modulation: Modulation) -> Tensor:
    """LayerNorm without parameters, then scale and shift."""
    normed = F.layer_norm(x_bnd, x_bnd.shape[-1:], eps=EPS)
    return torch.addcmul(modulation.shift, normed, modulation.scale_plus_one)


def gelu(x: Tensor) -> Tensor:
    """GELU in FLUX's approximation, x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 * x^3).

    It is the same as x * sigmoid(2u), and a sigmoid is a third of a tanh's instructions wherever it isn't a kernel of
    its own: on a GPU what is fused must not take longer than the memory that it reads.
    """
    if torch.compiler.is_compiling():
        wide = x.float()
        twice_root, cube = _numbers_of_gelu()
        return (wide * torch.sigmoid(twice_root * (wide + cube * wide * wide * wide))).to(x.dtype)
    if x.device.type == "cpu":
        twice_u = torch.addcmul(x.new_tensor(TWICE_ROOT), x, x, value=CUBE * TWICE_ROOT).mul_(x)
        return twice_u.sigmoid_().mul_(x)
    return F.gelu(x, approximate="tanh")


def linear_gelu(x_bnd: Tensor, weight_od: Tensor, bias_o: Tensor) -> Tensor:
    """`gelu` of a projection, on a GPU by the product's own kernel before it writes: (b, n, d) -> (b, n, o).

    On a CPU, where it is only tested, PyTorch takes GELU's exact form for it.
    """
    hidden: Tensor = torch._addmm_activation(bias_o, x_bnd.flatten(0, 1), weight_od.t(), use_gelu=True)
    return hidden.view(*x_bnd.shape[:2], -1)


class GELU(nn.Module):
    """`gelu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape in, the same out."""
        return gelu(x)


class Linear(nn.Linear):
    """A projection of which a part of the outputs can be had alone."""

    def rows(self, x: Tensor, part: slice, *, activated: bool = False) -> Tensor:
        """The outputs in `part` only, on request through GELU."""
        product = linear_gelu if activated else F.linear
        return product(x, self.weight[part], self.bias[part])


class TimestepMLP(nn.Module):
    """Two layers with a SiLU between: embeds time, guidance or the pooled prompt."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(width_in, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, width_in) -> (b, width)."""
        embedded: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return embedded


def is_head_first(rotation: Rotation) -> bool:
    """Whether heads come before tokens in memory: on a CPU, whose matrix products read one head after the other.

    Elsewhere, and wherever blocks are compiled, tokens do, as projections write and read them: nothing is reordered.
    """
    return rotation.turn_np is not None and not torch.compiler.is_compiling()


def turned_norm(x: Tensor, scale: Tensor, rotation: Rotation) -> Tensor:
    """RMS norm over the head width, then each token's vector turned to its position.

    Args:
        x: (..., n, h, k) of any float dtype; statistics and turn are in float32.
        scale: (k) or anything that broadcasts with (..., h, n, k) where heads come first in memory.

    Returns:
        Shape and dtype of `x`.
    """
    if not is_head_first(rotation):
        return rotate(F.rms_norm(x, x.shape[-1:], scale, EPS), rotation.cos_nk[:, None], rotation.sin_nk[:, None])
    assert rotation.turn_np is not None, "heads come first on a CPU only"
    # Step by step this takes a dozen kernels with two roundings to the dtype between; here it is eight without.
    wide = x.transpose(-3, -2).to(torch.float32, memory_format=torch.contiguous_format)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
    pairs = torch.view_as_complex((wide * scale).unflatten(-1, (-1, 2)))
    turned: Tensor = torch.view_as_real(pairs.mul_(rotation.turn_np)).flatten(-2).mul_(inverse).to(x.dtype)
    return turned.transpose(-3, -2)


class RMSNorm(nn.Module):
    """What a root-mean-square norm has learned; `turned_norm` computes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


class QKNorm(nn.Module):
    """Separate norms for queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(width)
        self.key_norm = RMSNorm(width)

    def forward(self, qk_2bnhk: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Queries and keys of the same tokens, normed and turned; each (b, n, h, k)."""
        scales = self.query_norm.scale, self.key_norm.scale
        if is_head_first(rotation):
            q, k = turned_norm(qk_2bnhk, torch.stack(scales)[:, None, None, None], rotation)
        else:
            q, k = (turned_norm(x, scale, rotation) for x, scale in zip(qk_2bnhk, scales, strict=True))
        return q, k


class SelfAttention(nn.Module):
    """The projections of one stream; the attention itself is over both streams together."""

    qkv: nn.Module
    proj: nn.Module

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = QKNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def project(self, x_bnd: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normed and turned, and values; each (b, n, h, k)."""
        qkv = split_heads(self.qkv(x_bnd), 3, self.heads)
        q, k = self.norm(qkv[:2], rotation)
        return q, k, qkv[2]

    def pack(self) -> None:
        """See `packed.py`."""
        self.qkv, self.proj = _packed(self.qkv), _packed(self.proj)


def split_heads(x_bnd: Tensor, parts: int, heads: int) -> Tensor:
    """A fused projection (b, n, parts * h * k) as (parts, b, n, h, k)."""
    split: Tensor = x_bnd.unflatten(-1, (parts, heads, -1)).movedim(2, 0)
    return split


def joined(text_bthk: Tensor, image_bnhk: Tensor, rotation: Rotation) -> Tensor:
    """Text tokens, then picture tokens, in memory as `is_head_first` says."""
    if is_head_first(rotation):
        return torch.cat([text_bthk.transpose(1, 2), image_bnhk.transpose(1, 2)], dim=2).transpose(1, 2)
    return torch.cat([text_bthk, image_bnhk], dim=1)


class DoubleStreamBlock(nn.Module):
    """Text and picture each with weights of their own, joined in attention.

    Attributes:
        attend: the attention kernel; `use_attention` changes it.
        gelu_within: GELU is computed within the product before it, by `linear_gelu`; `use_gelu_within` changes it.
    """

    attend: Attend
    gelu_within: bool

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = sdpa
        self.gelu_within = False
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", ModulationLinear(width, branches=2))
            self.add_module(f"{stream}_attn", SelfAttention(width, heads))
            self.add_module(f"{stream}_mlp", mlp(width))

    img_mod: ModulationLinear
    txt_mod: ModulationLinear
    img_attn: SelfAttention
    txt_attn: SelfAttention
    img_mlp: nn.Sequential
    txt_mlp: nn.Sequential

    def forward(
        self,
        image_bnd: Tensor,
        text_bnd: Tensor,
        image_mod: tuple[Modulation, Modulation],
        text_mod: tuple[Modulation, Modulation],
        rotation: Rotation,
    ) -> tuple[Tensor, Tensor]:
        """One block over picture tokens (output, then reference) and text tokens.

        `rotation` covers text first, then picture.
        """
        text_tokens = text_bnd.shape[1]
        of_text, of_image = rotation.part(slice(text_tokens)), rotation.part(slice(text_tokens, None))
        text_qkv = self.txt_attn.project(modulated_norm(text_bnd, text_mod[0]), of_text)
        image_qkv = self.img_attn.project(modulated_norm(image_bnd, image_mod[0]), of_image)
        mixed = self.attend(*(joined(*pair, rotation) for pair in zip(text_qkv, image_qkv, strict=True)))

        # Whole in memory, as they are for one edit: of several edits the products would else be other kernels, whose
        # bits differ.
        of_text_bnd, of_image_bnd = mixed[:, :text_tokens].contiguous(), mixed[:, text_tokens:].contiguous()
        image_bnd = torch.addcmul(image_bnd, image_mod[0].gate, self.img_attn.proj(of_image_bnd))
        image_bnd = torch.addcmul(image_bnd, image_mod[1].gate, self._mlp(self.img_mlp, image_bnd, image_mod[1]))
        text_bnd = torch.addcmul(text_bnd, text_mod[0].gate, self.txt_attn.proj(of_text_bnd))
        text_bnd = torch.addcmul(text_bnd, text_mod[1].gate, self._mlp(self.txt_mlp, text_bnd, text_mod[1]))
        return image_bnd, text_bnd

    def _mlp(self, feed_forward: nn.Sequential, x_bnd: Tensor, modulation: Modulation) -> Tensor:
        normed = modulated_norm(x_bnd, modulation)
        up, activation, down = feed_forward
        hidden = (
            linear_gelu(normed, up.weight, up.bias)
            if self.gelu_within and isinstance(up, nn.Linear)
            else activation(up(normed))
        )
        out: Tensor = down(hidden)
        return out

    def pack(self) -> None:
        """See `packed.py`."""
        for attention, feed_forward in ((self.img_attn, self.img_mlp), (self.txt_attn, self.txt_mlp)):
            attention.pack()
            up, _, down = feed_forward
            assert isinstance(up, nn.Linear), "packed once"
            feed_forward[0], feed_forward[1], feed_forward[2] = PackedGELU(up), nn.Identity(), _packed(down)


class SingleStreamBlock(nn.Module):
    """One set of weights for all tokens; attention and MLP side by side.

    Attributes:
        attend: the attention kernel; `use_attention` changes it.
        gelu_within: GELU is computed within the product before it, by `linear_gelu`, and what the two branches give is
            projected apart and added, so that nothing is joined in memory; `use_gelu_within` changes it.
    """

    attend: Attend
    gelu_within: bool
    linear1: Linear | Fp8Linear | PackedLinear
    linear2: nn.Linear | Fp8Linear | PackedLinear

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = sdpa
        self.gelu_within = False
        self.width = width
        self.heads = heads
        self.linear1 = Linear(width, (3 + MLP_RATIO) * width)
        self.linear2 = nn.Linear((1 + MLP_RATIO) * width, width)
        self.norm = QKNorm(width // heads)
        self.modulation = ModulationLinear(width, branches=1)

    def forward(self, x_bnd: Tensor, modulation: Modulation, rotation: Rotation) -> Tensor:
        """All tokens in, all tokens out."""
        normed = modulated_norm(x_bnd, modulation)
        d = self.width
        within = self.gelu_within and isinstance(self.linear1, Linear) and isinstance(self.linear2, nn.Linear)
        if within or isinstance(self.linear1, PackedLinear):
            assert isinstance(self.linear1, Linear | PackedLinear)
            qkv = self.linear1.rows(normed, slice(3 * d))
            hidden = self.linear1.rows(normed, slice(3 * d, None), activated=True)
        else:
            qkv, hidden = self.linear1(normed).split([3 * d, MLP_RATIO * d], dim=-1)
            hidden = gelu(hidden)
        heads = split_heads(qkv, 3, self.heads)
        q, k = self.norm(heads[:2], rotation)
        mixed = self.attend(q, k, heads[2])
        if within:
            assert isinstance(self.linear2, nn.Linear)
            out = F.linear(mixed, self.linear2.weight[:, :d], self.linear2.bias)
            out = out + F.linear(hidden, self.linear2.weight[:, d:])
        else:
            out = self.linear2(torch.cat([mixed, hidden], dim=-1))
        return torch.addcmul(x_bnd, modulation.gate, out)

    def forward_part(self, x_bnd: Tensor, modulation: Modulation, rotation: Rotation, part: slice) -> Tensor:
        """As `forward`, for the tokens in `part` only.

        The others are needed as keys and values alone, so their queries, MLP and projection are skipped.
        """
        normed = modulated_norm(x_bnd, modulation)
        d = self.width
        k, v = split_heads(self.linear1.rows(normed, slice(d, 3 * d)), 2, self.heads)
        q = split_heads(self.linear1.rows(normed[:, part], slice(d)), 1, self.heads)[0]
        if isinstance(self.linear1, PackedLinear):
            hidden = self.linear1.rows(normed[:, part], slice(3 * d, None), activated=True)
        else:
            hidden = gelu(self.linear1.rows(normed[:, part], slice(3 * d, None)))
        mixed = self.attend(
            turned_norm(q, self.norm.query_norm.scale, rotation.part(part)),
            turned_norm(k, self.norm.key_norm.scale, rotation),
            v,
        )
        out = self.linear2(torch.cat([mixed, hidden], dim=-1))
        return torch.addcmul(x_bnd[:, part], modulation.gate, out)

    def pack(self, *, for_part: bool) -> None:
        """See `packed.py`.

        Args:
            for_part: for `forward_part`, not for `forward`.
        """
        assert isinstance(self.linear1, nn.Linear), "packed once"
        d = self.width
        self.linear1 = PackedLinear(self.linear1, cuts=(d, 3 * d) if for_part else (3 * d,))
        self.linear2 = _packed(self.linear2)


class ModulationLinear(nn.Module):
    """The weights from which a block's modulation comes: 3 vectors (shift, scale, gate) per residual branch."""

    def __init__(self, width: int, *, branches: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, 3 * branches * width)

    def to_host(self) -> None:
        """Keep the weights on the host, from where they pass through the device at each edit."""
        for name, parameter in list(self.lin.named_parameters()):
            setattr(self.lin, name, nn.Parameter(on_host(parameter.detach()), requires_grad=False))


def on_host(tensor: Tensor) -> Tensor:
    """On the host, and where there is a GPU in memory that it can read by itself."""
    tensor = tensor.cpu()
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def hold(parameter: Tensor, tensor: Tensor) -> None:
    """Give a parameter other values, rounded to its dtype.

    Where the old ones lie, so that nothing that was made for them has to be made again. But on the host, unless they
    were put there by `on_host`, they may be the memory of a file, and would be read from it again as they are now.
    """
    if parameter.device.type == "cuda" or parameter.is_pinned():
        parameter.copy_(tensor)
    else:
        parameter.data = tensor.to("cpu", parameter.dtype)


class FinalLayer(nn.Module):
    """Norm, modulation and projection to latent tokens."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_bnd: Tensor, shift: Tensor, scale_plus_one: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, channels)."""
        normed = F.layer_norm(x_bnd, x_bnd.shape[-1:], eps=EPS)
        out: Tensor = self.linear(torch.addcmul(shift, normed, scale_plus_one))
        return out


def mlp(width: int) -> nn.Sequential:
    """The feed-forward part of a double-stream block."""
    hidden = MLP_RATIO * width
    return nn.Sequential(nn.Linear(width, hidden), GELU(), nn.Linear(hidden, width))


def _packed(linear: nn.Module) -> PackedLinear:
    assert isinstance(linear, nn.Linear), "packed once, and not in fp8"
    return PackedLinear(linear)
