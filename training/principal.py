"""The autoencoder's encoder: principal component analysis of 8x8 blocks, as one convolution and inside a real encoder.

Convolutions with stride 2 can lay a block's pixels out as channels, so FLUX's encoder can compute any linear function
of a block. Group normalisation and SiLU stand in the way only once, before the last convolution: there each component
goes in as a pair (+c, -c), for SiLU(c) - SiLU(-c) = c, beside two large constants that fix the group's scale.

Nothing is learned here. Tonal edits are linear in such latents, and no code of 32 linear values per block keeps more.
"""

from __future__ import annotations

from typing import Final

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

CONSTANT: Final = 64.0  # so large that the latents themselves change a group's scale by less than a thousandth


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
def analysis(pixels_bchw: Tensor, latents: int) -> nn.Conv2d:
    """Pixels to latents as one convolution: the leading components of `pixels_bchw`'s blocks, half whitened.

    A latent's deviation is the square root of its component's: fine detail stays smaller than light and colour.
    """
    mean, directions, deviations = components(pixels_bchw)
    rows = directions[:latents] / (deviations[:latents, None] * deviations[0]).sqrt()
    out = nn.Conv2d(3, latents, 8, stride=8)
    weight = rows.reshape(latents, 192, 1, 1)
    for _ in range(3):
        weight = nn.functional.pixel_shuffle(weight, 2)
    out.weight.copy_(weight)
    out.bias.copy_(-rows @ mean)  # type: ignore[union-attr]
    return out.requires_grad_(False)


@torch.no_grad()
def write_into(vae: AutoencoderKL, convolution: nn.Conv2d) -> None:
    """Make the encoder of a fresh `vae` compute the `analysis` in its mean, and next to no variance."""
    encoder, latent_channels = vae.encoder, vae.config.latent_channels
    weight = convolution.weight
    for _ in range(3):
        weight = nn.functional.pixel_unshuffle(weight, 2)
    rows = weight.flatten(1)
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
    # The third layout and the analysis at once: 192 values would not fit, the latents do.
    last = encoder.down_blocks[2]
    _pass_through(last.resnets[0], carried)
    layout = nn.Conv2d(carried, 192, 3)
    _lay_out(layout, carried)
    nn.init.zeros_(last.downsamplers[0].conv.weight)
    nn.init.zeros_(last.downsamplers[0].conv.bias)
    last.downsamplers[0].conv.weight[:latent_channels, :carried] = torch.einsum("kd,dcij->kcij", rows, layout.weight)
    last.downsamplers[0].conv.bias[:latent_channels] = convolution.bias
    _write_pairs(vae, encoder.down_blocks[3].resnets[0])
    encoder.conv_out.weight[latent_channels:] = 0
    encoder.conv_out.bias[latent_channels:] = -6


def _pass_through(resnet: ResnetBlock2D, channels: int) -> None:
    """Let the first channels go through a residual block unchanged."""
    if resnet.conv_shortcut is not None:
        resnet.conv_shortcut.weight[:channels] = 0
        resnet.conv_shortcut.bias[:channels] = 0
        for channel in range(channels):
            resnet.conv_shortcut.weight[channel, channel, 0, 0] = 1


def _write_pairs(vae: AutoencoderKL, resnet: ResnetBlock2D) -> None:
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
    # The constants decide the group's deviation, `scale`: latents have deviations of at most 1.
    scale = CONSTANT * (2 / width) ** 0.5
    for group in range(groups):
        first = group * width
        for slot in range(each):
            component = slot * groups + group  # each group gets strong and weak ones
            resnet.conv_shortcut.weight[first + 2 * slot, component, 0, 0] = 1
            resnet.conv_shortcut.weight[first + 2 * slot + 1, component, 0, 0] = -1
            encoder.conv_out.weight[component, first + 2 * slot, 1, 1] = scale
            encoder.conv_out.weight[component, first + 2 * slot + 1, 1, 1] = -scale
        resnet.conv_shortcut.bias[first + 2 * each] = CONSTANT
        resnet.conv_shortcut.bias[first + 2 * each + 1] = -CONSTANT
