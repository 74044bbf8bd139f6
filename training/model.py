"""The whole small model: transformer and both text encoders, and how to sample edits from it.

Axis letters: b batch, n tokens, d token width (128 = 32 channels x 2 x 2), h/w latent rows and columns.
Knows the shapes of FLUX.1 Kontext and its sampling loop. Does not know edits or training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from training.autoencoder import LATENTS
from training.tokenizers import CLIP_TOKENS, T5_TOKENS

BASE_SHIFT, MAX_SHIFT, BASE_TOKENS, MAX_TOKENS = 0.5, 1.15, 256, 4096


@dataclass(frozen=True, kw_only=True)
class Size:
    """What decides how large the model is."""

    heads: int = 6
    double_blocks: int = 2
    single_blocks: int = 6
    text_width: int = 128
    text_layers: int = 2


MINI: Final = Size()
TINY: Final = Size(heads=1, double_blocks=1, single_blocks=1, text_width=32, text_layers=1)


class Editor(nn.Module):
    """Transformer, CLIP and T5 under one roof, trained together."""

    def __init__(self, size: Size, clip: CLIPTokenizer, t5: T5Tokenizer) -> None:
        super().__init__()
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENTS,
            num_layers=size.double_blocks,
            num_single_layers=size.single_blocks,
            attention_head_dim=32,
            num_attention_heads=size.heads,
            joint_attention_dim=size.text_width,
            pooled_projection_dim=size.text_width,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=size.text_width,
                intermediate_size=2 * size.text_width,
                projection_dim=size.text_width,
                num_hidden_layers=size.text_layers,
                num_attention_heads=max(1, size.text_width // 32),
                max_position_embeddings=CLIP_TOKENS,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        )
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=size.text_width,
                d_kv=32,
                d_ff=3 * size.text_width // 2,
                num_layers=size.text_layers,
                num_heads=max(1, size.text_width // 32),
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=t5.pad_token_id,
                eos_token_id=t5.eos_token_id,
            )
        )
        self.tokenizer, self.tokenizer_2 = clip, t5
        nn.init.zeros_(self.transformer.proj_out.weight)
        for name, weight in self.transformer.named_parameters():
            if ".norm" in name and "linear" in name:  # adaLN-zero: every block starts as nothing
                nn.init.zeros_(weight)

        point_at_reference(self.transformer)

    def read(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        """Sentences -> text tokens (b, 48, width) and pooled embedding (b, width)."""
        device = self.transformer.device
        wanted = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        clip = self.tokenizer(sentences, max_length=CLIP_TOKENS, **wanted).input_ids.to(device)
        t5 = self.tokenizer_2(sentences, max_length=T5_TOKENS, **wanted).input_ids.to(device)
        return self.text_encoder_2(t5)[0], self.text_encoder(clip).pooler_output

    def forward(
        self,
        noisy_bchw: Tensor,
        reference_bchw: Tensor,
        text_bnd: Tensor,
        pooled_bd: Tensor,
        sigma_b: Tensor,
        guidance_b: Tensor,
    ) -> Tensor:
        """The velocity `noise - edited` of the noisy latents, in their shape."""
        height, width = noisy_bchw.shape[-2:]
        tokens = torch.cat([pack(noisy_bchw), pack(reference_bchw)], dim=1)
        positions = torch.cat(
            [positions_of(height, width, 0), positions_of(reference_bchw.shape[-2], reference_bchw.shape[-1], 1)]
        )
        velocity = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=text_bnd,
            pooled_projections=pooled_bd,
            timestep=sigma_b,  # the module multiplies both by 1000
            guidance=guidance_b,
            img_ids=positions.to(tokens.device),
            txt_ids=torch.zeros(text_bnd.shape[1], 3, device=tokens.device),
            return_dict=False,
        )[0]
        return unpack(velocity[:, : height * width // 4], height, width)


@torch.no_grad()
def point_at_reference(transformer: FluxTransformer2DModel) -> None:
    """Let two heads of every block look, from the start, from each noise token at the reference token of its place.

    Positions turn pairs of query and key values by (distance x frequency), so a query and a key that are the same
    for all tokens attend by distance alone. Found by training, this takes a thousand iterations: a sharp look needs
    large queries and keys, and their scales grow slowly.
    """
    axes = transformer.config.axes_dims_rope
    width, heads = transformer.config.attention_head_dim, min(2, transformer.config.num_attention_heads)
    query, key = torch.zeros(width), torch.zeros(width)
    first = 0
    for axis, share in zip(axes, (0.2, 0.4, 0.4), strict=True):
        # The fastest frequency tells neighbours apart, the second tells six tokens away from the place itself.
        for pair, part in ((0, 0.6), (1, 0.4)) if axis != axes[0] else ((0, 1.0),):
            length = (share * part) ** 0.5
            key[first + 2 * pair] = length
            query[first + 2 * pair] = length
        first += axis
    turn = torch.tensor(1.0)  # one stream on: from the noise (0) to the reference (1)
    query[:2] = query[0] * torch.stack([turn.cos(), turn.sin()])
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        attention = block.attn
        attention.norm_q.weight.fill_(2)
        attention.norm_k.weight.fill_(2)
        for projection, wanted in ((attention.to_q, query), (attention.to_k, key)):
            projection.bias[: heads * width] = 8 * wanted.repeat(heads)


def pack(latents_bchw: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h/2 * w/2, 4c), FLUX's order: channel, row in the patch, column in the patch."""
    b, c, h, w = latents_bchw.shape
    return latents_bchw.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens_bnd: Tensor, h: int, w: int) -> Tensor:
    """The reverse of `pack`."""
    b, _, d = tokens_bnd.shape
    return tokens_bnd.reshape(b, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, h, w)


def positions_of(h: int, w: int, stream: int) -> Tensor:
    """Rope positions (stream, row, column) of the tokens of h x w latents, float32 (h/2 * w/2, 3)."""
    rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
    return torch.stack([torch.full_like(rows, stream), rows, columns], dim=-1).reshape(-1, 3).float()


def shifted(sigma: Tensor, tokens: int) -> Tensor:
    """FLUX's time shift: more steps at high noise, the more so the larger the picture."""
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    factor = math.exp(BASE_SHIFT + slope * (tokens - BASE_TOKENS))
    return factor * sigma / (1 + (factor - 1) * sigma)


@torch.no_grad()
def sample(
    editor: Editor,
    vae: AutoencoderKL,
    photos_bchw: Tensor,
    sentences: list[str],
    *,
    guidance: float,
    steps: int,
    seed: int,
    canvas: tuple[int, int] | None = None,
) -> Tensor:
    """Edit a batch of photos of one size, pixels in [-1, 1] in and out, as FluxKontextPipeline would.

    Args:
        canvas: height and width of the result in pixels; None takes those of the photos.
    """
    config = vae.config
    reference = (vae.encode(photos_bchw).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    text, pooled = editor.read(sentences)
    height, width = canvas or photos_bchw.shape[-2:]
    shape = (len(sentences), LATENTS, height // 8, width // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(reference)
    tokens = latents.shape[-1] * latents.shape[-2] // 4
    sigmas = [*shifted(torch.linspace(1, 1 / steps, steps), tokens).tolist(), 0.0]
    strength = torch.full((len(sentences),), float(guidance), device=reference.device)
    for sigma, following in pairwise(sigmas):
        velocity = editor(latents, reference, text, pooled, torch.full_like(strength, sigma), strength)
        latents = latents + (following - sigma) * velocity.float()
    decoded: Tensor = vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    return decoded.clamp(-1, 1)
