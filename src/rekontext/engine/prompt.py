"""Prompt -> what the transformer reads: T5's states for every token, and CLIP's pooled vector.

Axis letters in this file: t text tokens, w state width, p pooled width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from rekontext.engine.checkpoint import OpenedModel
from rekontext.engine.memory import CACHED_PROMPTS_MAX


@dataclass(frozen=True, kw_only=True)
class PromptEmbedding:
    """An encoded prompt.

    Attributes:
        states_1tw: T5's last states; padding is attended to, as the model was trained.
        pooled_1p: CLIP's pooled state.
        is_cut: whether the prompt has more tokens than T5 reads of it.
    """

    states_1tw: Tensor
    pooled_1p: Tensor
    is_cut: bool


class PromptEncoder:
    """Encodes prompts and remembers the last `CACHED_PROMPTS_MAX`."""

    def __init__(self, parts: OpenedModel) -> None:
        self._parts = parts
        self._cache: OrderedDict[str, PromptEmbedding] = OrderedDict()

    @property
    def tokens(self) -> int:
        """Text tokens of every prompt."""
        return self._parts.text_tokens

    @torch.inference_mode()
    def encode(self, prompt: str) -> PromptEmbedding:
        """Tokens past the encoders' lengths are cut off, as in every implementation of this model."""
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        parts = self._parts
        clip_ids = parts.clip_tokenizer(
            prompt,
            padding="max_length",
            # A tokenizer that wasn't told its length has a huge one.
            max_length=min(parts.clip_tokenizer.model_max_length, parts.clip.config.max_position_embeddings),
            truncation=True,
            return_tensors="pt",
        ).input_ids
        t5_ids = parts.t5_tokenizer(
            prompt, padding="max_length", max_length=parts.text_tokens, truncation=True, return_tensors="pt"
        ).input_ids
        uncut = parts.t5_tokenizer(prompt, verbose=False).input_ids
        # Not the encoders' own device: one that waits on the host computes where the transformer does.
        device = parts.transformer.device
        embedding = PromptEmbedding(
            states_1tw=parts.t5(_sent(t5_ids, device))[0],
            pooled_1p=parts.clip(_sent(clip_ids, device)).pooler_output,
            is_cut=len(uncut) > parts.text_tokens,
        )
        self._cache[prompt] = embedding
        if len(self._cache) > CACHED_PROMPTS_MAX:
            self._cache.popitem(last=False)
        return embedding

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()


def _sent(ids: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what was queued on it before."""
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids.to(device)
