"""Our engine against diffusers' FluxKontextPipeline on the same weights, in one run, edit by edit in turn.

    python -m bench.engine [--json] [--repeats N] [--skip-megapixel]

Prints a default edit with the embedded model (time, peak memory, ratio to diffusers) and a denoising step at one
megapixel with a random transformer of 30 M parameters, in float32 and in bfloat16, each against diffusers in the same.
Without a number format in its name, a figure is of the one that the embedded model takes on this CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from sklearn.datasets import load_sample_image

from rekontext.contract import STEPS_DEFAULT, EditRequest
from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.engine.checkpoint import mini_folder
from tests.small_model import Shape, build

MEGAPIXEL = Shape(heads=6, axes=(16, 24, 24), double_blocks=2, single_blocks=8, text_width=256, pooled_width=96)
MEGAPIXEL_STEPS = 2
TEXT_TOKENS = 512
DTYPES = ("float32", "bfloat16")


def measure(*, repeats: int, megapixel: bool) -> dict[str, float]:
    """All figures: seconds, MiB, and ratios of our time to diffusers' in the same number format."""
    torch.set_grad_enabled(False)
    with Engine.open("mini", device="cpu") as engine:
        usual = engine.card.dtype
        edit(engine, default_request())
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"default_edit_peak_rss_mib": peak_mib}
    for dtype in dict.fromkeys((usual, *DTYPES)):
        ours, theirs = default_edit(repeats, dtype)
        found = {"s": ours, "ratio_to_diffusers": ours / theirs}
        if dtype == usual:
            figures |= {f"default_edit_{name}": value for name, value in found.items()}
        figures |= {f"default_edit_{dtype}_{name}": value for name, value in found.items()}
    if megapixel:
        for dtype in DTYPES:
            ours, theirs = megapixel_step(dtype)
            figures |= {f"megapixel_step_{dtype}_s": ours, f"megapixel_step_{dtype}_ratio_to_diffusers": ours / theirs}
    return figures


def default_request() -> EditRequest:
    """A request with all defaults, on a photo that the embedded model never saw."""
    return EditRequest(
        id="bench", prompt="make it night", photo=Image.fromarray(load_sample_image("china.jpg")), seed=1
    )


def default_edit(repeats: int, dtype: str) -> tuple[float, float]:
    """Median seconds of a default request with the embedded model, ours and diffusers'."""
    request = default_request()
    with Engine.open("mini", device="cpu", dtype=dtype) as engine:
        pipeline = FluxKontextPipeline.from_pretrained(mini_folder(), torch_dtype=getattr(torch, dtype))
        pipeline.set_progress_bar_config(disable=True)
        return in_turn(
            repeats,
            lambda: edit(engine, request),
            lambda: edit_with_diffusers(engine, pipeline, request),
        )


def megapixel_step(dtype: str) -> tuple[float, float]:
    """Seconds of a step on 1 MP + 1 MP + 512 text tokens (8704 in all), random weights, ours and diffusers'."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = build(Path(folder), MEGAPIXEL)
        facts = {"text_tokens": TEXT_TOKENS, "axes": list(MEGAPIXEL.axes)}
        (Path(folder) / "rekontext.json").write_text(json.dumps(facts))
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8))
        request = EditRequest(id="bench", prompt="make it night", photo=photo, steps=MEGAPIXEL_STEPS, seed=1)
        with Engine.open(folder, device="cpu", dtype=dtype) as engine:
            transformer = pipeline.transformer.to(getattr(torch, dtype))
            prepared = stages.prepare(engine.model, request, stages.plan(engine.model, request))

            def ours() -> None:
                prepared.step, prepared.seen = 0, ()
                while not prepared.is_denoised:
                    stages.step(engine.model, prepared)

            image_ids = FluxKontextPipeline._prepare_latent_image_ids(1, 64, 64, "cpu", torch.float32)
            reference_ids = image_ids.clone()
            reference_ids[:, 0] = 1
            wide = {
                "hidden_states": torch.randn(1, 8192, 64),
                "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, MEGAPIXEL.text_width),
                "pooled_projections": torch.randn(1, MEGAPIXEL.pooled_width),
                "timestep": torch.tensor([0.5]),
                "guidance": torch.tensor([2.5]),
            }
            inputs = {name: value.to(transformer.dtype) for name, value in wide.items()} | {
                "img_ids": torch.cat([image_ids, reference_ids]),
                "txt_ids": torch.zeros(TEXT_TOKENS, 3),
            }

            def theirs() -> None:
                for _ in range(MEGAPIXEL_STEPS):
                    transformer(**inputs)

            mine, others = in_turn(2, ours, theirs)
    return mine / MEGAPIXEL_STEPS, others / MEGAPIXEL_STEPS


def edit(engine: Engine, request: EditRequest) -> None:
    """Ours, from photo to picture. The engine's caches must not make the second run cheaper than a first."""
    engine.forget()
    engine.submit(request).result()


def edit_with_diffusers(engine: Engine, pipeline: FluxKontextPipeline, request: EditRequest) -> None:
    """Theirs, at the same sizes and lengths."""
    assert request.photo is not None
    canvas = engine.model.canvas
    width, height = canvas.output(request.aspect_ratio, request.photo.size)
    pipeline(
        image=request.photo.resize(canvas.nearest(request.photo.size), Image.Resampling.LANCZOS),
        prompt=request.prompt,
        num_inference_steps=STEPS_DEFAULT,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        width=width,
        height=height,
        max_area=width * height,
        _auto_resize=False,
        max_sequence_length=engine.model.prompts.tokens,
    )


def in_turn(repeats: int, one: Callable[[], None], other: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of both, run alternately after one run of each that doesn't count."""
    one()
    other()
    pairs = [(seconds(one), seconds(other)) for _ in range(repeats)]
    return median(a for a, _ in pairs), median(b for _, b in pairs)


def seconds(run: Callable[[], None]) -> float:
    """Of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-megapixel", action="store_true")
    options = parser.parse_args()
    figures = measure(repeats=options.repeats, megapixel=not options.skip_megapixel)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:42} {value:12.3f}")


if __name__ == "__main__":
    main()
