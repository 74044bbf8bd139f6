"""The autoencoder, pixels <-> 32 latent channels at an eighth of the size.

The encoder is written down (`training.principal`), the decoder is learned. FLUX has 16 channels, but eighty million
parameters to make the most of them: with 16 no linear code keeps more than 25.5 dB of the exam's photos, with 32 it is
28.

Axis letters: b batch, c channel, h/w rows and columns. Pixels in the network are in [-1, 1].
Knows diffusers' AutoencoderKL. Does not know instructions; the pictures it sees are edited only roughly, so that
inverted, grey, dark and drawn pictures are as welcome as photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from training.loop import Plan, autocast, train
from training.muon import optimizers
from training.photos import Pixels, crop, pixels_of
from training.principal import analysis, write_into
from training.scenes import scene

WIDTHS: Final = (32, 48, 96, 128)
LATENTS: Final = 32
SIDE: Final = 144  # of the decoder's training pictures
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
    carry_latents(vae.decoder)
    with torch.no_grad():
        latents = convolution(seen)
    shift, deviation = latents.mean().item(), latents.std().item()
    vae.register_to_config(scaling_factor=1 / deviation, shift_factor=shift)
    return vae, convolution


@torch.no_grad()
def carry_latents(decoder: Decoder) -> None:
    """Let a fresh decoder hand its latents on, unchanged, in the first channels of every level.

    All the detail is then at hand where it is to be laid out, and the residual blocks start as next to nothing.
    """
    for name, module in decoder.named_modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(0.1)
        elif name.endswith(("conv_in", "conv_shortcut", "upsamplers.0.conv")):
            carried, middle = min(LATENTS, *module.weight.shape[:2]), module.weight.shape[-1] // 2
            module.weight[:carried] = 0
            module.bias[:carried] = 0
            for channel in range(carried):
                module.weight[channel, channel, middle, middle] = 1


class Supervised(nn.Module):
    """A decoder, and a linear reader of the finished picture at each level between latents and pixels.

    Upsampling by repetition tells a pixel nothing of where in its block it is: a decoder has to find that out from
    the differences between neighbours, once per level. Asked only for the finished picture it learns all of it at
    once, slowly; asked at each level for what can be known there, it needs a fifth of the iterations.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder: Decoder = decoder
        self.readers = nn.ModuleList()
        for level, block in enumerate(decoder.up_blocks[1:-1], start=1):
            scale = 2 ** (len(decoder.up_blocks) - 1 - level)
            self.readers.append(nn.Conv2d(block.resnets[-1].out_channels, 3 * scale**2, 1))

    def forward(self, latents_bchw: Tensor) -> list[Tensor]:
        """The picture, float32 (b, 3, 8h, 8w), and what each reader makes of it at its level, coarse to fine."""
        decoder, features = self.decoder, []
        x = decoder.mid_block(decoder.conv_in(latents_bchw))
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = resnet(x, None)
            features.append(x)
            if block.upsamplers is not None:
                x = block.upsamplers[0](x)
        picture = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
        out = [picture.float()]
        for reader, feature in zip(self.readers, features[1:-1], strict=True):
            guess = reader(feature)
            out.append(nn.functional.pixel_shuffle(guess, math.isqrt(guess.shape[1] // 3)).float())
        return out


def decoder(
    runs: Path,
    vae: AutoencoderKL,
    encoder: nn.Conv2d,
    *,
    plan: Plan,
    device: torch.device,
    size: int = SIDE,
    batch: int = 4,
) -> AutoencoderKL:
    """Train the decoder of `vae`, or load it where `runs` has it finished. Needs nothing of the transformer.

    Args:
        encoder: what `autoencoder` returned beside `vae`.
    """
    vae, encoder = vae.to(device), encoder.to(device)
    noise = NOISE / vae.config.scaling_factor
    supervised = Supervised(vae.decoder).to(device)

    def losses_of(pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(device)
        latents = encoder(pixels)
        with autocast(device):
            levels = supervised(latents + noise * torch.randn_like(latents))
        losses, decibels = zip(*(_decibels(picture, pixels) for picture in levels), strict=True)
        return {"loss": torch.stack(losses).sum(), "psnr": decibels[0], "psnr_coarse": decibels[1]}

    stages = optimizers(vae.decoder, plan.rate, plain=("conv_in", "conv_out"))
    stages.append(torch.optim.AdamW(supervised.readers.parameters(), lr=4 * plan.rate, betas=(0.9, 0.98)))
    train(supervised, stages, _batches(plan.seed, 6, size, batch), losses_of, plan=plan, runs=runs, name="decoder")
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
