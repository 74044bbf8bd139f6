"""Both text encoders learn to tell requests apart, before any picture depends on them.

A transformer that learns to read by looking at edited pictures needs tens of thousands of them. Naming the edit that a
sentence asks for costs a hundredth of that. The naming heads are thrown away; the encoders go on learning with
the transformer. Knows sentences and edits. Does not know pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from training.edits import EDITS
from training.loop import Plan, autocast, train
from training.model import Editor
from training.muon import optimizers
from training.phrasings import phrase
from training.shapes import change
from training.unrelated import unrelated

LABELS: Final = (*EDITS, "shapes", "unrelated")


class Namer(nn.Module):
    """The encoders with a linear head on each: one reads the pooled embedding, one the mean of the text tokens."""

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = editor.text_encoder, editor.text_encoder_2
        width = editor.transformer.config.pooled_projection_dim
        self.pooled_head, self.token_head = nn.Linear(width, len(LABELS)), nn.Linear(width, len(LABELS))


def requests(rng: np.random.Generator, count: int) -> tuple[list[str], list[int]]:
    """Random sentences and the indices of their labels; a fifth asks for nothing known."""
    sentences, labels = [], []
    weights = np.array([0.5 if " " in name else 1.0 for name in EDITS] + [2.0, 6.0])
    for label in rng.choice(len(LABELS), count, p=weights / weights.sum()):
        name = LABELS[label]
        if name == "unrelated":
            sentences.append(unrelated(rng))
        elif name == "shapes":
            sentences.append(change(rng, 32, 32).sentence)
        else:
            sentences.append(phrase(name, rng))
        labels.append(int(label))
    return sentences, labels


def reading(runs: Path, editor: Editor, *, plan: Plan, device: torch.device, batch: int = 128) -> None:
    """Train the text encoders of `editor` in place, or load them where `runs` has them finished."""
    editor.to(device)
    namer = Namer(editor).to(device)

    def make_batch(iteration: int) -> tuple[list[str], list[int]]:
        return requests(np.random.default_rng([plan.seed, 7, iteration]), batch)

    def losses_of(asked: tuple[list[str], list[int]]) -> dict[str, Tensor]:
        labels = torch.tensor(asked[1], device=device)
        with autocast(device):
            text, pooled = editor.read(asked[0])
            guesses = namer.pooled_head(pooled).float(), namer.token_head(text.mean(dim=1)).float()
        losses = [nn.functional.cross_entropy(guess, labels) for guess in guesses]
        right = (guesses[0].argmax(dim=1) == labels).float().mean()
        return {"loss": losses[0] + losses[1], "right": right}

    steps = optimizers(namer, plan.rate, plain=("embed", "shared", "head"))
    train(namer, steps, make_batch, losses_of, plan=plan, runs=runs, name="reading")
