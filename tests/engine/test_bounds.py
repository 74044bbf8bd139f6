"""What many edits cost: memory while they wait, and nothing once they are gone."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from rekontext.contract import ASPECT_RATIOS, EditRequest
from rekontext.engine import EditCancelled, Engine
from rekontext.engine.canvas import Canvas
from rekontext.engine.plan import Plan
from rekontext.engine.ticket import park, unpark
from rekontext.masks import stretch_mask
from tests.small_model import SHAPES, build

PHOTO = Image.fromarray(load_sample_image("china.jpg"))


def rss_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_thousand_waiting_edits_of_a_megapixel_fit_in_two_gigabytes() -> None:
    """A photo waits at the size it will be used at, and compressed; it comes back pixel for pixel."""
    canvas = Canvas()
    large = PHOTO.resize((4000, 2670))
    reference_size = canvas.nearest(large.size)
    plan = Plan(size=(1024, 1024), reference_size=reference_size, output_tokens=1, tokens=1, runs=(True,))
    request = EditRequest(id="x", prompt="x", photo=large, seed=1)
    parked = park(request, plan, waits=True)
    assert isinstance(parked.photo, bytes)
    assert 1000 * len(parked.photo) < 2 * 10**9
    back, at_once = unpark(request, parked), unpark(request, park(request, plan, waits=False))
    assert back.photo is not None
    assert at_once.photo is not None
    expected = large.resize(reference_size, Image.Resampling.LANCZOS).tobytes()
    assert back.photo.tobytes() == at_once.photo.tobytes() == expected


def test_a_mask_waits_as_its_photo_does() -> None:
    size = Canvas().nearest(PHOTO.size)
    plan = Plan(size=size, reference_size=size, output_tokens=1, tokens=1, runs=(True,))
    mask = Image.radial_gradient("L").resize((2 * PHOTO.width, 2 * PHOTO.height))
    request = EditRequest(id="x", prompt="x", photo=PHOTO, mask=mask, seed=1)
    parked = park(request, plan, waits=True)
    assert isinstance(parked.mask, bytes)
    assert len(parked.mask) < 10**6
    back, at_once = unpark(request, parked), unpark(request, park(request, plan, waits=False))
    assert back.mask is not None
    assert at_once.mask is not None
    assert back.mask.tobytes() == at_once.mask.tobytes() == stretch_mask(mask, size).tobytes()


def test_a_thousand_edits_can_be_queued_and_cancelled(tmp_path: Path) -> None:
    build(tmp_path, SHAPES["plain"])
    with Engine.open(str(tmp_path), device="cpu") as engine:
        before = rss_bytes()
        with engine._core._changed:
            tickets = [
                engine.submit(EditRequest(id=str(i), prompt="x", photo=PHOTO, steps=50, seed=i)) for i in range(1000)
            ]
        assert rss_bytes() - before < 200 * 2**20
        for ticket in tickets:
            ticket.cancel()
        for ticket in tickets:
            with pytest.raises(EditCancelled):
                ticket.result(60)
        assert not engine._core._tickets
        assert len(engine._core._scheduler) == 0


def test_memory_stays_flat_over_two_hundred_edits_of_mixed_sizes(tmp_path: Path) -> None:
    """Different photos, prompts and sizes all the time, so that the caches have to let go as well."""
    build(tmp_path, SHAPES["plain"])
    rng = np.random.default_rng(0)
    with Engine.open(str(tmp_path), device="cpu") as engine:

        def edit(number: int) -> None:
            size = tuple(rng.integers(40, 400, 2))
            photo = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            ratio = ASPECT_RATIOS[number % len(ASPECT_RATIOS)]
            engine.edit(photo, f"edit {number}", steps=1 + number % 4, seed=number, aspect_ratio=ratio)

        for number in range(100):
            edit(number)
        gc.collect()
        halfway = rss_bytes()
        for number in range(100, 200):
            edit(number)
        gc.collect()
        assert rss_bytes() - halfway < 40 * 2**20
