"""Keeping an edit to a part of its photo, as diffusers' `FluxKontextInpaintPipeline` does.

After each step, what must stay is put back: the photo's own latents, with the noise that they have at that level. So
the model draws the free part in sight of what surrounds it. The decoded picture is laid over the photo's pixels in the
end, because the autoencoder changes all that goes through it.

Unlike there, a latent is free if the mask marks any pixel of it, not the one in its corner alone: a thin line counts.

Axis letters in this file: p pictures of one edit, n output tokens, e values per token, y/x pixel row and column, h/w
latent row and column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from PIL import Image
from torch import Tensor

from rekontext.engine.autoencoder import pack
from rekontext.engine.canvas import PIXELS_PER_TOKEN, Size
from rekontext.masks import FREE_FROM, stretch_mask
from rekontext.photos import stretch

_PIXELS_PER_LATENT: Final = PIXELS_PER_TOKEN // 2


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What of the photo stays, and how it comes back.

    Attributes:
        is_free_1ne: which values the model draws.
        photo_1ne, noise_pne: the photo's latents, and the noise that the edit began with.
        photo, mask: at the picture's size; the mask of mode "L".
    """

    is_free_1ne: Tensor
    photo_1ne: Tensor
    noise_pne: Tensor
    photo: Image.Image
    mask: Image.Image

    @classmethod
    def of(cls, photo: Image.Image, mask: Image.Image, *, size: Size, photo_1ne: Tensor, noise_pne: Tensor) -> Kept:
        """Of a photo and its mask, for a picture of `size`."""
        photo, mask = stretch(photo, size), stretch_mask(mask, size)
        channels = photo_1ne.shape[-1] // (PIXELS_PER_TOKEN // _PIXELS_PER_LATENT) ** 2
        marked_yx = torch.from_numpy(np.array(mask)) >= FREE_FROM
        side = _PIXELS_PER_LATENT
        free_hw = reduce(marked_yx.to(torch.uint8), "(h i) (w j) -> h w", "max", i=side, j=side)
        is_free_1ne = pack(repeat(free_hw, "h w -> 1 c h w", c=channels)).bool()
        return cls(
            is_free_1ne=is_free_1ne.to(photo_1ne.device),
            photo_1ne=photo_1ne,
            noise_pne=noise_pne,
            photo=photo,
            mask=mask,
        )

    def put_back(self, latents_pne: Tensor, sigma: float) -> Tensor:
        """The latents with what stays as it is at this level of noise, 0 for clean."""
        return torch.where(self.is_free_1ne, latents_pne, sigma * self.noise_pne + (1.0 - sigma) * self.photo_1ne)

    def lay_over(self, pixels_3yx: Tensor) -> Tensor:
        """The picture over the photo, as the mask says: (3, y, x) in 0..1. Where it is black, to the very level."""
        photo_3yx, opacity_1yx = (_levels(picture).to(pixels_3yx.device) / 255.0 for picture in (self.photo, self.mask))
        return opacity_1yx * pixels_3yx + (1.0 - opacity_1yx) * photo_3yx


def _levels(picture: Image.Image) -> Tensor:
    """(c, y, x) in float32."""
    levels = torch.from_numpy(np.array(picture, dtype=np.float32))
    return rearrange(levels, "y x ... -> (...) y x")
