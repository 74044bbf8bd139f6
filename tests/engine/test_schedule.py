"""Noise levels, with diffusers' scheduler as the judge."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift

from rekontext.engine.schedule import Schedule


@pytest.mark.parametrize("steps", [1, 4, 28, 35, 50])
@pytest.mark.parametrize("tokens", [36, 256, 1024, 4096, 4116])
def test_sigmas_equal_those_of_diffusers(steps: int, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    linear = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=linear, mu=calculate_shift(tokens))
    ours = Schedule().sigmas(steps, tokens)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy(), rtol=0, atol=2e-7)


def test_sigmas_fall_from_one_to_zero() -> None:
    sigmas = Schedule().sigmas(35, 4096)
    assert len(sigmas) == 36
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert np.all(np.diff(sigmas) < 0)
