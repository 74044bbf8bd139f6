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
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from training.autoencoder import LATENTS
from training.tokenizers import CLIP_TOKENS, T5_TOKENS

SIDES: Final = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right: (rows, columns)
TEXT_SHARE: Final = 0.37  # of a query that looks for a border: see `_point`
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

        point_heads(self.transformer)

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
def point_heads(transformer: FluxTransformer2DModel) -> None:
    """Let some heads look, from the start, at a token in a certain place as seen from their own.

    Positions turn pairs of query and key values by (distance x frequency), so a query and a key that are the same
    for all tokens attend by distance alone. Found by training, this takes a thousand iterations or is never found: a
    sharp look needs large queries and keys, and their scales grow slowly.

    In every block two heads look at the reference token of the same place. In the first two, the other four look one
    and four tokens up, down, left and right, and at the text where there is none: so a token learns how near to which
    border it is, which nothing else tells it. In two later blocks they look at the reference's neighbours.
    """
    doubles, singles = transformer.transformer_blocks, transformer.single_transformer_blocks
    for block in (*doubles, *singles):
        for norm in (block.attn.norm_q, block.attn.norm_k):
            norm.weight.fill_(2)
        for head in (0, 1):
            _point(transformer, block.attn, head, (1, 0, 0))
    for block, distance in zip(doubles, (1, 4), strict=False):
        for head, (down, right) in enumerate(SIDES, start=2):
            _point(transformer, block.attn, head, (0, distance * down, distance * right), else_text=True)
    for block in singles[:4:2]:
        for head, (down, right) in enumerate(SIDES, start=2):
            _point(transformer, block.attn, head, (1, down, right))


def _point(
    transformer: FluxTransformer2DModel,
    attention: FluxAttention,
    head: int,
    offset: tuple[int, int, int],
    *,
    else_text: bool = False,
) -> None:
    """Make one head look by `offset` (stream, rows, columns); a head that the model doesn't have is passed over.

    Args:
        else_text: the text gets what is left where no token is there.
    """
    width = transformer.config.attention_head_dim
    if head >= transformer.config.num_attention_heads:
        return
    query, key = torch.zeros(width), torch.zeros(width)
    first = 0
    for axis, share, distance in zip(transformer.config.axes_dims_rope, (0.2, 0.4, 0.4), offset, strict=True):
        # The fastest frequency tells neighbours apart, the second tells six tokens away from the place itself.
        for pair, part in ((0, 0.6), (1, 0.4)) if first else ((0, 1.0),):
            length, turn = (share * part) ** 0.5, torch.tensor(distance * 10_000.0 ** (-2 * pair / axis))
            key[first + 2 * pair] = length
            query[first + 2 * pair : first + 2 * pair + 2] = length * torch.stack([turn.cos(), turn.sin()])
        first += axis
    rows = slice(head * width, (head + 1) * width)
    if else_text:
        # The slowest pair hardly turns: by it a text token is as near from everywhere. So many text tokens together
        # weigh a little less than the one that is looked for, and more than its neighbours.
        still = slice(width - 2, width - 1)
        text = torch.zeros(width)
        text[still] = 1
        query *= (1 - TEXT_SHARE) ** 0.5
        query[still] = TEXT_SHARE**0.5
        attention.norm_added_k.weight[still] = 2
        _fix(attention.add_k_proj, rows, text)
    _fix(attention.to_q, rows, query)
    _fix(attention.to_k, rows, key)


def _fix(projection: nn.Linear, rows: slice, value: Tensor) -> None:
    """Make the outputs in `rows` nearly the same for every token."""
    projection.weight[rows] *= 0.1
    projection.bias[rows] = 8 * value


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
