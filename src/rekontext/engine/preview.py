"""An early look: predicted clean latents -> a small RGB picture, through one linear map.

Axis letters in this file: p sample points, c latent channels.
Latents of this kind of autoencoder are nearly an affine image of the 8x8 pixels they stand for, as far as colour goes.
The map is fitted on the loaded autoencoder itself, so every model gets one that suits it.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor

from rekontext.engine.autoencoder import Autoencoder, to_picture, unpack
from rekontext.engine.canvas import Size

_FIT_SIZE: Size = (256, 256)
_FIT_PICTURES = 4


class Previewer:
    """Draws previews. Fits its map when it is made."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        generator = np.random.default_rng(0)
        rows, targets = [], []
        for _ in range(_FIT_PICTURES):
            picture = _blobs(generator)
            tokens = autoencoder.encode(picture, _FIT_SIZE, remember=False)
            rows.append(rearrange(unpack(tokens, _FIT_SIZE), "1 c h w -> (h w) c").cpu())
            pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
            targets.append(reduce(pixels, "(h y) (w x) c -> (h w) c", "mean", y=8, x=8))
        self._map = torch.linalg.lstsq(_with_one(torch.cat(rows)), torch.cat(targets)).solution

    def draw(self, tokens_1ne: Tensor, size: Size) -> Image.Image:
        """The picture behind predicted clean tokens, one pixel per latent."""
        latents_pc = rearrange(unpack(tokens_1ne.float(), size), "1 c h w -> (h w) c").cpu()
        pixels = (_with_one(latents_pc) @ self._map).clamp(0, 1)
        return to_picture(rearrange(pixels, "(h w) c -> c h w", h=size[1] // 8))


def _blobs(generator: np.random.Generator) -> Image.Image:
    """Smooth random colours at several scales."""
    width, height = _FIT_SIZE
    total = np.zeros((height, width, 3))
    for cells in (2, 5, 12, 28):
        noise = generator.random((cells, cells, 3)) * 255
        layer = Image.fromarray(noise.astype(np.uint8)).resize(_FIT_SIZE, Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float64) - 127
    return Image.fromarray((total * 0.8 + 127).clip(0, 255).astype(np.uint8))


def _with_one(rows_pc: Tensor) -> Tensor:
    return torch.cat([rows_pc, torch.ones(len(rows_pc), 1)], dim=1)
