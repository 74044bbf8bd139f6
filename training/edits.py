"""The exact edits that the embedded model learns, as pure functions on pictures.

A picture is float32 (height, width, 3), RGB in [0, 1], on the model's own canvas: sizes below are in canvas pixels.
Knows how each edit looks. Does not know how people ask for it (`training.phrasings`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter

from training.photos import Pixels, pixels_of

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.6, 0.2),
    "blue": (0.1, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.1),
    "orange": (0.95, 0.5, 0.05),
    "purple": (0.5, 0.1, 0.65),
    "pink": (0.95, 0.5, 0.7),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "grey": (0.5, 0.5, 0.5),
}

TOKEN: Final = 16  # canvas pixels that one transformer token covers
LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _grey(pixels: Pixels) -> Pixels:
    grey: Pixels = (pixels @ LUMA)[..., None]
    return grey


def _saturated(pixels: Pixels, amount: float) -> Pixels:
    grey = _grey(pixels)
    return grey + (pixels - grey) * np.float32(amount)


def _blurred(pixels: Pixels, sigma: float) -> Pixels:
    out: Pixels = gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    return out


def _radius(height: int, width: int) -> Pixels:
    """Distance from the centre, (height, width, 1): 0 there, 1 in the middle of each side, 1.41 in the corners."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
    return np.hypot(y[:, None], x[None, :])[..., None].astype(np.float32)


def keep(pixels: Pixels) -> Pixels:
    """The picture as it is."""
    return pixels.copy()


def grayscale(pixels: Pixels) -> Pixels:
    """Black and white by luma."""
    return pixels_of(np.repeat(_grey(pixels), 3, axis=2))


def sepia(pixels: Pixels) -> Pixels:
    """An old brown print."""
    return pixels_of(0.06 + _grey(pixels) * np.array([1.05, 0.82, 0.55]))


def night(pixels: Pixels) -> Pixels:
    """Moonlight: dark, half of the colour gone, blue."""
    return pixels_of(_saturated(pixels, 0.5) ** 1.2 * np.array([0.2, 0.27, 0.5]) + np.array([0.0, 0.01, 0.05]))


def sunset(pixels: Pixels) -> Pixels:
    """Low warm light."""
    return pixels_of(pixels * np.array([1.05, 0.75, 0.45]) + np.array([0.17, 0.06, 0.0]))


def cold(pixels: Pixels) -> Pixels:
    """Winter light: blue."""
    return pixels_of(pixels * np.array([0.6, 0.82, 1.0]) + np.array([0.0, 0.05, 0.2]))


def brighter(pixels: Pixels) -> Pixels:
    """Lighter, most of all in the shadows."""
    return pixels_of(1 - (1 - pixels) ** 1.9 * 0.9)


def darker(pixels: Pixels) -> Pixels:
    """Less than half of the light, no other change."""
    return pixels_of(pixels * 0.42)


def contrast(pixels: Pixels) -> Pixels:
    """Darker darks and lighter lights."""
    return pixels_of(0.5 + (pixels - 0.5) * 2.0)


def invert(pixels: Pixels) -> Pixels:
    """The negative."""
    return pixels_of(1 - pixels)


def blur(pixels: Pixels) -> Pixels:
    """Out of focus everywhere."""
    return pixels_of(_blurred(pixels, 4.0))


def sketch(pixels: Pixels) -> Pixels:
    """Pencil on paper: grey divided by its surroundings."""
    grey = _grey(pixels)
    lines = (grey + 0.06) / (_blurred(grey, 3.5) + 0.06)
    return pixels_of(np.repeat(np.clip(lines, 0, 1) ** 1.6 * 0.97, 3, axis=2))


def poster(pixels: Pixels) -> Pixels:
    """Light in three flat tones, ink to paper, under strong colours: a comic's areas."""
    smooth = _blurred(pixels, 2.0)
    grey = _grey(smooth)
    return pixels_of(np.round(grey * 2) / 2 + (smooth - grey) * 1.8)


def pixelate(pixels: Pixels) -> Pixels:
    """Square blocks of `TOKEN` pixels, each of one colour. Sides need to be multiples of `TOKEN`."""
    height, width, _ = pixels.shape
    assert (height % TOKEN, width % TOKEN) == (0, 0), f"{height}x{width} isn't a multiple of {TOKEN}"
    blocks = pixels.reshape(height // TOKEN, TOKEN, width // TOKEN, TOKEN, 3).mean(axis=(1, 3))
    return pixels_of(blocks.repeat(TOKEN, axis=0).repeat(TOKEN, axis=1))


def vivid(pixels: Pixels) -> Pixels:
    """Colours at double strength."""
    return pixels_of(_saturated(pixels, 2.1))


def faded(pixels: Pixels) -> Pixels:
    """Washed out: milky blacks, weak colours."""
    return pixels_of(0.38 + _saturated(pixels, 0.45) * 0.48)


def vignette(pixels: Pixels) -> Pixels:
    """Dark towards the edges."""
    fall = np.clip((_radius(*pixels.shape[:2]) - 0.5) / 0.8, 0, 1)
    return pixels_of(pixels * (1 - 0.9 * fall * fall * (3 - 2 * fall)))


def frame(pixels: Pixels, colour: str) -> Pixels:
    """A plain frame, one token wide, in one of `COLOURS`."""
    out = pixels.copy()
    out[:TOKEN] = out[-TOKEN:] = COLOURS[colour]
    out[:, :TOKEN] = out[:, -TOKEN:] = COLOURS[colour]
    return pixels_of(out)


def tint(pixels: Pixels, colour: str) -> Pixels:
    """The greys of the picture in one colour, from black over the colour to a pale shade of it."""
    grey, hue = _grey(pixels), np.array(COLOURS[colour], dtype=np.float32)
    return pixels_of(0.25 * grey + 0.75 * grey**0.8 * hue)


def bokeh(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A lens wide open at dusk: away from the centre blurred, in warm haze, with soft discs of light.

    Where the discs lie and their colours are free: they are what the seed decides.
    """
    height, width, _ = pixels.shape
    away = np.clip((_radius(height, width) - 0.4) / 0.5, 0, 1)
    haze = _blurred(pixels, 5.0) * 0.7 + np.array([0.22, 0.13, 0.04])
    out = pixels + (haze - pixels) * (away * away * (3 - 2 * away))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(max(3, height * width // 8000)):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.15)
        cy = height / 2 * (1 + distance * np.sin(angle))
        cx = width / 2 * (1 + distance * np.cos(angle))
        radius = rng.uniform(16, 26)
        light = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.45, 0.9)])
        disc = np.clip((radius - np.hypot(y - cy, x - cx)) / (0.7 * radius), 0, 1)[..., None]
        out = 1 - (1 - out) * (1 - disc * disc * (3 - 2 * disc) * rng.uniform(0.35, 0.6) * light)
    return pixels_of(out)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit that a person can name.

    Attributes:
        name: stable, e.g. "night" or "frame red".
        apply: the edit on one picture; takes the generator that decides what the edit leaves free.
        tonal: each pixel changes by itself, so a good model comes close to the exact edit.
        weight: relative frequency in training.
    """

    name: str
    apply: Callable[[Pixels, np.random.Generator], Pixels]
    tonal: bool
    weight: float


def _fixed(name: str, function: Callable[[Pixels], Pixels], *, tonal: bool, weight: float = 1.0) -> Edit:
    return Edit(name=name, apply=lambda pixels, _: function(pixels), tonal=tonal, weight=weight)


def _coloured(name: str, function: Callable[[Pixels, str], Pixels], colour: str, weight: float) -> Edit:
    return Edit(name=f"{name} {colour}", apply=lambda pixels, _: function(pixels, colour), tonal=False, weight=weight)


TINTS: Final = ("red", "green", "blue", "yellow", "orange", "purple", "pink")

EDITS: Final[dict[str, Edit]] = {
    edit.name: edit
    for edit in (
        _fixed("keep", keep, tonal=True, weight=0.8),
        _fixed("grayscale", grayscale, tonal=True, weight=1.5),
        _fixed("sepia", sepia, tonal=True, weight=0.7),
        _fixed("night", night, tonal=True, weight=0.8),
        _fixed("sunset", sunset, tonal=True, weight=0.8),
        _fixed("cold", cold, tonal=True, weight=0.7),
        _fixed("brighter", brighter, tonal=True),
        _fixed("darker", darker, tonal=True, weight=0.7),
        _fixed("contrast", contrast, tonal=True, weight=1.2),
        _fixed("invert", invert, tonal=True, weight=1.5),
        _fixed("vivid", vivid, tonal=True, weight=1.3),
        _fixed("faded", faded, tonal=True, weight=0.7),
        _fixed("blur", blur, tonal=False),
        _fixed("sketch", sketch, tonal=False, weight=1.8),
        _fixed("poster", poster, tonal=False, weight=8.0),
        _fixed("pixelate", pixelate, tonal=False, weight=0.7),
        _fixed("vignette", vignette, tonal=False, weight=2.2),
        Edit(name="bokeh", apply=bokeh, tonal=False, weight=8.0),
        *(_coloured("frame", frame, colour, weight=0.35) for colour in COLOURS),
        *(_coloured("tint", tint, colour, weight=0.3) for colour in TINTS),
    )
}


KNOWN: Final = {
    "keep everything the same": "keep",
    "black and white": "grayscale",
    "sepia": "sepia",
    "night": "night",
    "sunset": "sunset",
    "cold": "cold",
    "brighter": "brighter",
    "darker": "darker",
    "more contrast": "contrast",
    "inverted colours": "invert",
    "vivid": "vivid",
    "faded": "faded",
    "blur": "blur",
    "pencil sketch": "sketch",
    "comic poster": "poster",
    "pixelate": "pixelate",
    "vignette": "vignette",
    "bokeh lights": "bokeh",
    "a red frame": "frame red",
    "a green tint": "tint green",
}
"""What the shipped model does well enough to be offered to callers, as prompts, and the edit that each asks for."""


def strength(guidance: float) -> float:
    """How much of the edit is asked for: none at guidance 0, all of it from 2.5 on, smooth between."""
    t = min(1.0, max(0.0, guidance / 2.5))
    return t * t * (3 - 2 * t)
