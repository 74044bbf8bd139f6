"""A picture of how far the transformer is: one training photo and some edits of it, drawn at every few saved states.

Numbers say whether it learns, a look says what. Knows how to sample and to lay pictures side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from training.edits import EDITS
from training.model import Editor, sample
from training.photos import crop
from training.phrasings import phrase

STEPS: Final = 8
SHOWN: Final = ("grayscale", "night", "invert", "blur", "sketch", "poster", "vignette", "bokeh", "frame red")


def glimpse(path: Path, editor: Editor, vae: AutoencoderKL, *, size: tuple[int, int], seed: int = 0) -> None:
    """Draw a row to `path`: the photo, what the model makes of it, and below each the exact edit."""
    rng = np.random.default_rng([seed, 8])
    photo = crop(rng, *size)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] * 2 - 1
    was_training = editor.training
    editor.eval()
    answers = sample(
        editor,
        vae,
        pixels.expand(len(SHOWN), -1, -1, -1).to(editor.transformer.device),
        [phrase(name, rng) for name in SHOWN],
        guidance=7.0,
        steps=STEPS,
        seed=seed,
    )
    editor.train(was_training)
    made = [answer.permute(1, 2, 0).float().cpu().numpy() / 2 + 0.5 for answer in answers]
    exact = [EDITS[name].apply(photo, rng) for name in SHOWN]
    rows = [np.concatenate([photo, *row], axis=1) for row in (made, exact)]
    Image.fromarray(np.round(np.concatenate(rows) * 255).astype(np.uint8)).save(path)
