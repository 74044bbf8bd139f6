"""Stage 1: the autoencoder, pixels <-> 16 latent channels at an eighth of the size.

Axis letters: b batch, c channel, h/w rows and columns. Pixels in the network are in [-1, 1].
Knows diffusers' AutoencoderKL. Does not know instructions; the pictures it sees are edited only roughly, so that
inverted, grey, dark and drawn pictures are as welcome as photos.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from training.loop import Plan, train
from training.muon import optimizers
from training.photos import Pixels, crop
from training.scenes import scene

WIDTHS: Final = (32, 48, 96, 128)
KL_WEIGHT: Final = 2e-4  # holds the latents near unit size and makes the decoder bear a little noise; costs 0.1 dB


def build(widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """A fresh autoencoder in FLUX's layout (8x down, 16 channels, no quant convolutions), small."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=288,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,  # a picture of any size costs the same per pixel
    )


def _restyled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Now and then what the edits make of pictures: grey, inverted, dark, pale, flat, hard, in blocks, framed."""
    kind = rng.integers(30)
    if kind == 0:
        pixels = 1 - pixels
    elif kind == 1:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    elif kind == 2:
        pixels = pixels * rng.uniform(0.1, 1, 3)
    elif kind == 3:
        pixels = 1 - (1 - pixels) * rng.uniform(0.1, 1, 3)
    elif kind == 4:
        pixels = np.clip(0.5 + (pixels - 0.5) * rng.uniform(1.5, 4), 0, 1)
    elif kind == 5:
        levels = rng.integers(2, 6)
        pixels = np.round(pixels * levels) / levels
    elif kind == 6:
        height, width = pixels.shape[0] // 16 * 16, pixels.shape[1] // 16 * 16
        blocks = pixels[:height, :width].reshape(height // 16, 16, width // 16, 16, 3).mean(axis=(1, 3))
        pixels = blocks.repeat(16, axis=0).repeat(16, axis=1)
    elif kind == 7:
        edge, framed = int(rng.integers(4, 20)), pixels.copy()
        framed[:edge] = framed[-edge:] = framed[:, :edge] = framed[:, -edge:] = rng.random(3)
        pixels = framed
    return pixels.astype(np.float32)


def pictures(rng: np.random.Generator, count: int, height: int, width: int) -> Tensor:
    """Random training pictures. Returns float32 (count, 3, height, width) in [-1, 1]."""
    made = [
        _restyled(crop(rng, height, width) if rng.random() < 0.75 else scene(rng, height, width), rng)
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) * 2 - 1


def autoencoder(
    runs: Path, *, plan: Plan, device: torch.device, size: int = 96, batch: int = 8, widths: tuple[int, ...] = WIDTHS
) -> AutoencoderKL:
    """Train the autoencoder, or load it where `runs` has it finished; then measure its scaling and shift.

    Every fourth batch shows fewer, larger pictures: group normalisation sees whole pictures, and those differ in size.
    """
    torch.manual_seed(plan.seed)
    vae = build(widths)
    with torch.no_grad():  # start with little noise: with the usual variance of 1 the decoder first learns to look away
        vae.encoder.conv_out.weight[16:] = 0
        vae.encoder.conv_out.bias[16:] = -5
        for module in vae.modules():  # near-identity blocks at first: half the iterations to the first 14 dB
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.mul_(0.1)
    vae = vae.to(device)

    def make_batch(iteration: int) -> Tensor:
        rng = np.random.default_rng([plan.seed, 1, iteration])
        large = iteration % 4 == 3
        return pictures(rng, max(1, batch // 4), 2 * size, 2 * size) if large else pictures(rng, batch, size, size)

    def errors(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = vae.encoder(pixels).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        error = (vae.decoder(latents).float() - pixels).pow(2).mean(dim=(1, 2, 3))
        return error, 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()

    def losses_of(pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(device)
        # The logarithm asks for decibels: else the noise of sand and grass, which nobody can keep, is all that counts.
        with torch.autocast(device.type, torch.bfloat16):
            error, divergence = errors(pixels)
        return {
            "loss": 0.01 * (error + 5e-4).log().mean() + KL_WEIGHT * divergence,
            "kl": divergence,
            "psnr": -10 * torch.log10(error.detach() / 4).mean(),
        }

    stages = optimizers(vae, plan.rate, plain=("conv_in", "conv_out"))
    train(vae, stages, make_batch, losses_of, plan=plan, runs=runs, name="autoencoder")
    _calibrate(vae, plan.seed, size, device)
    return vae


@torch.no_grad()
def _calibrate(vae: AutoencoderKL, seed: int, size: int, device: torch.device) -> None:
    """Set the scaling and shift factors so that the transformer's latents have mean 0 and deviation 1."""
    seen = torch.cat([encode(vae, pictures(np.random.default_rng([seed, 2, i]), 8, size, size).to(device)) for i in range(16)])
    shift, deviation = seen.mean().item(), seen.std().item()
    vae.register_to_config(scaling_factor=1 / deviation, shift_factor=shift)


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Raw latents (b, 16, h/8, w/8) of pixels in [-1, 1]: the mode, as the pipeline takes it."""
    latents: Tensor = vae.encode(pixels).latent_dist.mode()
    return latents


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [0, 1]."""
    return -10 * math.log10(float(np.square(a.astype(np.float64) - b).mean()) + 1e-10)
