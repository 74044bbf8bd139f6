"""Pixels <-> latent tokens, through diffusers' AutoencoderKL.

Axis letters in this file: b batch, c latent channel, h/w latent row and column (pixels / 8), y/x pixel row and column,
n tokens, e values per token (4c). A token is a 2x2 patch of latents.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from PIL import Image
from torch import Tensor

from rekontext.engine.canvas import PIXELS_PER_TOKEN, Size
from rekontext.photos import stretch

CACHED_REFERENCES_BYTES_MAX: Final = 64 * 2**20
"""A reference of 1 MP is 1 MiB of float32 latents."""


def pack(latents_bchw: Tensor) -> Tensor:
    """Fold 2x2 patches of latents into tokens, row by row: (b, c, h, w) -> (b, n, e)."""
    return rearrange(latents_bchw, "b c (h i) (w j) -> b (h w) (c i j)", i=2, j=2)


def unpack(tokens_bne: Tensor, size: Size) -> Tensor:
    """The inverse of `pack` for a picture of `size` pixels."""
    columns = size[0] // PIXELS_PER_TOKEN
    return rearrange(tokens_bne, "b (h w) (c i j) -> b c (h i) (w j)", w=columns, i=2, j=2)


class NotFinite(ArithmeticError):
    """What came out of the model are no numbers."""

    def __init__(self) -> None:
        super().__init__("the model's pixels are NaN or infinite: its weights are damaged, or a kernel is wrong here")


class Autoencoder:
    """Encodes reference photos (remembering the last ones by content) and decodes results."""

    def __init__(self, model: AutoencoderKL) -> None:
        self._model = model
        self._scaling = float(model.config["scaling_factor"])
        self._shift = float(model.config["shift_factor"])
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._cached_bytes = 0

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self._model.config["latent_channels"])

    @torch.inference_mode()
    def encode(self, photo: Image.Image, size: Size, *, remember: bool = True) -> Tensor:
        """Reference tokens (1, n, e) in float32 of the photo, stretched to `size` with Lanczos and not cropped."""
        photo = stretch(photo, size)
        key = hashlib.sha256(repr(size).encode() + photo.tobytes()).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        # Bytes go to the device, and what each of the 256 levels stands for is looked up there.
        levels_byxc = torch.from_numpy(np.array(photo)[None]).to(self._model.device)
        values = torch.from_numpy(np.arange(256, dtype=np.float32) / 255.0) * 2.0 - 1.0
        pixels = values.to(self._model.device, self._model.dtype).index_select(0, levels_byxc.flatten().int())
        # A batch before its axes are exchanged: by its strides the convolutions know that channels are innermost. Else
        # they take others, and a flat photo, whose norms divide by next to nothing, is off by 1e-3 from diffusers'.
        pixels_bcyx = rearrange(pixels.view(levels_byxc.shape), "b y x c -> b c y x")
        # The distribution's mode, not a sample: a reference must not depend on a seed.
        latents = self._model.encode(pixels_bcyx).latent_dist.mode()
        tokens = pack((latents - self._shift) * self._scaling).float()
        if remember:
            self._remember(key, tokens)
        return tokens

    @torch.inference_mode()
    def decode(self, tokens_1ne: Tensor, size: Size) -> Tensor:
        """Pixels (3, y, x) in 0..1, float32 where the model is.

        Raises:
            NotFinite: some are NaN or infinite, and would be black or white in a picture.
        """
        latents = unpack(tokens_1ne, size).to(self._model.dtype) / self._scaling + self._shift
        pixels: Tensor = self._model.decode(latents, return_dict=False)[0][0].float()
        if not pixels.isfinite().all():
            raise NotFinite
        return (pixels / 2 + 0.5).clamp(0, 1)

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()
        self._cached_bytes = 0

    def _remember(self, key: bytes, tokens: Tensor) -> None:
        self._cache[key] = tokens
        self._cached_bytes += tokens.nbytes
        while self._cached_bytes > CACHED_REFERENCES_BYTES_MAX:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes


def to_picture(pixels_3yx: Tensor) -> Image.Image:
    """Float pixels in 0..1 -> an RGB picture, rounded to the nearest of 256 levels."""
    levels = (pixels_3yx * 255).round().to(torch.uint8)
    return Image.fromarray(rearrange(levels, "c y x -> y x c").contiguous().cpu().numpy())
