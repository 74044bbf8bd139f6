"""Procedural pictures: what the few photos lack in colours, edges, textures and light.

Knows how to paint a picture from a random generator. Does not know any edit; `training.shapes` builds the scenes with
named things that can be recoloured, removed or added.
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from training.photos import Pixels, pixels_of


def colour(rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A random colour: any hue, more often muted than pure."""
    hsv = rng.random(), rng.random() ** 0.8, rng.uniform(0.05, 1.0)
    return np.array(colorsys.hsv_to_rgb(*hsv), dtype=np.float32)


def gradient(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Two or three colours blended along a random direction or around a point."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height - 0.5, x / width - 0.5
    if rng.random() < 0.6:
        angle = rng.uniform(0, 2 * np.pi)
        t = x * np.cos(angle) + y * np.sin(angle) + 0.5
    else:
        t = np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5)) * rng.uniform(0.8, 2)
    t = np.clip(t, 0, 1)[..., None]
    first, middle, last = colour(rng), colour(rng), colour(rng)
    if rng.random() < 0.5:
        return pixels_of(first + (last - first) * t)
    lower, upper = first + (middle - first) * 2 * t, middle + (last - middle) * (2 * t - 1)
    return pixels_of(np.where(t < 0.5, lower, upper))


def natural_noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Noise with the 1/f spectrum of photographs, in two or three random colours."""
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None, :]
    size = np.hypot(fy, fx)
    size[0, 0] = 1
    slope = rng.uniform(0.8, 2.0)
    out = np.zeros((height, width, 3), dtype=np.float32)
    base, shared = colour(rng), None
    for channel in range(3):
        spectrum = rng.normal(size=size.shape) + 1j * rng.normal(size=size.shape)
        plane = np.fft.irfft2(spectrum / size**slope, s=(height, width))
        plane = plane / (plane.std() + 1e-6)
        shared = plane if shared is None else shared  # neighbouring channels of a photo go together
        mix = rng.uniform(0.6, 1.0)
        out[..., channel] = base[channel] + rng.uniform(0.1, 0.25) * (mix * shared + (1 - mix) * plane)
    return np.clip(out, 0, 1)


def texture(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Stripes, checks or dots in two colours, at any angle, hard or soft."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(6), np.log(48)))
    u = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    v = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    wave = [np.sin(u), np.sin(u) * np.sin(v), np.sin(u) + np.sin(v)][rng.integers(3)]
    t = 1 / (1 + np.exp(-wave * rng.uniform(1, 12)))
    first, last = colour(rng), colour(rng)
    return pixels_of(first + (last - first) * t[..., None])


def landscape(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A sky, a horizon and hills of noise: the layout of an outdoor photo."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    top, low = np.array([0.25, 0.5, 0.9]), np.array([0.8, 0.85, 0.95])
    if rng.random() < 0.5:
        top, low = colour(rng), colour(rng)
    out = top + (low - top) * (y / height)[..., None]
    if rng.random() < 0.6:
        clouds = natural_noise(rng, height, width).mean(axis=2, keepdims=True)
        out = out + np.clip(clouds - clouds.mean(), 0, 1) * 1.5
    for layer in range(int(rng.integers(1, 4))):
        level = height * rng.uniform(0.35 + 0.15 * layer, 0.6 + 0.15 * layer)
        ridge = sum(rng.uniform(1, 12) * np.sin(x / width * rng.uniform(2, 14) + rng.uniform(0, 7)) for _ in range(4))
        ground = colour(rng) * 0.7 + (natural_noise(rng, height, width) - 0.5) * rng.uniform(0.2, 0.9)
        out = np.where((y > level + ridge)[..., None], ground, out)
    return pixels_of(out)


def drawing(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Overlapping shapes, lines and letters over another kind of picture, with antialiased edges."""
    back = [gradient, natural_noise, texture, landscape][rng.integers(4)](rng, height, width)
    big = Image.fromarray((np.clip(back, 0, 1) * 255).astype(np.uint8)).resize((width * 2, height * 2))
    draw = ImageDraw.Draw(big)
    for _ in range(int(rng.integers(2, 14))):
        fill = tuple(int(c * 255) for c in colour(rng))
        w, h = np.exp(rng.uniform(np.log(8), np.log(width), 2))
        left, top = rng.uniform(-w / 2, 2 * width - w / 2), rng.uniform(-h / 2, 2 * height - h / 2)
        box = (left, top, left + w, top + h)
        kind = rng.integers(5)
        if kind == 0:
            draw.rectangle(box, fill=fill)
        elif kind == 1:
            draw.ellipse(box, fill=fill)
        elif kind == 2:
            draw.polygon([tuple(rng.uniform(0, 1, 2) * (2 * w, 2 * h) + (left, top)) for _ in range(3)], fill=fill)
        elif kind == 3:
            draw.line(box, fill=fill, width=int(rng.integers(1, 10)))
        else:
            letters = "".join(
                rng.choice(list("abcdefghijklmnopqrstuvwxyzABCDEFGH 0123456789"), int(rng.integers(1, 9)))
            )
            draw.text((left, top), letters, fill=fill, font=ImageFont.load_default(int(rng.integers(14, 72))))
    out = np.asarray(big.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)
    if rng.random() < 0.2:
        out = gaussian_filter(out, (rng.uniform(0.5, 3), rng.uniform(0.5, 3), 0))
    return out


def shaded(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Soft light across the picture and a little grain, as a lens and a sensor leave them."""
    height, width, _ = pixels.shape
    light = gaussian_filter(rng.normal(size=(8, 8)), 1.5)
    light = np.asarray(Image.fromarray(light.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    out: npt.NDArray[Any] = pixels * np.exp(light * rng.uniform(0, 1.2))[..., None]
    if rng.random() < 0.4:
        out = out + rng.normal(0, rng.uniform(0, 0.03), pixels.shape)
    return pixels_of(out)


def scene(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """One procedural picture of a random kind."""
    kinds = (gradient, natural_noise, texture, landscape, drawing)
    kind = kinds[rng.choice(5, p=(0.1, 0.08, 0.12, 0.25, 0.45))]
    pixels = kind(rng, height, width)
    return pixels_of(shaded(rng, pixels) if rng.random() < 0.5 else np.clip(pixels, 0, 1))
