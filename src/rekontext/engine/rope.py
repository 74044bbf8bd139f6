"""Rotary positions on three axes: stream (0 output, 1 reference), row, column. Text sits at the origin.

Axis letters in this file: n tokens, a position axis (stream, row, column), k head width, p rotation pairs (k / 2).
Source: black-forest-labs/flux, src/flux/math.py (`rope`) and src/flux/modules/layers.py (`EmbedND`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from rekontext.engine.canvas import PIXELS_PER_TOKEN, Size

THETA: Final = 10_000.0


def text_positions(tokens: int) -> Tensor:
    """Positions (n, a) of text tokens: all zero."""
    return torch.zeros(tokens, 3)


def picture_positions(size: Size, *, stream: int) -> Tensor:
    """Positions (n, a) of a picture's tokens, row by row.

    Args:
        size: width and height in pixels, multiples of 16.
        stream: 0 for the picture being made, 1 for the reference.
    """
    columns, rows = size[0] // PIXELS_PER_TOKEN, size[1] // PIXELS_PER_TOKEN
    positions = torch.zeros(rows, columns, 3)
    positions[..., 0] = stream
    positions[..., 1] = torch.arange(rows)[:, None]
    positions[..., 2] = torch.arange(columns)[None, :]
    return positions.flatten(0, 1)


class Rotation(NamedTuple):
    """By how much queries and keys are turned at each token. A pair (x, y) becomes (x cos - y sin, y cos + x sin).

    Attributes:
        cos_nk: float32, of each pair twice.
        sin_nk: float32, of each pair first negative, then as it is: what its neighbour's value is multiplied by.
        turn_np: the same as complex numbers, with which the CPU turns in one kernel; None elsewhere, where compilers
            fuse the other form by themselves and don't know this one.
    """

    cos_nk: Tensor
    sin_nk: Tensor
    turn_np: Tensor | None

    def part(self, tokens: slice) -> Rotation:
        """That of some of the tokens."""
        return Rotation(
            self.cos_nk[tokens], self.sin_nk[tokens], None if self.turn_np is None else self.turn_np[tokens]
        )


def rotation_of(positions_na: Tensor, axes: tuple[int, int, int], device: torch.device) -> Rotation:
    """The rotation at each position.

    Args:
        positions_na: float32 positions.
        axes: rotary width of each axis; their sum is the head width.
    """
    cosines, sines = [], []
    for axis, width in enumerate(axes):
        # float64: at position 97 float32 frequencies are already off in the 6th digit.
        frequencies = THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        # Thousands of tokens stand at a hundred places of an axis: each place's angles are taken once, on the host,
        # and are laid out on the device.
        places, place_n = positions_na[:, axis].unique(return_inverse=True)
        angles = places[:, None].double() * frequencies
        place_n = place_n.to(device)
        cosines.append(angles.cos().float().to(device)[place_n])
        sines.append(angles.sin().float().to(device)[place_n])
    cos, sin = torch.cat(cosines, dim=-1), torch.cat(sines, dim=-1)
    return Rotation(
        torch.stack([cos, cos], dim=-1).flatten(-2),
        torch.stack([-sin, sin], dim=-1).flatten(-2),
        torch.complex(cos, sin) if device.type == "cpu" else None,
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels by its token's angles.

    Args:
        x: (..., k), any float dtype; the turn itself is done in float32.
        cos, sin: a rotation's, shaped so that they broadcast with `x`.

    Returns:
        Shape and dtype of `x`.
    """
    wide = x.float()
    # Compilers read the neighbour where they need it; halves that are turned apart and joined, they write out first.
    neighbours = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned: Tensor = (wide * cos + neighbours * sin).to(x.dtype)
    return turned
