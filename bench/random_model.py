"""FLUX.1 Kontext [dev] with random weights, at its own size or small, made on the device in seconds.

Speed doesn't depend on the weights' values, as long as they aren't zeros. The same weights are also put into diffusers'
transformer, so that both can be timed, and compared, in one process; they share the memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from rekontext.engine.canvas import KONTEXT_AREA, Canvas
from rekontext.engine.checkpoint import OpenedModel
from rekontext.engine.layouts import diffusers_recipe
from rekontext.engine.pretrained import laid_out
from rekontext.engine.schedule import Schedule
from rekontext.engine.transformer import KontextTransformer, TransformerConfig
from tests.small_model import clip_tokenizer, t5_tokenizer

_BIAS: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large every part is; the defaults are the published model's.

    Attributes:
        clip, t5: configurations of the text encoders, as transformers names their fields.
        channels: of the autoencoder's levels.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    canvas_area: int = KONTEXT_AREA
    text_tokens: int = 512
    clip_tokens: int = 77
    clip: dict[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
        }
    )
    t5: dict[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 32128,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        }
    )
    channels: tuple[int, ...] = (128, 256, 512, 512)
    autoencoder_layers: int = 2


FULL: Final = Size()
SMALL: Final = Size(
    transformer=TransformerConfig(
        width=64, heads=2, axes=(8, 12, 12), double_blocks=2, single_blocks=3, text_width=32, pooled_width=32
    ),
    canvas_area=96 * 96,
    text_tokens=24,
    clip_tokens=32,
    clip={
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
    t5={"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    | {"feed_forward_proj": "gated-gelu"},
    channels=(8, 8, 16, 16),
    autoencoder_layers=1,
)


def random_transformer(
    config: TransformerConfig, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> KontextTransformer:
    """Ours, made on the device: nothing of it ever lies on the host."""
    with torch.device("meta"):
        transformer = KontextTransformer(config).to(dtype)
    transformer.to_empty(device=device)
    randomise(transformer, torch.Generator(device).manual_seed(seed))
    return transformer.requires_grad_(False).eval()


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Fill all parameters: matrices so that they keep the variance of their input, norms near 1, biases near 0."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.uniform_(-_BIAS, _BIAS, generator=generator)
            if name.endswith(".scale"):
                parameter.add_(1)


def random_lora(config: TransformerConfig, device: torch.device, *, rank: int = 16) -> dict[str, torch.Tensor]:
    """A LoRA, in bfloat16 on the host, of every matrix in the blocks; it changes each by about a tenth.

    Drawn on `device`: at full size a host takes as long for it as a GPU for an edit.
    """
    with torch.device("meta"):
        transformer = KontextTransformer(config)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2 and "_blocks." in name:
            module = f"transformer.{name.removesuffix('.weight')}"
            o, d = parameter.shape
            down = torch.randn(rank, d, dtype=torch.bfloat16, device=device) / d**0.5
            up = torch.randn(o, rank, dtype=torch.bfloat16, device=device) * (0.1 / rank**0.5)
            state |= {f"{module}.lora_A.weight": down.cpu(), f"{module}.lora_B.weight": up.cpu()}
    return state


def random_parts(size: Size, transformer: KontextTransformer) -> OpenedModel:
    """Everything that opening a checkpoint gives, around a transformer: where it is, and in its format."""
    device, dtype = transformer.device, transformer.dtype
    with tempfile.TemporaryDirectory() as folder:
        clip_words = clip_tokenizer(Path(folder), length=size.clip_tokens)
    t5_words = t5_tokenizer()
    clip_config = CLIPTextConfig(
        bos_token_id=clip_words.bos_token_id,
        eos_token_id=clip_words.eos_token_id,
        pad_token_id=clip_words.pad_token_id,
        **size.clip,
    )
    return OpenedModel(
        name="random",
        canvas=Canvas(area=size.canvas_area),
        schedule=Schedule(),
        text_tokens=size.text_tokens,
        knows=(),
        transformer=transformer,
        autoencoder=laid_out(_made(lambda: _autoencoder(size), device, dtype), device),
        clip=_made(lambda: CLIPTextModel(clip_config), device, dtype),
        clip_tokenizer=clip_words,
        t5=_made(lambda: T5EncoderModel(T5Config(**size.t5)), device, dtype),
        t5_tokenizer=t5_words,
    )


def diffusers_twin(ours: KontextTransformer) -> FluxTransformer2DModel:
    """diffusers' transformer with the same weights. It looks at our tensors, except where the order differs."""
    config = ours.config
    with torch.device("meta"):
        twin = FluxTransformer2DModel(
            patch_size=1,
            in_channels=config.channels,
            num_layers=config.double_blocks,
            num_single_layers=config.single_blocks,
            attention_head_dim=config.width // config.heads,
            num_attention_heads=config.heads,
            joint_attention_dim=config.text_width,
            pooled_projection_dim=config.pooled_width,
            guidance_embeds=config.guidance_embedded,
            axes_dims_rope=config.axes,
        )
    shapes = {name: parameter.shape for name, parameter in twin.named_parameters()}
    state: dict[str, torch.Tensor] = {}
    for name, parameter in ours.named_parameters():
        recipe = diffusers_recipe(name)
        tensor = torch.cat(parameter.chunk(2)[::-1]) if recipe.swap else parameter.detach()
        rows = [shapes[source][0] for source in recipe.sources]
        state |= zip(recipe.sources, tensor.split(rows), strict=True)
    twin.load_state_dict(state, assign=True)
    return twin.requires_grad_(False).eval()


def diffusers_pipeline(parts: OpenedModel, twin: FluxTransformer2DModel) -> FluxKontextPipeline:
    """diffusers' whole pipeline around a twin, with our text encoders and autoencoder."""
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
        ),
        vae=parts.autoencoder,
        text_encoder=parts.clip,
        tokenizer=parts.clip_tokenizer,
        text_encoder_2=parts.t5,
        tokenizer_2=parts.t5_tokenizer,
        transformer=twin,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _autoencoder(size: Size) -> AutoencoderKL:
    levels = len(size.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.channels,
        layers_per_block=size.autoencoder_layers,
        latent_channels=size.transformer.channels // 4,
        norm_num_groups=min(32, size.channels[0]),
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _made(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A part of a library, initialised by itself on the device and in the format that it stays in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            part = make()
    finally:
        torch.set_default_dtype(before)
    return part.to(device, dtype).requires_grad_(False).eval()
