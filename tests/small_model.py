"""Small random FLUX.1 Kontext pipelines on disk: every part real, only few and narrow, and all weights random.

diffusers builds and saves them, so that what our engine opens is what diffusers wrote.
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

CANVAS_AREA = 96 * 96
TEXT_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the parts are."""

    heads: int = 2
    axes: tuple[int, int, int] = (4, 6, 6)
    double_blocks: int = 1
    single_blocks: int = 2
    text_width: int = 32
    pooled_width: int = 24
    guidance_embedded: bool = True
    autoencoder_channels: tuple[int, ...] = (8, 8, 16, 16)
    latent_channels: int = 16
    seed: int = 0

    @property
    def head_width(self) -> int:
        """Rotary widths add up to it."""
        return sum(self.axes)


SHAPES = {
    "plain": Shape(),
    "deep": Shape(heads=3, axes=(8, 12, 12), double_blocks=2, single_blocks=3, seed=1),
    "single-stream": Shape(heads=1, axes=(16, 24, 24), double_blocks=0, single_blocks=4, text_width=48, seed=2),
    "no-guidance": Shape(double_blocks=2, single_blocks=1, guidance_embedded=False, latent_channels=4, seed=3),
}


def build(folder: Path, shape: Shape) -> FluxKontextPipeline:
    """Make a random pipeline, save it to `folder` with its `rekontext.json`, and return it in evaluation mode."""
    torch.manual_seed(shape.seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * shape.latent_channels,
        num_layers=shape.double_blocks,
        num_single_layers=shape.single_blocks,
        attention_head_dim=shape.head_width,
        num_attention_heads=shape.heads,
        joint_attention_dim=shape.text_width,
        pooled_projection_dim=shape.pooled_width,
        guidance_embeds=shape.guidance_embedded,
        axes_dims_rope=shape.axes,
    )
    channels = shape.autoencoder_channels
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=shape.latent_channels,
        norm_num_groups=8,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    clip_words, t5_words = clip_tokenizer(folder), t5_tokenizer()
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_words),
            hidden_size=shape.pooled_width,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=clip_words.bos_token_id,
            eos_token_id=clip_words.eos_token_id,
            pad_token_id=clip_words.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_words),
            d_model=shape.text_width,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    for part in (transformer, vae, clip, t5):
        _shake(part)
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
        ),
        vae=vae.eval(),
        text_encoder=clip.eval(),
        tokenizer=clip_words,
        text_encoder_2=t5.eval(),
        tokenizer_2=t5_words,
        transformer=transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    facts = {"canvas_area": CANVAS_AREA, "text_tokens": TEXT_TOKENS, "axes": list(shape.axes)}
    (folder / "rekontext.json").write_text(json.dumps(facts))
    return pipeline


def _shake(part: Any) -> None:
    """Fresh modules have zero biases and unit norms, behind which a mixed-up name could hide."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def clip_tokenizer(folder: Path, *, length: int = 32) -> CLIPTokenizer:
    """Letters only. `folder` is where it is put together; nothing stays there."""
    letters = sorted(set(string.ascii_lowercase + string.digits + ",.'!-"))
    pieces = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = folder / "clip-vocab.json", folder / "clip-merges.txt"
    vocabulary.write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=length)
    vocabulary.unlink()
    merges.unlink()
    return tokenizer


def t5_tokenizer() -> T5Tokenizer:
    """Letters only."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, *string.digits, *",.'!-"]
    tokenizer = Tokenizer(Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5Tokenizer(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512)
