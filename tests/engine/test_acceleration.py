"""Which passes are left out, and what stands in for them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rekontext.contract import ACCELERATIONS, Acceleration
from rekontext.engine.acceleration import FIRST_STEPS, LAST_STEPS, Seen, extrapolate, step_map


@given(st.integers(1, 50))
def test_none_runs_every_step(steps: int) -> None:
    assert step_map(steps, "none") == (True,) * steps


@given(st.integers(1, 50), st.sampled_from(ACCELERATIONS))
def test_first_and_last_steps_always_run(steps: int, acceleration: Acceleration) -> None:
    runs = step_map(steps, acceleration)
    assert len(runs) == steps
    assert all(runs[:FIRST_STEPS])
    assert all(runs[-LAST_STEPS:])


@pytest.mark.parametrize(("steps", "passes"), [(4, (4, 4)), (28, (16, 12)), (35, (20, 15)), (50, (27, 20))])
def test_higher_levels_run_fewer_passes(steps: int, passes: tuple[int, int]) -> None:
    assert (sum(step_map(steps, "regular")), sum(step_map(steps, "high"))) == passes


def test_extrapolation_is_exact_on_a_line() -> None:
    earlier, later = Seen(1.0, torch.tensor([1.0, 0.0])), Seen(0.8, torch.tensor([2.0, 0.0]))
    assert extrapolate(earlier, later, 0.5).tolist() == pytest.approx([3.5, 0.0])
