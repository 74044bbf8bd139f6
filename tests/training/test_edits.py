"""The exact edits: pure, in range, and far enough apart to be told from each other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from training.edits import COLOURS, EDITS, TOKEN, strength
from training.exam import psnr
from training.photos import Pixels
from training.scenes import landscape


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return landscape(np.random.default_rng(4), 96, 128)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_a_pure_function_of_picture_and_generator(name: str, photo: Pixels) -> None:
    """The same picture and seed give the same result; the picture that was given stays as it was."""
    before = photo.copy()
    first = EDITS[name].apply(photo, np.random.default_rng(1))
    second = EDITS[name].apply(photo, np.random.default_rng(1))
    assert np.array_equal(first, second)
    assert np.array_equal(photo, before)
    assert first.shape == photo.shape
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1


def test_no_two_edits_look_alike(photo: Pixels) -> None:
    """The exam asks which edit an answer is nearest to: that question needs distance between the edits."""
    results = {name: edit.apply(photo, np.random.default_rng(0)) for name, edit in EDITS.items()}
    twins = {(a, b): psnr(results[a], results[b]) for a, b in combinations(results, 2)}
    assert max(twins.values()) < 32, max(twins, key=twins.__getitem__)


def test_only_bokeh_leaves_something_to_the_seed(photo: Pixels) -> None:
    """Another seed moves the discs of light; every other edit is settled."""
    free = {
        name
        for name, edit in EDITS.items()
        if not np.array_equal(edit.apply(photo, np.random.default_rng(1)), edit.apply(photo, np.random.default_rng(2)))
    }
    assert free == {"bokeh"}


def test_bokeh_leaves_the_middle_sharp(photo: Pixels) -> None:
    """The subject keeps its detail, the surroundings lose theirs."""

    def detail(pixels: Pixels, rows: slice, columns: slice) -> float:
        return float(np.abs(np.diff(pixels[rows, columns], axis=1)).mean())

    noisy = np.random.default_rng(0).random((96, 128, 3), dtype=np.float32)
    out = EDITS["bokeh"].apply(noisy, np.random.default_rng(0))
    middle, corner = (slice(40, 56), slice(54, 74)), (slice(0, 12), slice(0, 16))
    assert detail(out, *middle) > 3 * detail(out, *corner)


def test_pixelate_makes_flat_blocks_of_one_token(photo: Pixels) -> None:
    """Each block has the mean colour of what it covers."""
    out = EDITS["pixelate"].apply(photo, np.random.default_rng(0))
    assert np.ptp(out[:TOKEN, :TOKEN], axis=(0, 1)).max() == 0
    assert np.allclose(out[0, 0], photo[:TOKEN, :TOKEN].mean(axis=(0, 1)), atol=1e-5)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_frame_covers_the_edge_and_nothing_else(colour: str, photo: Pixels) -> None:
    out = EDITS[f"frame {colour}"].apply(photo, np.random.default_rng(0))
    assert np.allclose(out[0], COLOURS[colour])
    assert np.allclose(out[:, -1], COLOURS[colour])
    assert np.array_equal(out[TOKEN:-TOKEN, TOKEN:-TOKEN], photo[TOKEN:-TOKEN, TOKEN:-TOKEN])


def test_guidance_goes_from_nothing_to_the_whole_edit() -> None:
    """Nothing at 0, everything from 2.5 on, never less with more guidance."""
    amounts = [strength(guidance) for guidance in np.linspace(0, 10, 41)]
    assert amounts[0] == 0
    assert strength(2.5) == strength(7) == strength(10) == 1
    assert amounts == sorted(amounts)
