"""The engine as its callers see it: determinism, refusals, progress, cancelling. Weights are small and random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rekontext.contract import ASPECT_RATIOS, AspectRatio, EditRefused, EditRequest, Progress
from rekontext.engine import EditCancelled, Engine
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
    engine.edit(PHOTO.convert(mode), "night", steps=1, seed=1)


def test_progress_counts_every_step_and_tells_what_remains(engine: Engine) -> None:
    seen: list[Progress] = []
    engine.edit(PHOTO, "night", steps=5, seed=1, on_step=seen.append)
    assert [(p.step, p.steps) for p in seen] == [(i, 5) for i in range(6)]
    assert seen[0].remaining_s is None
    assert seen[-1].remaining_s == 0


def test_cancelling_stops_within_one_step(engine: Engine) -> None:
    seen: list[Progress] = []
    request = EditRequest(id="x", prompt="night", photo=PHOTO, steps=9, seed=1)
    with pytest.raises(EditCancelled):
        engine.run(request, on_step=seen.append, is_cancelled=lambda: len(seen) > 3)
    assert seen[-1].step == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0: it must be from 1 to 50"),
        ({"steps": 51}, "steps is 51"),
        ({"guidance": -0.1}, "guidance is -0.1: it must be from 0 to 10"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"aspect_ratio": "5:3"}, "aspect_ratio is '5:3': it must be one of match_input_image, 1:1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(engine: Engine, values: dict[str, object], message: str) -> None:
    with pytest.raises(EditRefused, match=message):
        engine.edit(PHOTO, "night", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
def test_unknown_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(EditRefused, match=f"device is '{device}'"):
        Engine.open("mini", device=device)


def test_unknown_dtypes_are_refused_by_name() -> None:
    with pytest.raises(EditRefused, match="dtype is 'int8': it must be one of float32, bfloat16"):
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
