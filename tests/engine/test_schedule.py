"""Noise levels, with diffusers' scheduler as the judge."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift

from rekontext.engine.schedule import Schedule


@pytest.mark.parametrize("steps", [1, 4, 9, 28, 35, 50])
@pytest.mark.parametrize("tokens", [36, 81, 256, 1024, 3905, 4096, 4116])
def test_sigmas_equal_those_of_diffusers(steps: int, tokens: int) -> None:
    """To the last bit: whatever differs here shows in the pixels."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    linear = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=linear, mu=calculate_shift(tokens))
    ours = Schedule().sigmas(steps, tokens)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, scheduler.sigmas.numpy())


def test_sigmas_fall_from_one_to_zero() -> None:
    sigmas = Schedule().sigmas(35, 4096)
    assert len(sigmas) == 36
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert np.all(np.diff(sigmas) < 0)
