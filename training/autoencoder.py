"""The autoencoder, pixels <-> 32 latent channels at an eighth of the size.

The encoder is written down (`training.principal`), the decoder is learned. FLUX has 16 channels, but eighty million
parameters to make the most of them: with 16 no linear code keeps more than 25.5 dB of the exam's photos, with 32 it is
28.

Axis letters: b batch, c channel, h/w rows and columns. Pixels in the network are in [-1, 1].
Knows diffusers' AutoencoderKL. Does not know instructions; the pictures it sees are edited only roughly, so that
inverted, grey, dark and drawn pictures are as welcome as photos.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from training.loop import Plan, train
from training.muon import optimizers
from training.photos import Pixels, crop, pixels_of
from training.principal import analysis, write_into
from training.scenes import scene

WIDTHS: Final = (32, 48, 96, 128)
LATENTS: Final = 32
NOISE: Final = 0.03  # what the decoder must bear on the transformer's latents, which are never exact


def build(widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """A fresh autoencoder in FLUX's layout (8x down, no quant convolutions), small."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=288,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,  # a picture of any size costs the same per pixel
    )


def _restyled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Now and then what the edits make of pictures: grey, inverted, dark, pale, flat, hard, in blocks, framed."""
    kind = rng.integers(30)
    out: npt.NDArray[Any] = pixels
    if kind == 0:
        out = 1 - pixels
    elif kind == 1:
        out = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    elif kind == 2:
        out = pixels * rng.uniform(0.1, 1, 3)
    elif kind == 3:
        out = 1 - (1 - pixels) * rng.uniform(0.1, 1, 3)
    elif kind == 4:
        out = np.clip(0.5 + (pixels - 0.5) * rng.uniform(1.5, 4), 0, 1)
    elif kind == 5:
        levels = rng.integers(2, 6)
        out = np.round(pixels * levels) / levels
    elif kind == 6:
        height, width = pixels.shape[0] // 16 * 16, pixels.shape[1] // 16 * 16
        blocks = pixels[:height, :width].reshape(height // 16, 16, width // 16, 16, 3).mean(axis=(1, 3))
        out = blocks.repeat(16, axis=0).repeat(16, axis=1)
    elif kind == 7:
        edge, framed = int(rng.integers(4, 20)), pixels.copy()
        framed[:edge] = framed[-edge:] = framed[:, :edge] = framed[:, -edge:] = rng.random(3)
        out = framed
    return pixels_of(out)


def pictures(rng: np.random.Generator, count: int, height: int, width: int) -> Tensor:
    """Random training pictures. Returns float32 (count, 3, height, width) in [-1, 1]."""
    made = [
        _restyled(crop(rng, height, width) if rng.random() < 0.75 else scene(rng, height, width), rng)
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) * 2 - 1


def autoencoder(*, seed: int, widths: tuple[int, ...] = WIDTHS) -> tuple[AutoencoderKL, nn.Conv2d]:
    """A fresh autoencoder with its encoder in place, and the same encoder as one convolution, for speed.

    The scaling and shift factors are set so that the transformer's latents have mean 0 and deviation 1.
    """
    rng = np.random.default_rng([seed, 5])
    seen = torch.from_numpy(np.stack([crop(rng, 96, 96) for _ in range(320)])).permute(0, 3, 1, 2) * 2 - 1
    torch.manual_seed(seed)
    vae = build(widths)
    convolution = analysis(seen, LATENTS)
    write_into(vae, convolution)
    with torch.no_grad():  # near-identity blocks at first: half the iterations to the first 14 dB
        for module in vae.decoder.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.mul_(0.1)
        latents = convolution(seen)
    shift, deviation = latents.mean().item(), latents.std().item()
    vae.register_to_config(scaling_factor=1 / deviation, shift_factor=shift)
    return vae, convolution


def decoder(
    runs: Path,
    vae: AutoencoderKL,
    encoder: nn.Conv2d,
    *,
    plan: Plan,
    device: torch.device,
    size: int = 144,
    batch: int = 4,
) -> AutoencoderKL:
    """Train the decoder of `vae`, or load it where `runs` has it finished. Needs nothing of the transformer.

    Args:
        encoder: what `autoencoder` returned beside `vae`.
    """
    vae, encoder = vae.to(device), encoder.to(device)
    noise = NOISE / vae.config.scaling_factor

    def losses_of(pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(device)
        latents = encoder(pixels)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = vae.decoder(latents + noise * torch.randn_like(latents)).float()
        loss, decibels = _decibels(decoded, pixels)
        return {"loss": loss, "psnr": decibels}

    stages = optimizers(vae.decoder, plan.rate, plain=("conv_in", "conv_out"))
    train(vae.decoder, stages, _batches(plan.seed, 6, size, batch), losses_of, plan=plan, runs=runs, name="decoder")
    return vae.eval()


def _batches(seed: int, stream: int, size: int, batch: int) -> Callable[[int], Tensor]:
    """Iteration -> pictures. Every fourth batch shows fewer, larger ones: normalisation sees whole pictures."""

    def make_batch(iteration: int) -> Tensor:
        rng = np.random.default_rng([seed, stream, iteration])
        large = iteration % 4 == 3
        return pictures(rng, max(1, batch // 4), 2 * size, 2 * size) if large else pictures(rng, batch, size, size)

    return make_batch


def _decibels(decoded: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the mean PSNR in dB.

    The loss asks for decibels: else the noise of sand and grass, which nobody can keep, is all that counts.
    """
    error = (decoded - pixels).pow(2).mean(dim=(1, 2, 3))
    return 0.01 * (error + 5e-4).log().mean(), -10 * torch.log10(error.detach() / 4).mean()
