"""The engine as its callers see it: determinism, refusals, progress, cancelling. Weights are small and random."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread, current_thread
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from rekontext.contract import (
    ASPECT_RATIOS,
    Acceleration,
    AspectRatio,
    DeadlineUnmeetable,
    EditRefused,
    EditRequest,
    EditResult,
    Preview,
    Progress,
)
from rekontext.engine import EditCancelled, Engine, Ticket
from rekontext.engine import edit as stages
from rekontext.engine.checkpoint import open_model
from rekontext.engine.costs import CostModel
from rekontext.engine.edit import noise
from tests.small_model import CANVAS_AREA, SHAPES, build

PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8), "RGB")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    build(folder, SHAPES["plain"])
    return Engine.open(str(folder), device="cpu", dtype="float32")


def test_the_same_request_gives_the_same_bytes(engine: Engine) -> None:
    first = engine.edit(PHOTO, "night", steps=4, seed=1)
    engine.edit(PHOTO, "day", steps=4, seed=2, aspect_ratio="21:9")
    assert engine.edit(PHOTO, "night", steps=4, seed=1).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"guidance": 1.0}, {"steps": 5}, {"prompt": "day"}, {"photo": None}],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_reaches_the_picture(engine: Engine, other: dict[str, object]) -> None:
    base = {"photo": PHOTO, "prompt": "night", "steps": 4, "guidance": 7.0, "seed": 1, "aspect_ratio": "1:1"}
    one = engine.edit(**base)  # type: ignore[arg-type]
    two = engine.edit(**(base | other))  # type: ignore[arg-type]
    assert one.tobytes() != two.tobytes()


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_every_aspect_ratio_has_the_canvas_size(engine: Engine, ratio: AspectRatio) -> None:
    picture = engine.edit(PHOTO, "night", steps=1, seed=1, aspect_ratio=ratio)
    assert picture.mode == "RGB"
    assert picture.size == engine.model.canvas.output(ratio, PHOTO.size)
    assert engine.card.canvas_area == CANVAS_AREA


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_photos_of_every_mode_are_taken(engine: Engine, mode: str) -> None:
    """As what they look like in RGB."""
    photo = PHOTO.convert(mode)
    picture = engine.edit(photo, "night", steps=1, seed=1)
    assert picture.tobytes() == engine.edit(photo.convert("RGB"), "night", steps=1, seed=1).tobytes()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_colours_that_were_multiplied_by_opacity_are_taken_apart(engine: Engine, mode: str) -> None:
    layered = PHOTO.convert(mode)
    layered.putalpha(PHOTO.convert("L"))
    multiplied = layered.convert(mode.replace("A", "a"))
    picture = engine.edit(multiplied, "night", steps=1, seed=1)
    assert picture.tobytes() == engine.edit(multiplied.convert(mode), "night", steps=1, seed=1).tobytes()


def test_photos_are_seen_as_a_viewer_shows_them(engine: Engine) -> None:
    """Straight from `Image.open`: turned upright, on white where they are transparent, 16 bits of gray as 8."""
    gray = PHOTO.convert("L")
    layered = PHOTO.convert("RGBA")
    layered.putalpha(gray)
    on_white = Image.composite(PHOTO, Image.new("RGB", PHOTO.size, "white"), gray)
    turned = PHOTO.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    for photo, shown in ((turned, PHOTO), (layered, on_white), (deep, gray)):
        seen = engine.edit(photo, "night", steps=1, seed=1)
        assert seen.tobytes() == engine.edit(shown, "night", steps=1, seed=1).tobytes()


def test_progress_counts_every_step_and_tells_what_remains(engine: Engine) -> None:
    seen: list[Progress | Preview] = []
    engine.edit(PHOTO, "night", steps=5, seed=1, on_step=seen.append)
    progress = [news for news in seen if isinstance(news, Progress)]
    assert [(p.step, p.steps) for p in progress] == [(i, 5) for i in range(6)]
    assert progress[0].remaining_s is None
    assert all(p.remaining_s is not None and p.remaining_s > 0 for p in progress[1:])


def test_previews_come_on_request_and_show_the_picture(engine: Engine) -> None:
    """One pixel per latent, every k steps, not for the last step: then the picture itself is there."""
    seen: list[Progress | Preview] = []
    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=7, seed=1, preview_every=2)
    picture = engine.submit(request, on_progress=seen.append).result(60).picture
    previews = [news for news in seen if isinstance(news, Preview)]
    assert [p.step for p in previews] == [2, 4, 6]
    assert all(p.picture.size == (picture.width // 8, picture.height // 8) for p in previews)


def test_cancelling_a_running_edit_stops_within_one_step(engine: Engine) -> None:
    """And frees what it held; others go on."""
    steps: list[int] = []

    def listen(news: Progress | Preview) -> None:
        assert isinstance(news, Progress)
        steps.append(news.step)
        if news.step == 3:
            ticket.cancel()

    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=50, seed=1)
    with engine._core._changed:  # so that `ticket` is bound before the first step tells of itself
        ticket = engine.submit(request, on_progress=listen)
    with pytest.raises(EditCancelled):
        ticket.result(60)
    assert steps[-1] <= 4
    assert ticket.edit is None
    assert ticket.parked is None
    assert len(engine._core._scheduler) == 0


def test_cancelling_a_waiting_edit_ends_it_before_its_first_step(engine: Engine) -> None:
    with engine._core._changed:
        ticket = engine.submit(EditRequest(id="x", prompt="night", photo=PHOTO, steps=50, seed=1))
        ticket.cancel()
    with pytest.raises(EditCancelled):
        ticket.result(60)
    assert "denoise" not in ticket.timings


def test_an_edit_alone_and_among_sixteen_others_gives_the_same_bytes(engine: Engine) -> None:
    """Whatever order the scheduler makes, an edit's arithmetic is its own."""
    requests = [
        EditRequest(id=str(i), prompt=f"edit {i}", photo=PHOTO, steps=3 + i % 5, seed=i, aspect_ratio=ratio)
        for i, ratio in zip(range(17), ASPECT_RATIOS * 2, strict=False)
    ]
    alone = [engine.submit(request).result(60).picture.tobytes() for request in requests]
    tickets = [engine.submit(request) for request in requests]
    assert [ticket.result(60).picture.tobytes() for ticket in tickets] == alone


def test_a_short_edit_overtakes_a_long_one(engine: Engine) -> None:
    order: list[str] = []
    long = EditRequest(id="long", prompt="night", photo=PHOTO, steps=50, seed=1)
    short = EditRequest(id="short", prompt="night", photo=PHOTO, steps=1, seed=1)
    with engine._core._changed:
        tickets = [engine.submit(request) for request in (long, short)]
        for ticket in tickets:
            ticket.future.add_done_callback(lambda _, id=ticket.request.id: order.append(id))  # type: ignore[misc]
    for ticket in tickets:
        ticket.result(60)
    assert order == ["short", "long"]


def test_a_deadline_that_cannot_be_met_is_refused_at_once(engine: Engine) -> None:
    """The engine knows how long an edit takes, so it says no when it is asked, not when time is up."""
    engine.edit(PHOTO, "night", steps=4, seed=1)
    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=50, seed=1, deadline_s=1e-6)
    with pytest.raises(DeadlineUnmeetable, match=r"the edit is expected to be done in .* s, and deadline_s is 1e-06"):
        engine.submit(request)
    assert engine.submit(replace(request, deadline_s=600.0)).result(60).steps == 50


def test_estimates_grow_with_the_queue(engine: Engine) -> None:
    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=50, seed=1)
    empty = engine.estimate(request)
    assert empty.position == 0
    assert empty.wait_s == 0
    with engine._core._changed:
        tickets = [engine.submit(replace(request, steps=10)) for _ in range(5)]
        full = engine.estimate(request)
    assert full.position == 5
    assert full.finish_s > empty.finish_s
    for ticket in tickets:
        ticket.cancel()


@pytest.mark.parametrize(("acceleration", "passes"), [("none", 20), ("regular", 12), ("high", 10)])
def test_acceleration_leaves_out_passes_and_says_so(engine: Engine, acceleration: Acceleration, passes: int) -> None:
    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=20, seed=1, acceleration=acceleration)
    result = engine.submit(request).result(60)
    assert (result.passes, result.steps, result.acceleration) == (passes, 20, acceleration)


def test_a_fault_in_one_edit_is_told_to_its_caller_and_spares_the_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stages.velocities

    def faulty(model: stages.Model, edits: Sequence[stages.Edit]) -> list[torch.Tensor]:
        if any(edit.request.id == "bad" for edit in edits):
            raise MemoryError("device is full")
        return honest(model, edits)

    monkeypatch.setattr(stages, "velocities", faulty)
    good, bad = (
        engine.submit(EditRequest(id=id, prompt="night", photo=PHOTO, steps=4, seed=1)) for id in ("good", "bad")
    )
    with pytest.raises(MemoryError, match="device is full"):
        bad.result(60)
    assert good.result(60).steps == 4


def test_on_a_cpu_one_thread_computes_and_whoever_opened_the_model_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that compute keep helpers; more of those than cores make every kernel wait."""
    openers: list[Thread] = []
    workers: set[Thread] = set()

    def noted(function: Callable[..., object], note: Callable[[Thread], None]) -> Callable[..., object]:
        def run(*given: object, **named: object) -> object:
            note(current_thread())
            return function(*given, **named)

        return run

    monkeypatch.setattr("rekontext.engine.placement.open_model", noted(open_model, openers.append))
    for stage in ("prepare", "velocities", "finish"):
        monkeypatch.setattr(stages, stage, noted(getattr(stages, stage), workers.add))
    build(tmp_path, SHAPES["plain"])
    with Engine.open(str(tmp_path), device="cpu") as opened:
        tickets = [opened.submit(EditRequest(id="", prompt="x", photo=PHOTO, steps=3, seed=i)) for i in range(3)]
        for ticket in tickets:
            ticket.result(60)
        assert len(workers) == 1
        assert current_thread() not in workers
    assert [opener.is_alive() for opener in openers] == [False]


def test_a_listener_that_raises_ends_its_own_edit_only(engine: Engine) -> None:
    def listener(news: Progress | Preview) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        engine.edit(PHOTO, "night", steps=50, seed=1, on_step=listener)

    def leaving(news: Progress | Preview) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        engine.edit(PHOTO, "night", steps=50, seed=1, on_step=leaving)
    engine.edit(PHOTO, "night", steps=1, seed=1)


def test_whoever_is_interrupted_leaves_no_edit_behind(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the edit that nobody waits for would take turns with the next."""

    def interrupted(self: Ticket, timeout_s: float | None = None) -> EditResult:
        raise KeyboardInterrupt

    with monkeypatch.context() as changes:
        changes.setattr(Ticket, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.edit(PHOTO, "night", steps=50, seed=1)
    engine.edit(PHOTO, "night", steps=4, seed=1)
    assert not engine._core._tickets


def test_closing_from_a_listener_is_refused(engine: Engine) -> None:
    """It would wait for itself."""
    with pytest.raises(RuntimeError, match="close was called from a thread of the engine's own"):
        engine.edit(PHOTO, "night", steps=4, seed=1, on_step=lambda news: engine.close())
    with (
        patch.object(type(engine._core.device), "is_second", True),
        pytest.raises(RuntimeError, match="close was called from a thread of the engine's own"),
    ):
        engine.close()
    engine.edit(PHOTO, "night", steps=1, seed=1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_of_the_process_has_no_engine(engine: Engine) -> None:
    """Its thread stays with the parent: an edit there would wait for ever."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            engine.close()  # nothing of the parent's
            engine.edit(PHOTO, "night", steps=1, seed=1)
        except BaseException as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert "opened before a fork" in said.read()
    os.waitpid(child, 0)
    engine.edit(PHOTO, "night", steps=1, seed=1)


LEAVING = """
import sys
from rekontext.engine import Engine
engine = Engine.open("mini", device="cpu")
began = []
ticket = engine.submit(__import__("rekontext.contract").contract.EditRequest(id="", prompt="x", seed=1, steps=50),
                       on_progress=began.append)
while len(began) < 3:
    pass
"""


def test_a_script_may_end_while_an_edit_runs() -> None:
    """Not with an abort: a thread that is inside a library when the interpreter goes takes the process down."""
    ended = subprocess.run([sys.executable, "-c", LEAVING], check=False, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_closing_ends_every_edit(tmp_path: Path) -> None:
    build(tmp_path / "model", SHAPES["plain"])
    with Engine.open(str(tmp_path / "model"), device="cpu", costs_file=tmp_path / "costs.json") as engine:
        tickets = [engine.submit(EditRequest(id=str(i), prompt="x", photo=PHOTO, steps=50, seed=1)) for i in range(20)]
        tickets[0].result(60)
    for ticket in tickets:
        assert ticket.future.done()
    assert (tmp_path / "costs-model-cpu-float32.json").is_file()


def test_the_first_edit_is_estimated_by_the_pass_that_was_tried(tmp_path: Path) -> None:
    """Where ways of computing were tried, an edit's length needn't be guessed; a step that was measured counts more."""
    build(tmp_path / "model", SHAPES["plain"])
    kept = tmp_path / "costs-model-cpu-float32.json"

    def predicted_s(**seconds: dict[int, float]) -> float:
        CostModel(seconds={name.replace("_", " "): known for name, known in seconds.items()}).save(kept)
        with Engine.open(str(tmp_path / "model"), device="cpu", costs_file=tmp_path / "costs.json") as engine:
            return engine.costs.predict("step", tokens)

    with Engine.open(str(tmp_path / "model"), device="cpu") as engine:
        tokens = engine.model.prompts.tokens + 2 * engine.model.canvas.area // 256
    ways = {"pass_by_blocks": {tokens: 3.0}, "pass_by_kernels": {tokens: 2.0}}
    assert predicted_s(**ways) == 2.0
    assert predicted_s(**ways, step={tokens: 5.0}) == 5.0


def test_what_only_spares_time_need_not_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A data folder that is full, or can't be written or read, takes no device away."""
    build(tmp_path / "model", SHAPES["plain"])
    (tmp_path / "file").write_text("no folder")
    for costs_file in (tmp_path / "file" / "costs.json", tmp_path / "folder.json"):
        (tmp_path / "folder-model-cpu-float32.json").mkdir(exist_ok=True)
        with Engine.open(str(tmp_path / "model"), device="cpu", costs_file=costs_file) as engine:
            engine.edit(PHOTO, "night", steps=1, seed=1)
    assert "can't be kept" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0: it must be from 1 to 50"),
        ({"steps": 51}, "steps is 51"),
        ({"guidance": -0.1}, "guidance is -0.1: it must be from 0 to 10"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"steps": 4.0}, "steps is 4.0: it must be an integer"),
        ({"steps": "4"}, "steps is '4': it must be an integer"),
        ({"steps": True}, "steps is True: it must be an integer"),
        ({"seed": 1.0}, "seed is 1.0: it must be an integer"),
        ({"guidance": None}, "guidance is None: it must be a number"),
        ({"guidance": "7"}, "guidance is '7': it must be a number"),
        ({"aspect_ratio": "5:3"}, "aspect_ratio is '5:3': it must be one of match_input_image, 1:1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(engine: Engine, values: dict[str, object], message: str) -> None:
    with pytest.raises(EditRefused, match=message):
        engine.edit(PHOTO, "night", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "prompt is a NoneType: it must be text"),
        (["a", "b"], "prompt is a list: it must be text"),
        ("\ud800", "prompt has half of a character in it"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_kind(engine: Engine, prompt: object, message: str) -> None:
    with pytest.raises(EditRefused, match=message):
        engine.edit(PHOTO, prompt)  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_numbers(engine: Engine) -> None:
    values = {"steps": np.int64(2), "seed": np.int32(1), "guidance": np.float32(7)}
    picture = engine.edit(PHOTO, "night", **values)  # type: ignore[arg-type]
    assert picture.tobytes() == engine.edit(PHOTO, "night", steps=2, seed=1, guidance=7.0).tobytes()


def test_a_photo_or_a_mask_that_can_t_be_read_is_refused(engine: Engine, tmp_path: Path) -> None:
    """Cut short, closed, or of no pixels."""
    whole = io.BytesIO()
    PHOTO.save(whole, "PNG")
    cut = Image.open(io.BytesIO(whole.getvalue()[:1000]))
    PHOTO.save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as closed:
        pass
    for photo in (cut, closed):
        with pytest.raises(EditRefused, match="photo can't be read: "):
            engine.edit(photo, "night")
        with pytest.raises(EditRefused, match="mask can't be read: "):
            engine.edit(PHOTO, "night", mask=photo, steps=1)
    for size in ((5, 0), (0, 5)):
        with pytest.raises(EditRefused, match="it must have at least one"):
            engine.edit(Image.new("RGB", size), "night")


@pytest.mark.parametrize("photo", ["photo.jpg", Path("photo.jpg"), np.zeros((8, 8, 3), dtype=np.uint8)])
def test_what_is_no_picture_is_refused_by_its_kind(engine: Engine, photo: object) -> None:
    with pytest.raises(EditRefused, match=rf"photo is a {type(photo).__name__}: it must be a PIL\.Image\.Image"):
        engine.edit(photo, "night")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
def test_unknown_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(EditRefused, match=f"device is '{device}'"):
        Engine.open("mini", device=device)


def test_unknown_dtypes_are_refused_by_name() -> None:
    with pytest.raises(EditRefused, match="dtype is 'int8': it must be one of float32, bfloat16, fp8"):
        Engine.open("mini", device="cpu", dtype="int8")


def test_noise_is_that_of_a_host_generator() -> None:
    """So that a seed means the same picture on every device."""
    generator = torch.Generator("cpu").manual_seed(9)
    assert torch.equal(noise(9, (32, 64), 16), torch.randn(1, 16, 8, 4, generator=generator))


def test_an_engine_in_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    """bfloat16 has 8 bits of mantissa; over a few steps the pictures must not drift apart visibly."""
    build(tmp_path, SHAPES["deep"])
    pictures = [
        np.asarray(Engine.open(str(tmp_path), device="cpu", dtype=dtype).edit(PHOTO, "night", steps=8, seed=1), float)
        for dtype in ("float32", "bfloat16")
    ]
    assert np.sqrt(np.mean((pictures[0] - pictures[1]) ** 2)) < 0.05 * 255


def test_a_prompt_that_is_cut_is_told(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Its picture is that of what was read, as in diffusers; nothing is said of one that fits exactly."""
    tokens = engine.model.prompts.tokens
    fits = "a"
    while len(engine.model.prompts._parts.t5_tokenizer(f"{fits} a").input_ids) <= tokens:
        fits += " a"
    request = EditRequest(id="x", prompt=fits, seed=1, steps=1)
    whole, cut = (engine.submit(replace(request, prompt=each)).result(60) for each in (fits, f"{fits} a red house"))
    assert (whole.prompt_tokens, cut.prompt_tokens) == (None, tokens)
    engine.edit(None, fits, steps=1)
    assert caplog.text == ""
    engine.edit(None, f"{fits} a red house", steps=1)
    assert f"{tokens} tokens of the prompt were read; what it has beyond them was left out" in caplog.text
