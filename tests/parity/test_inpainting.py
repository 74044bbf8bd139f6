"""An edit with a mask draws what diffusers' FluxKontextInpaintPipeline draws there, and keeps the photo elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextInpaintPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from rekontext.contract import EditRefused, EditRequest, Preview, Progress
from rekontext.engine import Engine
from rekontext.engine import edit as stages
from rekontext.engine.edit import Edit
from rekontext.masks import stretch_mask
from rekontext.photos import stretch
from tests.parity.asking import asked_of_diffusers
from tests.small_model import SHAPES, TEXT_TOKENS, build

TOLERANCE = 1e-4
"""In float32 pixels of 0..1. Measured: below 2e-6."""

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8), "RGB")
CASE = EditRequest(id="masked", prompt="make it night", photo=PHOTO, steps=5, guidance=2.5, seed=1)


def marked(*parts: tuple[int, int, int, int], level: int = 255) -> Image.Image:
    """A mask for the photo, with rectangles in it."""
    mask = Image.new("L", PHOTO.size)
    for part in parts:
        ImageDraw.Draw(mask).rectangle(part, fill=level)
    return mask


MASKS = {
    "half": marked((0, 0, 70, 100)),
    "two": marked((20, 10, 60, 40), (90, 60, 130, 95)),
    "line": marked((10, 51, 130, 52)),
    "all": marked((0, 0, 140, 100)),
    "soft": Image.linear_gradient("L").resize(PHOTO.size),
}


@pytest.fixture(scope="module", params=["plain", "no-guidance"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    build(folder, SHAPES[request.param])
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.open(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> FluxKontextInpaintPipeline:
    pipeline = FluxKontextInpaintPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def done(engine: Engine, request: EditRequest) -> Edit:
    edit = stages.prepare(engine.model, request, stages.plan(engine.model, request))
    while not edit.is_denoised:
        stages.step(engine.model, edit)
    return edit


def grown(mask: Image.Image) -> Image.Image:
    """At the picture's size, to whole latents: each is free if any of its pixels is."""
    cells = np.asarray(mask).reshape(mask.height // 8, 8, mask.width // 8, 8).max(axis=(1, 3)) >= 128
    return Image.fromarray((np.kron(cells, np.ones((8, 8))) * 255).astype(np.uint8))


def levels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32)) / 255


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_pixels_agree(engine: Engine, pipeline: FluxKontextInpaintPipeline, mask: Image.Image) -> None:
    """Where the mask is white; where it is black they are the photo's, and between they are blended."""
    request = replace(CASE, mask=mask)
    edit = done(engine, request)
    ours = stages.finish(engine.model, edit)
    size = edit.plan.size
    scaled, photo = stretch_mask(mask, size), stretch(PHOTO, size)
    asked = asked_of_diffusers(request, engine.model.canvas, text_tokens=TEXT_TOKENS)
    theirs = pipeline(**asked, mask_image=grown(scaled), strength=1.0, output_type="pt").images[0]
    opacity, kept = levels(scaled), levels(photo).permute(2, 0, 1)
    assert (ours - (opacity * theirs + (1 - opacity) * kept)).abs().max() <= TOLERANCE
    assert (theirs - kept).abs()[:, opacity > 0.5].mean() > 0.05, "what changes nothing would agree with the photo"


def test_what_is_black_stays_to_the_very_level(engine: Engine) -> None:
    mask = MASKS["two"]
    picture = engine.edit(PHOTO, "make it night", mask=mask, steps=4, seed=1)
    black = np.asarray(stretch_mask(mask, picture.size)) == 0
    changed = np.asarray(picture) != np.asarray(stretch(PHOTO, picture.size))
    assert black.mean() > 0.5
    assert not changed[black].any()
    assert changed[~black].any(axis=-1).mean() > 0.9


def test_a_white_mask_is_none(engine: Engine) -> None:
    pictures = [engine.edit(PHOTO, "night", mask=mask, steps=4, seed=1) for mask in (None, MASKS["all"])]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_a_thin_line_is_drawn(engine: Engine) -> None:
    """diffusers looks at one pixel in the corner of each latent, and finds no line that runs beside it."""
    edit = done(engine, replace(CASE, mask=MASKS["line"]))
    assert edit.kept is not None
    assert edit.kept.is_free_1ne.any()
    picture = np.asarray(engine.edit(PHOTO, "night", mask=MASKS["line"], steps=4, seed=1))
    assert (picture != np.asarray(stretch(PHOTO, edit.plan.size))).any()


def test_it_may_wait_share_a_pass_and_leave_passes_out(folder: Path) -> None:
    """A masked edit's bytes don't depend on company, nor do those of one without a mask beside it."""
    with Engine.open(str(folder), device="cpu", dtype="float32", batch="any") as engine:
        masked, plain = (
            EditRequest(
                id=str(mask),
                prompt="x",
                photo=PHOTO,
                mask=mask,
                steps=9,
                seed=2,
                acceleration="regular",
                preview_every=2,
            )
            for mask in (MASKS["two"], None)
        )
        alone = [engine.submit(request).result(60).picture for request in (masked, plain)]
        looks: list[Preview] = []

        def listen(news: Progress | Preview) -> None:
            if isinstance(news, Preview):
                looks.append(news)

        with engine._core._changed:  # all of them before the first step
            tickets = [engine.submit(request) for request in (plain, masked, plain)]
            tickets.append(engine.submit(masked, on_progress=listen))
        together = [ticket.result(60).picture for ticket in tickets]
        found = [
            np.abs(np.asarray(a, int) - np.asarray(b, int)).max()
            for a, b in zip(together, (alone[1], alone[0], alone[1], alone[0]), strict=True)
        ]
        assert max(found) <= 1, "a shared pass may round otherwise"
        assert looks


def test_several_pictures_share_a_mask(engine: Engine) -> None:
    """Each is that of its seed alone."""
    requests = [replace(CASE, mask=MASKS["two"], seed=seed) for seed in (1, 2)]
    alone = [engine.submit(request).result(60).picture.tobytes() for request in requests]
    both = engine.submit(replace(requests[0], pictures=2)).result(60).pictures
    assert [picture.tobytes() for picture in both] == alone


def test_early_looks_show_the_photo_where_it_stays(engine: Engine) -> None:
    edit = stages.prepare(engine.model, replace(CASE, mask=MASKS["half"]), stages.plan(engine.model, CASE))
    stages.step(engine.model, edit)
    assert edit.kept is not None
    clean = stages.predicted_clean(edit)
    stays = ~edit.kept.is_free_1ne
    assert torch.equal(clean[stays], edit.kept.photo_1ne[stays])
    assert not torch.equal(clean, edit.kept.photo_1ne)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"photo": None, "mask": MASKS["half"]}, "mask is given without photo"),
        ({"mask": MASKS["half"].resize((100, 100))}, "mask is 100 x 100 and photo 140 x 100: they must have the same"),
        ({"mask": PHOTO}, "mask has mode RGB"),
    ],
    ids=["no-photo", "shape", "mode"],
)
def test_a_mask_that_fits_nothing_is_refused(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(EditRefused, match=why):
        replace(CASE, **asked)


def test_a_mask_of_which_nothing_is_left_is_refused(engine: Engine) -> None:
    """It would be paid for, and change nothing."""
    mask = Image.new("L", (1400, 1000))
    mask.paste(255, (0, 500, 1400, 501))
    with pytest.raises(EditRefused, match="mask marks too little: nothing of it is left at "):
        engine.submit(replace(CASE, mask=mask))


def test_a_mask_takes_the_shape_that_its_photo_has(engine: Engine) -> None:
    """By whichever name; 4:3 is the nearest of the model's to 140 x 100."""
    asked: dict[str, Any] = {"mask": MASKS["half"], "steps": 4, "seed": 1}
    named, matched = (
        engine.edit(PHOTO, "night", aspect_ratio=ratio, **asked) for ratio in ("4:3", "match_input_image")
    )
    assert named.tobytes() == matched.tobytes()
    with pytest.raises(EditRefused, match="aspect_ratio is '1:1': with mask it must be 'match_input_image', or what"):
        engine.edit(PHOTO, "night", aspect_ratio="1:1", **asked)


def test_a_smaller_mask_of_the_same_shape_fits() -> None:
    """Whoever marks parts of a photo of twelve megapixels does it on a smaller copy."""
    assert replace(CASE, photo=PHOTO.resize((4032, 3024)), mask=Image.new("L", (512, 384), 255)).mask is not None
