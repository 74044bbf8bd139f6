"""What acceleration costs in quality: each level against the exact pictures of the embedded model, photo by photo.

    python -m bench.quality [--json]

PSNR and SSIM compare pixels. The perceptual distance is of the kind of LPIPS, with the autoencoder's latents as the
features: the mean squared difference of latents normalised per position, 0 for equal pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_sample_images

from rekontext.contract import ACCELERATIONS, STEPS_DEFAULT, Acceleration, EditRequest
from rekontext.engine import Engine
from rekontext.engine.autoencoder import unpack

PROMPTS = ("make it black and white", "make it night", "blur the picture", "add a bokeh light effect", "pencil sketch")


def measure(*, model: str = "mini") -> dict[str, dict[str, float]]:
    """Figures by level: passes, share of the exact edit's denoising time, PSNR, SSIM, perceptual distance."""
    rows: dict[Acceleration, list[dict[str, float]]] = {level: [] for level in ACCELERATIONS}
    with Engine.open(model, dtype="float32") as engine:
        for photo, prompt, seed in cases():
            exact: Image.Image | None = None
            exact_s = 1.0
            for level in ACCELERATIONS:
                request = EditRequest(
                    id="", prompt=prompt, photo=photo, steps=STEPS_DEFAULT, seed=seed, acceleration=level
                )
                result = engine.submit(request).result()
                if exact is None:
                    exact, exact_s = result.picture, result.timings["denoise"]
                    continue
                rows[level].append(
                    {
                        "passes": result.passes,
                        "denoise_time": result.timings["denoise"] / exact_s,
                        **compare(engine, exact, result.picture),
                    }
                )
    return {
        level: {name: fmean(row[name] for row in of_level) for name in of_level[0]}
        for level, of_level in rows.items()
        if of_level
    }


def cases() -> Iterator[tuple[Image.Image, str, int]]:
    """Two photos that the embedded model never saw, times the prompts."""
    for number, pixels in enumerate(load_sample_images().images):
        for prompt in PROMPTS:
            yield Image.fromarray(pixels), prompt, 42 + number


def compare(engine: Engine, exact: Image.Image, other: Image.Image) -> dict[str, float]:
    """Distances between two pictures of one size."""
    one, two = np.asarray(exact), np.asarray(other)
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(one, two)
    features = []
    for picture in (exact, other):
        latents = unpack(engine.model.autoencoder.encode(picture, picture.size, remember=False), picture.size)
        features.append(torch.nn.functional.normalize(latents, dim=1))
    return {
        "psnr_db": float(min(psnr, 99.0)),
        "ssim": float(structural_similarity(one, two, channel_axis=2)),
        "perceptual": float((features[0] - features[1]).square().sum(1).mean()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    figures = measure()
    if parser.parse_args().json:
        print(json.dumps(figures, indent=1))
        return
    print("| acceleration | passes of 35 | denoising time | PSNR | SSIM | perceptual distance |")
    print("|---|---|---|---|---|---|")
    for level, row in figures.items():
        print(
            f"| {level} | {row['passes']:.0f} | {row['denoise_time']:.2f} | {row['psnr_db']:.1f} dB "
            f"| {row['ssim']:.3f} | {row['perceptual']:.4f} |"
        )


if __name__ == "__main__":
    main()
