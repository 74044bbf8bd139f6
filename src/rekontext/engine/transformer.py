"""The FLUX.1 Kontext transformer: noisy output tokens, reference tokens and text in, velocity out.

Axis letters in this file: b batch, n output tokens, m reference tokens, t text tokens, d width, c latent token
channels, s steps, w all modulation values of one step.

What depends on the edit but not on the step is computed once per edit (`condition`); what depends on the step but
not on the tokens is computed for all steps in one small batch (`modulation`). A step is then blocks only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekontext.engine.attention import Attend
from rekontext.engine.layers import (
    DoubleStreamBlock,
    FinalLayer,
    Modulation,
    SingleStreamBlock,
    TimestepMLP,
)
from rekontext.engine.rope import Rotation

TIME_WIDTH = 256
TIME_FACTOR = 1000.0


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a transformer; the defaults are FLUX.1 Kontext [dev].

    Attributes:
        width: model width, `heads` times the head width.
        axes: rotary width of the stream, row and column axis; their sum is the head width.
        channels: values per token in and out (16 latent channels, 2x2 packed).
        text_width, pooled_width: widths of the T5 states and of the pooled CLIP vector.
    """

    width: int = 3072
    heads: int = 24
    axes: tuple[int, int, int] = (16, 56, 56)
    double_blocks: int = 19
    single_blocks: int = 38
    channels: int = 64
    text_width: int = 4096
    pooled_width: int = 768
    guidance_embedded: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads or sum(self.axes) != self.width // self.heads or any(a % 2 for a in self.axes):
            raise ValueError(
                f"rotary axes {self.axes} must be even and add up to the head width {self.width}/{self.heads}"
            )
        if self.single_blocks < 1:
            raise ValueError("the transformer needs at least one single-stream block")


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What stays the same through all steps of an edit.

    Attributes:
        text_btd: projected prompt.
        reference_bmd: projected reference tokens, None for text-to-image.
        rotation: of all t + n + m tokens.
    """

    text_btd: Tensor
    reference_bmd: Tensor | None
    rotation: Rotation


class Pass(Protocol):
    """Another way of computing `KontextTransformer.forward`. Handed the transformer, which it must not keep alive."""

    def __call__(
        self, transformer: KontextTransformer, latents_bnc: Tensor, conditioning: Conditioning, modulation_bw: Tensor, /
    ) -> Tensor: ...

    def weights_changed(self, transformer: KontextTransformer) -> None:
        """Make anew what it has made of the weights."""
        ...


class KontextTransformer(nn.Module):
    """Parameters carry the original checkpoint's names; see `layouts.py` for the other layouts.

    Attributes:
        own_pass: what computes `forward` instead of the blocks' own, by `use_pass`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.img_in = nn.Linear(config.channels, d)
        self.txt_in = nn.Linear(config.text_width, d)
        self.time_in = TimestepMLP(TIME_WIDTH, d)
        self.vector_in = TimestepMLP(config.pooled_width, d)
        self.guidance_in = TimestepMLP(TIME_WIDTH, d) if config.guidance_embedded else None
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(d, config.heads) for _ in range(config.double_blocks))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(d, config.heads) for _ in range(config.single_blocks))
        self.final_layer = FinalLayer(d, config.channels)
        self.own_pass: Pass | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.img_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.img_in.weight.device

    def use_attention(self, attend: Attend) -> None:
        """Change every block's attention kernel. Before compiling: afterwards it would all compile again."""
        for block in (*self.double_blocks, *self.single_blocks):
            assert isinstance(block, DoubleStreamBlock | SingleStreamBlock)
            block.attend = attend

    def use_pass(self, own: Pass | None) -> None:
        """Have `forward` computed another way, or by the blocks again. See `fused.py`."""
        self.own_pass = own

    def weights_changed(self) -> None:
        """Say that parameters have other values now."""
        if self.own_pass is not None:
            self.own_pass.weights_changed(self)

    @property
    def can_have_gelu_within(self) -> bool:
        """Whether `use_gelu_within` is for it: not in fp8, where it makes no difference, nor on a CPU, whose own way is
        `pack`, nor in float32, whose pixels must not hang on how a product's kernel approximates a tanh."""
        first = self.single_blocks[0]
        assert isinstance(first, SingleStreamBlock)
        is_wide = self.dtype == torch.float32
        return self.device.type == "cuda" and isinstance(first.linear1, nn.Linear) and not is_wide

    def use_gelu_within(self, within: bool) -> None:
        """Say whether GELU is computed within the product before it, wherever that is a plain one. See `tuning.py`."""
        for block in (*self.double_blocks, *self.single_blocks):
            assert isinstance(block, DoubleStreamBlock | SingleStreamBlock)
            block.gelu_within = within

    def pack(self) -> None:
        """On a CPU: hold the blocks' projections as its matrix library reads them. See `packed.py`."""
        *single_blocks, last = self.single_blocks
        for block in (*self.double_blocks, *single_blocks, last):
            if isinstance(block, DoubleStreamBlock):
                block.pack()
            else:
                assert isinstance(block, SingleStreamBlock)
                block.pack(for_part=block is last)

    def condition(self, text_btw: Tensor, reference_bmc: Tensor | None, rotation: Rotation) -> Conditioning:
        """Project prompt states and reference tokens, once per edit."""
        return Conditioning(
            text_btd=self.txt_in(text_btw.to(self.device, self.dtype)),
            reference_bmd=None if reference_bmc is None else self.img_in(reference_bmc.to(self.device, self.dtype)),
            rotation=rotation,
        )

    def modulation(self, times: Tensor, guidance: float, pooled: Tensor) -> Tensor:
        """All modulation values of all steps.

        Args:
            times: (s,) float32 noise levels at which the velocity will be asked for.
            pooled: (1, pooled_width).

        Returns:
            (s, w), dtype of the model; row i goes into `forward`. Scales are stored as 1 + scale.
        """
        times = times.to(self.device)
        vector = self.time_in(sinusoid(times).to(self.dtype))
        if self.guidance_in is not None:
            scale = torch.full((1,), guidance, dtype=torch.float32, device=self.device)
            vector = vector + self.guidance_in(sinusoid(scale).to(self.dtype))
        vector = F.silu(vector + self.vector_in(pooled.to(self.device, self.dtype)))
        # The final layer has its own SiLU in the checkpoint's layout; `vector` has had it already.
        # No copy where the weights are on the device; where memory is short they wait on the host and pass through.
        rows = [
            F.linear(vector, *(part.to(self.device, non_blocking=True) for part in (linear.weight, linear.bias)))
            for linear in self._modulation_linears()
        ]
        for row in rows[:-1]:
            row.unflatten(-1, (-1, 3, self.config.width))[:, :, 1].add_(1)
        rows[-1].unflatten(-1, (2, self.config.width))[:, 1].add_(1)
        return torch.cat(rows, dim=-1)

    def forward(self, latents_bnc: Tensor, conditioning: Conditioning, modulation_bw: Tensor) -> Tensor:
        """The velocity of the output tokens at one noise level.

        Args:
            latents_bnc: noisy output tokens.
            modulation_bw: the step's row of `modulation`; the steps of a batch may differ.

        Returns:
            (b, n, c), dtype of the model.
        """
        if self.own_pass is not None:
            return self.own_pass(self, latents_bnc, conditioning, modulation_bw)
        text = conditioning.text_btd
        image = self.picture_tokens(latents_bnc, conditioning)
        values = self.modulation_values(modulation_bw)

        for block in self.double_blocks:
            image_mod = (next_modulation(values), next_modulation(values))
            text_mod = (next_modulation(values), next_modulation(values))
            image, text = block(image, text, image_mod, text_mod, conditioning.rotation)

        text_tokens = text.shape[1]
        tokens = torch.cat([text, image], dim=1)
        *blocks, last = self.single_blocks
        for block in blocks:
            tokens = block(tokens, next_modulation(values), conditioning.rotation)
        assert isinstance(last, SingleStreamBlock)
        output = slice(text_tokens, text_tokens + latents_bnc.shape[1])
        tokens = last.forward_part(tokens, next_modulation(values), conditioning.rotation, output)
        velocity: Tensor = self.final_layer(tokens, next(values), next(values))
        return velocity

    def picture_tokens(self, latents_bnc: Tensor, conditioning: Conditioning) -> Tensor:
        """Output and reference, as the blocks read them: (b, n + m, d)."""
        image: Tensor = self.img_in(latents_bnc.to(self.dtype))
        if conditioning.reference_bmd is None:
            return image
        return torch.cat([image, conditioning.reference_bmd], dim=1)

    def modulation_values(self, modulation_bw: Tensor) -> Iterator[Tensor]:
        """One (b, 1, d) after the other, as the blocks take them."""
        return iter(modulation_bw.unflatten(-1, (-1, 1, self.config.width)).unbind(1))

    def _modulation_linears(self) -> Iterator[nn.Linear]:
        """In the order in which `forward` takes their values."""
        for block in self.double_blocks:
            assert isinstance(block, DoubleStreamBlock)
            yield block.img_mod.lin
            yield block.txt_mod.lin
        for block in self.single_blocks:
            assert isinstance(block, SingleStreamBlock)
            yield block.modulation.lin
        final = self.final_layer.adaLN_modulation[1]
        assert isinstance(final, nn.Linear)
        yield final


def sinusoid(values: Tensor) -> Tensor:
    """Sinusoidal embedding of time or guidance: (s,) -> (s, 256) float32, cosines first."""
    half = TIME_WIDTH // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = TIME_FACTOR * values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def next_modulation(values: Iterator[Tensor]) -> Modulation:
    """That of the next residual branch."""
    return Modulation(next(values), next(values), next(values))
