"""Our engine draws the pixels that diffusers' FluxKontextPipeline draws from the same folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from rekontext.contract import EditRequest
from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.engine.canvas import Canvas
from tests.parity.asking import asked_of_diffusers
from tests.small_model import SHAPES, TEXT_TOKENS, build

TOLERANCE = 1e-4
"""In float32 pixels of 0..1. Measured: below 2e-6."""

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8), "RGB")

CASES = [
    EditRequest(id="match", prompt="make it night", photo=PHOTO, steps=4, guidance=2.5, seed=1),
    EditRequest(id="square", prompt="a cat", photo=PHOTO, steps=7, guidance=0, seed=2, aspect_ratio="1:1"),
    EditRequest(id="wide", prompt="", photo=PHOTO, steps=5, guidance=10, seed=3, aspect_ratio="21:9"),
    EditRequest(id="tall", prompt="x " * 99, photo=PHOTO, steps=4, guidance=7, seed=2**40, aspect_ratio="9:21"),
    EditRequest(id="flat", prompt="snow", photo=Image.new("RGB", (9, 9), "white"), steps=1, guidance=2.5, seed=4),
    EditRequest(id="text-only", prompt="a house", steps=6, guidance=3.5, seed=5, aspect_ratio="3:2"),
    EditRequest(id="text-only-square", prompt="rain", steps=4, guidance=7, seed=6),
]


Pair = tuple[Engine, FluxKontextPipeline]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    build(folder, SHAPES[request.param])
    pipeline = FluxKontextPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return Engine.open(str(folder), device="cpu", dtype="float32"), pipeline


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_pixels_agree(pair: Pair, case: EditRequest) -> None:
    """Every aspect of a request (ratio, steps, guidance, seed, reference) reaches the pixels as in diffusers."""
    engine, pipeline = pair
    ours = pixels(engine, case)
    theirs = judge(engine, pipeline, case)
    assert theirs.std() > 0.05, "a flat picture would agree with anything flat"
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("pair", ["plain"], indirect=True)
def test_real_sizes_agree(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the published canvas diffusers picks the trained size itself, and both pick and resize the same way.

    One model is enough: what the others' blocks compute doesn't depend on the canvas, and a megapixel takes long.
    """
    engine, pipeline = pair
    # A common shape, of which the exact ratio would choose another size.
    case = EditRequest(id="native", prompt="night", photo=PHOTO.resize((1080, 1350)), steps=1, guidance=2.5, seed=4)
    monkeypatch.setattr(engine._core, "model", _native(engine))
    ours = pixels(engine, case)
    _, height, width = ours.shape
    theirs = pipeline(
        image=case.photo,
        prompt=case.prompt,
        num_inference_steps=1,
        guidance_scale=case.guidance,
        generator=torch.Generator().manual_seed(case.seed),
        width=width,
        height=height,
        max_sequence_length=TEXT_TOKENS,
        output_type="pt",
    ).images[0]
    assert theirs.shape == ours.shape
    assert (ours - theirs).abs().max() <= TOLERANCE


@given(st.integers(16, 5000), st.integers(16, 5000))
def test_a_photo_gets_the_size_that_diffusers_gives_it(width: int, height: int) -> None:
    """Its processor rounds a photo down to whole tokens before its pipeline looks for the nearest size."""
    processor = VaeImageProcessor(vae_scale_factor=16)
    rows, columns = processor.get_default_height_width(Image.new("1", (width, height)))
    theirs = min((abs(columns / rows - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    assert Canvas().nearest((width, height)) == theirs[1:]


def _native(engine: Engine) -> stages.Model:
    return replace(engine.model, canvas=Canvas())


def pixels(engine: Engine, case: EditRequest) -> Tensor:
    """Ours, (3, y, x) in 0..1 before rounding to bytes."""
    edit = stages.prepare(engine.model, case, stages.plan(engine.model, case))
    while not edit.is_denoised:
        stages.step(engine.model, edit)
    return stages.finish(engine.model, edit)


def judge(engine: Engine, pipeline: FluxKontextPipeline, case: EditRequest) -> Tensor:
    """Theirs."""
    asked = asked_of_diffusers(case, engine.model.canvas, text_tokens=TEXT_TOKENS)
    result: Tensor = pipeline(**asked, output_type="pt").images[0]
    return result
