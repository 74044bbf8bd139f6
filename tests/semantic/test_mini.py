"""The embedded model really edits photos: held-out sentences, on two photos that its training never saw.

Judged by the exact edits (`training.exam`). The fewest steps that a request may ask for: the answers differ little, the
time much. The whole exam is `python -m training.exam src/rekontext/models/mini`.
"""

from __future__ import annotations

import numpy as np
import pytest

from rekontext.contract import ASPECT_RATIOS, AspectRatio
from rekontext.engine import Engine
from rekontext.models import mini_folder
from training.edits import EDITS, KNOWN
from training.exam import ASKED, Mark, autoencoder_alone, exact, judge, photos, picture_of, psnr
from training.photos import Pixels
from training.phrasings import held_out

STEPS = 3
BYTES_MAX = 24_000_000


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open("mini")


def edited(engine: Engine, photo: Pixels, prompt: str, *, guidance: float = 7.0, seed: int = 1) -> Pixels:
    """The engine's answer as float pixels of the photo's size."""
    picture = engine.edit(picture_of(photo), prompt, steps=STEPS, guidance=guidance, seed=seed)
    assert (picture.height, picture.width) == photo.shape[:2], "the exam's photos have the canvas' own sizes"
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


@pytest.fixture(scope="module")
def marks(engine: Engine) -> list[Mark]:
    """Every other edit, asked once, of one of the two photos; `make exam` asks for all of them, of more."""
    asked = ((name, photos()[(1, 4)[turn % 2]], held_out(name)[turn // 2 % 2]) for turn, name in enumerate(ASKED[::2]))
    return [judge(photo, name, edited(engine, photo, sentence)) for name, photo, sentence in asked]


def test_the_answer_is_nearer_to_the_asked_edit_than_to_any_other(marks: list[Mark]) -> None:
    mistaken = [(mark.edit, mark.nearest) for mark in marks if mark.nearest != mark.edit]
    assert not mistaken


def test_every_prompt_that_it_offers_is_understood(engine: Engine) -> None:
    """The page shows them as buttons."""
    assert engine.card.knows == tuple(KNOWN)
    photo = photos()[5]
    nearest = {prompt: judge(photo, edit, edited(engine, photo, prompt)).nearest for prompt, edit in KNOWN.items()}
    assert nearest == KNOWN


def test_tonal_edits_come_close_to_the_exact_ones(marks: list[Mark]) -> None:
    tonal = {mark.edit: mark.psnr_db for mark in marks if EDITS[mark.edit].tonal}
    assert np.mean(list(tonal.values())) >= 26, tonal


def test_the_autoencoder_alone_keeps_the_photos() -> None:
    assert np.mean(autoencoder_alone(mini_folder())) >= 29


@pytest.mark.parametrize(
    "prompt",
    [
        "put a wizard next to the fountain",
        "what is the capital of Mongolia?",
        "qwrt zzxk plomb",
        "",
    ],
)
def test_a_request_that_it_does_not_know_gives_the_photo_back(engine: Engine, prompt: str) -> None:
    """No noise, no invention: nearer to the photo than to any edit of its light or colour."""
    photo = photos()[4]
    answer = edited(engine, photo, prompt)
    others = [psnr(answer, picture) for name, picture in exact(photo).items() if EDITS[name].tonal and name != "keep"]
    assert psnr(answer, photo) >= max(20, *others)


def test_guidance_leads_from_the_photo_to_the_edit(engine: Engine) -> None:
    """0 keeps the photo, 1.2 is on the way, 2.5 and 10 are both the whole edit."""
    photo = photos()[5]
    wanted = exact(photo)["invert"]
    answers = {g: edited(engine, photo, "invert the colors", guidance=g) for g in (0.0, 1.2, 2.5, 10.0)}
    assert psnr(answers[0.0], photo) >= 20
    away = [psnr(answers[g], photo) for g in (0.0, 1.2, 2.5)]
    assert away == sorted(away, reverse=True)
    assert min(psnr(answers[2.5], wanted), psnr(answers[10.0], wanted)) >= 18


def test_the_seed_decides_where_the_edit_leaves_freedom(engine: Engine) -> None:
    """The discs of a bokeh move with the seed; the same seed gives the same picture; black and white is settled."""
    photo = photos()[0]
    bokeh = [edited(engine, photo, held_out("bokeh")[0], seed=seed) for seed in (1, 1, 2)]
    grey = [edited(engine, photo, held_out("grayscale")[0], seed=seed) for seed in (1, 2)]
    assert np.array_equal(bokeh[0], bokeh[1])
    assert psnr(bokeh[0], bokeh[2]) < psnr(grey[0], grey[1])


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_every_aspect_ratio_gives_a_picture_of_the_photo(engine: Engine, aspect_ratio: AspectRatio) -> None:
    """Right shape, and the part of the photo that the new shape still covers is where it was."""
    photo = photos()[0]
    picture = engine.edit(picture_of(photo), "make it black and white", steps=4, seed=1, aspect_ratio=aspect_ratio)
    answer = np.asarray(picture, dtype=np.float32) / np.float32(255)
    height, width = min(answer.shape[0], 288), min(answer.shape[1], 288)
    covered = exact(photo)["grayscale"][:height, :width]
    assert psnr(answer[:height, :width], covered) >= 15
    assert 0.8 < picture.width * picture.height / 288**2 < 1.2


def test_plain_diffusers_loads_the_model_unchanged() -> None:
    from diffusers import FluxKontextPipeline

    pipeline = FluxKontextPipeline.from_pretrained(mini_folder())
    assert pipeline.transformer.config.guidance_embeds


def test_the_model_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in mini_folder().rglob("*") if file.is_file()) <= BYTES_MAX
