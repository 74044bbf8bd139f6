"""Our engine against diffusers' FluxKontextPipeline on the same weights, in one run, edit by edit in turn.

Each has a process of its own.

    python -m bench.engine [--json] [--repeats N] [--skip-megapixel]

Prints a default edit with the embedded model (time, peak memory, ratio to diffusers) and a denoising step at one
megapixel with a random transformer of 29 M parameters, in float32 and in bfloat16, each against diffusers in the same.
Without a number format in its name, a figure is of the one that the embedded model takes on this CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from sklearn.datasets import load_sample_image

from rekontext.contract import EditRequest
from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.models import mini_folder
from tests.parity.asking import asked_of_diffusers
from tests.small_model import Shape, build

MEGAPIXEL = Shape(heads=6, axes=(16, 24, 24), double_blocks=2, single_blocks=8, text_width=256, pooled_width=96)
MEGAPIXEL_STEPS = 2
TEXT_TOKENS = 512
DTYPES = ("float32", "bfloat16")

Run = Callable[[], None]
"""What is measured."""


def measure(*, repeats: int, megapixel: bool) -> dict[str, float]:
    """All figures: seconds, MiB, and ratios of our time to diffusers' in the same number format."""
    with Engine.open("mini", device="cpu") as engine:
        usual = engine.card.dtype
    figures = {"default_edit_peak_rss_mib": peak_mib_of(our_edit, usual)}
    for dtype in dict.fromkeys((usual, *DTYPES)):
        ours, theirs = in_turn(repeats, our_edit, their_edit, dtype)
        found = {"s": ours, "ratio_to_diffusers": ours / theirs}
        if dtype == usual:
            figures |= {f"default_edit_{name}": value for name, value in found.items()}
        figures |= {f"default_edit_{dtype}_{name}": value for name, value in found.items()}
    if megapixel:
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), MEGAPIXEL)
            facts = {"text_tokens": TEXT_TOKENS, "axes": list(MEGAPIXEL.axes)}
            (Path(folder) / "rekontext.json").write_text(json.dumps(facts))
            for dtype in DTYPES:
                ours, theirs = in_turn(2, our_steps, their_steps, folder, dtype)
                figures[f"megapixel_step_{dtype}_s"] = ours / MEGAPIXEL_STEPS
                figures[f"megapixel_step_{dtype}_ratio_to_diffusers"] = ours / theirs
    return figures


def default_request() -> EditRequest:
    """A request with all defaults, on a photo that the embedded model never saw."""
    return EditRequest(
        id="bench", prompt="make it night", photo=Image.fromarray(load_sample_image("china.jpg")), seed=1
    )


def our_edit(dtype: str) -> Run:
    """A default edit with the embedded model, from photo to picture."""
    engine, request = Engine.open("mini", device="cpu", dtype=dtype), default_request()
    return lambda: edit(engine, request)


def edit(engine: Engine, request: EditRequest) -> None:
    """From photo to picture. The engine's caches must not make the second run cheaper than a first."""
    engine.forget()
    engine.submit(request).result()


def their_edit(dtype: str) -> Run:
    """The same with diffusers, at the same sizes and lengths."""
    request = default_request()
    with Engine.open("mini", device="cpu", dtype=dtype) as engine:
        canvas, text_tokens = engine.model.canvas, engine.model.prompts.tokens
    pipeline = FluxKontextPipeline.from_pretrained(mini_folder(), torch_dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)

    def run() -> None:
        pipeline(**asked_of_diffusers(request, canvas, text_tokens=text_tokens))

    return run


def our_steps(folder: str, dtype: str) -> Run:
    """`MEGAPIXEL_STEPS` steps on 1 MP + 1 MP + 512 text tokens (8704 in all), random weights."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8))
    request = EditRequest(id="bench", prompt="make it night", photo=photo, steps=MEGAPIXEL_STEPS, seed=1)
    with Engine.open(folder, device="cpu", dtype=dtype) as engine:
        model = engine.model
    prepared = stages.prepare(model, request, stages.plan(model, request))

    def run() -> None:
        prepared.step, prepared.seen = 0, ()
        while not prepared.is_denoised:
            stages.step(model, prepared)

    return run


def their_steps(folder: str, dtype: str) -> Run:
    """The same with diffusers' transformer."""
    wide_dtype = getattr(torch, dtype)
    pipeline = FluxKontextPipeline.from_pretrained(folder, torch_dtype=wide_dtype)
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
    inputs = {name: value.to(wide_dtype) for name, value in wide.items()} | {
        "img_ids": torch.cat([image_ids, reference_ids]),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }

    def run() -> None:
        for _ in range(MEGAPIXEL_STEPS):
            pipeline.transformer(**inputs)

    return run


def in_turn(repeats: int, one: Callable[..., Run], other: Callable[..., Run], *given: str) -> tuple[float, float]:
    """Median seconds of both, run alternately after one run of each that doesn't count."""
    with apart(one, *given) as run_one, apart(other, *given) as run_other:
        run_one()
        run_other()
        pairs = [(run_one()[0], run_other()[0]) for _ in range(repeats)]
    return median(a for a, _ in pairs), median(b for _, b in pairs)


def peak_mib_of(prepare: Callable[..., Run], *given: str) -> float:
    """The most memory that a process held which ran it once."""
    with apart(prepare, *given) as run:
        return run()[1]


@contextmanager
def apart(prepare: Callable[..., Run], *given: str) -> Iterator[Callable[[], tuple[float, float]]]:
    """Prepare a run in a process of its own.

    Two that share a process slow each other down even in turn: each brings threads, and as soon as there are more of
    them than cores OpenMP lets all of them sleep between kernels.

    Returns:
        A function that runs it once and gives the seconds, and the process's peak memory in MiB.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_runs, args=(there, prepare, given), daemon=True)
    child.start()
    # Only the child's end may be left: then its death is an end of file here, not a wait without end.
    there.close()

    def run() -> tuple[float, float]:
        here.send("run")
        seconds, mib = here.recv()
        return seconds, mib

    try:
        yield run
    finally:
        here.close()
        child.join(timeout=10)
        child.kill()


def _runs(pipe: Connection, prepare: Callable[..., Run], given: tuple[str, ...]) -> None:
    torch.set_grad_enabled(False)
    run = prepare(*given)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


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
