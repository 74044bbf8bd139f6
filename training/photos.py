"""The training photos: freely licensed pictures that ship inside pip packages, and random crops of them.

Knows where each photo comes from and its licence. Does not know any edit, and never opens scikit-learn's two
sample photos: those are the exam.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.float32]
"""(height, width, 3) RGB in [0, 1]."""


def pixels_of(values: npt.NDArray[Any]) -> Pixels:
    """Any array of a picture's values as `Pixels`, clipped to [0, 1]."""
    return np.asarray(np.clip(values, 0, 1), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One photo: the package and file it lies in, its licence, and how often it is drawn.

    Attributes:
        weight: relative frequency. Portraits, animals and things are drawn more often than bare textures.
        tint: the photo is grey and gets a random pair of colours, so that it does not teach "pictures are grey".
    """

    package: str
    file: str
    licence: str
    weight: float = 1.0
    tint: bool = False


SOURCES: Final = (
    Source(package="skimage", file="data/astronaut.png", licence="public domain (NASA)", weight=3),
    Source(package="skimage", file="data/chelsea.png", licence="CC0 (Stefan van der Walt)", weight=3),
    Source(package="skimage", file="data/coffee.png", licence="CC0 (Rachel Michetti)", weight=3),
    Source(package="skimage", file="data/rocket.jpg", licence="public domain (SpaceX)", weight=2),
    Source(package="skimage", file="data/hubble_deep_field.jpg", licence="public domain (NASA)", weight=0.4),
    Source(package="skimage", file="data/retina.jpg", licence="CC0 (Mikael Häggström)", weight=0.5),
    Source(package="skimage", file="data/ihc.png", licence="no known copyright restrictions (CMMI)", weight=0.4),
    Source(package="skimage", file="data/brick.png", licence="CC0 (CC0Textures)", weight=0.4, tint=True),
    Source(package="skimage", file="data/grass.png", licence="CC0 (linolafett)", weight=0.4, tint=True),
    Source(package="skimage", file="data/gravel.png", licence="CC0 (CC0Textures)", weight=0.4, tint=True),
    Source(package="skimage", file="data/camera.png", licence="CC0 (Lav Varshney)", weight=2, tint=True),
    Source(
        package="skimage", file="data/coins.png", licence="no known copyright restrictions (Brooklyn Museum)", tint=True
    ),
    Source(
        package="matplotlib",
        file="mpl-data/sample_data/grace_hopper.jpg",
        licence="public domain (US Navy)",
        weight=3,
    ),
)


@cache
def load(source: Source) -> Image.Image:
    """Open one training photo as RGB.

    Raises:
        ModuleNotFoundError: its package is not installed (`pip install rekontext[train]`).
    """
    module = __import__(source.package)
    assert module.__file__ is not None, f"{source.package} has no file"
    with Image.open(Path(module.__file__).parent / source.file) as picture:
        return picture.convert("RGB")


def _tinted(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    dark = rng.uniform(0.0, 0.35, 3)
    bright = rng.uniform(0.5, 1.0, 3)
    return pixels_of(dark + (bright - dark) * pixels)


def _jittered(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Another light, another camera: exposure, contrast, saturation, white balance and hue, all mild."""
    if rng.random() < 0.25:
        return pixels
    out = pixels ** np.float32(np.exp(rng.normal(0, 0.25)))
    grey = out.mean(axis=2, keepdims=True)
    out = grey + (out - grey) * rng.uniform(0.6, 1.5)
    out = 0.5 + (out - 0.5) * rng.uniform(0.75, 1.15) + rng.normal(0, 0.06)
    out = out * np.exp(rng.normal(0, 0.08, 3))
    if rng.random() < 0.35:  # other materials in the same light: the colour channels change places
        out = out[..., rng.permutation(3)]
    return pixels_of(out)


def crop(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A random window of a random photo, scaled to `height` x `width` pixels, flipped and jittered at random."""
    weights = np.array([source.weight for source in SOURCES])
    source = SOURCES[rng.choice(len(SOURCES), p=weights / weights.sum())]
    photo = load(source)
    # From slightly enlarged to the whole photo, but mostly as sharp and as full as a photo on the native canvas is.
    largest = min(photo.width / width, photo.height / height)
    usual = largest if rng.random() < 0.15 else min(largest, 2.2)
    scale = float(np.exp(rng.uniform(np.log(min(0.6, usual)), np.log(usual))))
    stretch = np.exp(rng.uniform(-0.08, 0.08))
    box_w = min(photo.width, width * scale * stretch)
    box_h = min(photo.height, height * scale / stretch)
    left = rng.uniform(0, photo.width - box_w)
    top = rng.uniform(0, photo.height - box_h)
    small = photo.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + box_w, top + box_h))
    pixels = np.asarray(small, dtype=np.float32) / np.float32(255)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if source.tint:
        pixels = _tinted(pixels, rng)
    return _jittered(np.ascontiguousarray(pixels), rng)
