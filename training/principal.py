"""A head start for the autoencoder's encoder: principal component analysis of 8x8 blocks, written into its weights.

Convolutions with stride 2 can lay a block's pixels out as channels, so the encoder can compute any linear function of a
block exactly. Group normalisation and SiLU stand in the way only once, before the last convolution: there each
component goes in as a pair (+c, -c), for SiLU(c) - SiLU(-c) = c, beside two large constants that fix the group's scale.
All other weights keep their random start, and learn.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def components(pixels_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PCA of the 8x8 blocks of pictures: mean (192,), directions (192, 192) one per row, deviations (192,).

    The 192 values of a block are ordered as three `pixel_unshuffle(2)` in a row leave them.
    """
    x = pixels_bchw
    for _ in range(3):
        x = nn.functional.pixel_unshuffle(x, 2)
    values = x.permute(0, 2, 3, 1).reshape(-1, 192).double()
    mean = values.mean(0)
    variances, directions = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    order = variances.argsort(descending=True)
    return mean.float(), directions.T[order].float(), variances[order].clamp_min(0).sqrt().float()


def _lay_out(convolution: nn.Conv2d, channels: int) -> None:
    """Make a stride-2 convolution lay the first channels' 2x2 pixels side by side, as pixel_unshuffle does."""
    convolution.weight[: 4 * channels] = 0
    convolution.bias[: 4 * channels] = 0  # type: ignore[index]
    for channel in range(channels):
        for row in range(2):
            for column in range(2):
                convolution.weight[4 * channel + 2 * row + column, channel, row, column] = 1


@torch.no_grad()
def write_into(vae: AutoencoderKL, pixels_bchw: Tensor) -> None:
    """Make the encoder of a fresh `vae` compute the leading components of `pixels_bchw`'s blocks, half whitened.

    A latent's deviation is the square root of its component's: fine detail stays smaller than light and colour.
    """
    encoder, latent_channels = vae.encoder, vae.config.latent_channels
    mean, directions, deviations = components(pixels_bchw)
    for module in encoder.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    encoder.conv_in.weight[:3] = 0
    encoder.conv_in.bias[:3] = 0
    for channel in range(3):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1
    carried = 3
    for block in encoder.down_blocks[:2]:
        _pass_through(block.resnets[0], carried)
        _lay_out(block.downsamplers[0].conv, carried)
        carried *= 4
    # The third layout and the analysis at once: 192 values would not fit, the leading ones do.
    last = encoder.down_blocks[2]
    _pass_through(last.resnets[0], carried)
    kept = last.downsamplers[0].conv.weight.shape[0]
    layout = nn.Conv2d(carried, 192, 3)
    _lay_out(layout, carried)
    last.downsamplers[0].conv.weight[:, :carried] = torch.einsum("kd,dcij->kcij", directions[:kept], layout.weight)
    last.downsamplers[0].conv.weight[:, carried:] = 0
    last.downsamplers[0].conv.bias[:] = -directions[:kept] @ mean
    _write_pairs(vae, encoder.down_blocks[3].resnets[0], deviations)
    encoder.conv_out.weight[latent_channels:] = 0
    encoder.conv_out.bias[latent_channels:] = -6


def _pass_through(resnet: ResnetBlock2D, channels: int) -> None:
    """Let the first channels go through a residual block unchanged."""
    if resnet.conv_shortcut is not None:
        resnet.conv_shortcut.weight[:channels] = 0
        resnet.conv_shortcut.bias[:channels] = 0
        for channel in range(channels):
            resnet.conv_shortcut.weight[channel, channel, 0, 0] = 1


def _write_pairs(vae: AutoencoderKL, resnet: ResnetBlock2D, deviations: Tensor) -> None:
    """The last block: in each group, pairs (+c, -c) and two constants; then the last convolution undoes it."""
    encoder, latents = vae.encoder, vae.config.latent_channels
    groups = encoder.conv_norm_out.num_groups
    width = resnet.conv_shortcut.weight.shape[0] // groups
    each = latents // groups
    assert each * groups == latents, f"{latents} latents don't fit in {groups} groups"
    assert 2 * each + 2 <= width, f"{each} pairs and two constants don't fit in a group of {width}"
    resnet.conv_shortcut.weight.zero_()
    resnet.conv_shortcut.bias.zero_()
    encoder.conv_norm_out.weight.fill_(1)
    encoder.conv_norm_out.bias.zero_()
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    for group in range(groups):
        first = group * width
        scale = deviations[0]
        constant = 3.0 * (2 * each) ** 0.5
        for slot in range(each):
            component = slot * groups + group  # each group gets strong and weak ones
            unit = 1 / (deviations[component] * scale).sqrt()
            resnet.conv_shortcut.weight[first + 2 * slot, component, 0, 0] = unit
            resnet.conv_shortcut.weight[first + 2 * slot + 1, component, 0, 0] = -unit
            # The constants decide the group's deviation: constant * sqrt(2 / width).
            encoder.conv_out.weight[component, first + 2 * slot, 1, 1] = constant * (2 / width) ** 0.5
            encoder.conv_out.weight[component, first + 2 * slot + 1, 1, 1] = -constant * (2 / width) ** 0.5
        resnet.conv_shortcut.bias[first + 2 * each] = constant
        resnet.conv_shortcut.bias[first + 2 * each + 1] = -constant
