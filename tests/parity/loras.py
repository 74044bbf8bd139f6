"""LoRAs for small random models, in PEFT's names, large enough to be seen in pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]
RANK: Final = 3


def factors(state: State, module: str, rank: int = RANK, *, seed: int = 0) -> State:
    """Random ones for a matrix of `state`."""
    o, d = state[f"{module}.weight"].shape
    random = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, d, generator=random) * 0.3,
        f"{module}.lora_B.weight": torch.randn(o, rank, generator=random) * 0.3,
    }


def weights(folder: Path, part: str) -> State:
    name = "diffusion_pytorch_model" if part == "transformer" else "model"
    return load_file(folder / part / f"{name}.safetensors")


def trained(folder: Path, **settings: object) -> tuple[State, dict[str, str]]:
    """A LoRA of many modules of the transformer and of CLIP, and a header with PEFT's settings."""
    transformer, clip = weights(folder, "transformer"), weights(folder, "text_encoder")
    modules = [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_v",
        "transformer_blocks.1.attn.add_k_proj",
        "transformer_blocks.1.attn.to_out.0",
        "transformer_blocks.0.ff.net.0.proj",
        "transformer_blocks.0.ff_context.net.2",
        "transformer_blocks.0.norm1.linear",
        "single_transformer_blocks.0.attn.to_k",
        "single_transformer_blocks.1.proj_mlp",
        "single_transformer_blocks.2.proj_out",
        "single_transformer_blocks.2.norm.linear",
        "norm_out.linear",
        "proj_out",
        "x_embedder",
        "context_embedder",
        "time_text_embed.guidance_embedder.linear_1",
    ]
    state: State = {}
    for i, module in enumerate(modules):
        named = factors(transformer, module, RANK + i % 2, seed=i)
        state |= {f"transformer.{name}": tensor for name, tensor in named.items()}
    stem = next(name for name in clip if name.endswith("layers.1.self_attn.q_proj.weight")).removesuffix(".weight")
    named = factors(clip, stem, seed=99)
    state |= {f"text_encoder.{name.removeprefix('text_model.')}": tensor for name, tensor in named.items()}
    told = {"r": RANK, "lora_alpha": RANK, "rank_pattern": {}, "alpha_pattern": {}, **settings}
    told["rank_pattern"] = dict.fromkeys(modules[1::2], RANK + 1)
    told["target_modules"] = modules
    header = {f"transformer.{key}": value for key, value in told.items() if value is not None}
    header |= {"text_encoder.r": RANK, "text_encoder.lora_alpha": 2 * RANK, "text_encoder.target_modules": ["q_proj"]}
    return state, {"lora_adapter_metadata": json.dumps(header)}
