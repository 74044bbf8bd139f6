"""Scenes with named things: a circle, square, triangle, star or diamond in a named colour, to recolour, remove or add.

Knows how to draw the picture before and after, and how a person asks for the change. The exact edits of photos are
in `training.edits`.
"""

# ruff: noqa: E501 (a pattern reads best on one line)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.edits import COLOURS
from training.photos import Pixels, crop, pixels_of
from training.phrasings import AFTER, BEFORE, expand
from training.scenes import scene

NAMES: Final = {
    "circle": ("circle", "circle", "disc", "dot"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """A picture before, the sentence, and the picture after it."""

    before: Pixels
    after: Pixels
    sentence: str


@dataclass(frozen=True, kw_only=True)
class _Thing:
    shape: str
    colour: str
    centre: tuple[float, float]
    radius: float


def _draw(back: Pixels, things: list[_Thing]) -> Pixels:
    """Draw the things over a picture, antialiased by drawing at three times the size."""
    height, width, _ = back.shape
    out: npt.NDArray[Any] = back
    for thing in things:
        mask = Image.new("L", (width * 3, height * 3))
        draw = ImageDraw.Draw(mask)
        x, y, r = (3 * v for v in (*thing.centre, thing.radius))
        if thing.shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        elif thing.shape == "square":
            draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=255)
        else:
            corners = {"triangle": 3, "diamond": 4, "star": 10}[thing.shape]
            angles = np.arange(corners) * 2 * np.pi / corners - np.pi / 2
            radii = np.where(np.arange(corners) % 2, 0.42, 1.0) * r if thing.shape == "star" else np.full(corners, r)
            points = [(x + d * np.cos(a), y + d * np.sin(a)) for a, d in zip(angles, radii, strict=True)]
            draw.polygon(points, fill=255)
        alpha = np.asarray(mask.resize((width, height), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
        out = out + (np.array(COLOURS[thing.colour], dtype=np.float32) - out) * alpha
    return pixels_of(out)


def change(rng: np.random.Generator, height: int, width: int) -> Change:
    """A random scene of this size and one change to it."""
    kind = ("recolour", "remove", "add")[rng.choice(3, p=(0.45, 0.25, 0.3))]
    back = crop(rng, height, width) if kind == "add" and rng.random() < 0.6 else scene(rng, height, width)
    if rng.random() < 0.5 and kind != "add":  # plain ground, as a person would draw a test picture
        back = np.broadcast_to(back.mean(axis=(0, 1), keepdims=True), back.shape)
        back = (0.3 * back + 0.7 * rng.uniform(0.2, 1)).astype(np.float32)
    colours, shapes = list(rng.permutation(list(COLOURS))), list(rng.permutation(list(NAMES)))
    count = int(rng.integers(1, 4)) if kind != "add" else int(rng.integers(1, 3))
    things: list[_Thing] = []
    for index in range(count):
        for _ in range(30):
            radius = rng.uniform(0.1, 0.2) * min(height, width) + 4
            centre = (rng.uniform(radius + 3, width - radius - 3), rng.uniform(radius + 3, height - radius - 3))
            if all(np.hypot(centre[0] - t.centre[0], centre[1] - t.centre[1]) > radius + t.radius for t in things):
                things.append(_Thing(shape=shapes[index], colour=colours[index], centre=centre, radius=radius))
                break
    first, rest = things[0], things[1:]
    name = str(rng.choice(NAMES[first.shape]))
    called = f"{first.colour} {name}" if rng.random() < 0.7 else name
    if kind == "recolour":
        new = colours[-1]
        asked = expand(
            f"(make|turn|paint|color|colour|recolor|recolour|dye|change) the {called} (|to |into |in ){new}"
            f"|change the color of the {called} to {new}|the {called} should be {new}|(i want|let) the {called} (to be|be) {new}",
            rng,
        )
        after = [_Thing(shape=first.shape, colour=new, centre=first.centre, radius=first.radius), *rest]
    elif kind == "remove":
        asked = expand(
            f"(remove|delete|erase|take away|get rid of|take out|hide|drop|clear) the {called}|without the {called}|no {name}",
            rng,
        )
        after = rest
    else:
        things, after = rest, [*rest, first]
        called = f"{first.colour} {name}"
        asked = expand(
            f"(add|draw|put|place|insert|paint|include) a {called}( somewhere| to (the picture|it|the photo|the scene)| in the picture|)|a {called}, please|there should be a {called}|i want a {called}( there| in it|)",
            rng,
        )
    if rng.random() < 0.3:
        asked = expand(BEFORE, rng) + asked
    if rng.random() < 0.2:
        asked = asked + expand(AFTER, rng)
    return Change(before=_draw(back, things), after=_draw(back, after), sentence=asked)
