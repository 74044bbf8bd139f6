"""Several pictures of one edit: their bits, their turns, and what they leave to others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rekontext.contract import SEED_MAX, EditRefused, EditRequest, Preview, Progress
from rekontext.engine import EditCancelled, Engine, Ticket
from rekontext.engine import edit as stages
from rekontext.engine.batching import Batching
from tests.small_model import SHAPES, build

PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8), "RGB")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    build(folder, SHAPES["plain"])
    return Engine.open(str(folder), device="cpu", dtype="float32")


def test_several_pictures_are_those_of_the_seeds_that_follow(engine: Engine) -> None:
    """Bit for bit, with passes left out, too; its length is as predicted, and progress counts its steps once."""
    steps: list[int] = []

    def listen(news: Progress | Preview) -> None:
        if isinstance(news, Progress):
            steps.append(news.step)

    request = EditRequest(
        id="x", prompt="night", photo=PHOTO, steps=8, seed=SEED_MAX - 1, acceleration="regular", pictures=3
    )
    single = [replace(request, seed=seed, pictures=1) for seed in (SEED_MAX - 1, SEED_MAX, 0)]
    alone = [engine.submit(each).result(60) for each in single]
    result = engine.submit(request, on_progress=listen).result(60)
    assert [each.tobytes() for each in result.pictures] == [each.picture.tobytes() for each in alone]
    assert (result.seed, result.steps, result.passes) == (SEED_MAX - 1, 8, alone[0].passes)
    assert steps == list(range(9))
    outlook = engine.outlook()
    one_s, three_s = (outlook.work_s(outlook.plan(each), step=0) for each in (single[0], request))
    assert three_s == pytest.approx(3 * one_s)
    with pytest.raises(EditRefused, match="pictures is 5: it must be from 1 to 4"):
        replace(request, pictures=5)


def test_variants_are_what_edit_gives_with_the_seeds_that_follow(engine: Engine) -> None:
    """Bit for bit, whatever else is asked for; a step is told once, when all pictures have taken it."""
    mask = Image.new("L", PHOTO.size)
    mask.paste(255, (0, 0, 45, 60))
    asked: dict[str, Any] = {"mask": mask, "steps": 3, "guidance": 2.5, "acceleration": "high"}
    news: list[Progress | Preview] = []
    found = engine.variants(PHOTO, "night", pictures=3, seed=SEED_MAX, on_step=news.append, **asked)
    alone = [engine.edit(PHOTO, "night", seed=seed, **asked) for seed in (SEED_MAX, 0, 1)]
    assert [each.tobytes() for each in found] == [each.tobytes() for each in alone]
    assert len({each.tobytes() for each in found}) == 3
    assert [each.step for each in news] == [0, 1, 2, 3]


def test_variants_are_four_of_a_drawn_seed_unless_told_otherwise(engine: Engine) -> None:
    """Two calls draw two; what can't be a number of pictures is refused by name."""
    first, second = (engine.variants(None, "night", steps=1) for _ in range(2))
    assert len({each.tobytes() for each in first + second}) == 8
    for pictures, says in ((0, "from 1 to 4"), (5, "from 1 to 4"), (2.0, "an integer"), (True, "an integer")):
        with pytest.raises(EditRefused, match=f"pictures is {pictures}: it must be {says}"):
            engine.variants(PHOTO, "night", pictures=pictures)  # type: ignore[arg-type]


def test_an_edit_of_several_pictures_is_stopped_and_overtaken_between_two_passes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture has its own at every step, which is what the device is given for."""
    passes: list[int] = []
    advance = stages.advance_a_picture

    def listen(model: stages.Model, edit: stages.Edit) -> None:
        passes.append(edit.step)
        if len(passes) == 6:  # within its second step
            ticket.cancel()
        if len(passes) == 2:
            short.append(engine.submit(EditRequest(id="short", prompt="x", photo=PHOTO, steps=1, seed=1)))
            short[0].future.add_done_callback(lambda _: ended_after.append(len(passes)))
        advance(model, edit)

    monkeypatch.setattr(stages, "advance_a_picture", listen)
    short: list[Ticket] = []
    ended_after: list[int] = []
    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=50, seed=1, pictures=4)
    with engine._core._changed:  # so that `ticket` is bound before the first pass
        ticket = engine.submit(request)
    with pytest.raises(EditCancelled):
        ticket.result(60)
    short[0].result(60)
    assert passes == [0, 0, 0, 0, 1, 1]
    assert ended_after[0] < 6


def test_an_edit_of_several_pictures_shares_no_pass(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among others of its shape, which share theirs."""
    monkeypatch.setattr(engine._core, "batching", Batching(mode="any"))
    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=4, seed=1)
    with engine._core._changed:  # all before the first step
        tickets = [engine.submit(replace(request, pictures=pictures)) for pictures in (2, 1, 2, 1)]
    found = [[picture.tobytes() for picture in ticket.result(60).pictures] for ticket in tickets]
    assert [len(pictures) for pictures in found] == [2, 1, 2, 1]
    assert found[0] == found[2]
