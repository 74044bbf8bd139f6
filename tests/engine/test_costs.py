"""What the engine learns of its own speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekontext.engine.costs import CostModel, per_device


def test_a_measured_size_is_predicted_by_its_running_mean() -> None:
    costs = CostModel()
    costs.learn("step", 1000, 2.0)
    costs.learn("step", 1000, 3.0)
    assert costs.predict("step", 1000) == pytest.approx(2.2)


@pytest.mark.parametrize(("linear", "square"), [(1e-4, 0.0), (1e-4, 2e-8), (0.0, 3e-8)])
def test_other_sizes_are_read_off_the_curve(linear: float, square: float) -> None:
    """Attention is quadratic, the rest linear; from three sizes the curve is found again."""
    costs = CostModel()
    for tokens in (500, 2000, 9000):
        costs.learn("step", tokens, linear * tokens + square * tokens**2)
    assert costs.predict("step", 4000) == pytest.approx(linear * 4000 + square * 4000**2)


def test_one_measurement_scales_in_proportion() -> None:
    costs = CostModel()
    costs.learn("step", 1000, 1.0)
    assert costs.predict("step", 3000) == pytest.approx(3.0)


def test_noise_never_predicts_less_than_nothing() -> None:
    costs = CostModel()
    for tokens, seconds in ((100, 9.0), (200, 1.0), (300, 0.1)):
        costs.learn("step", tokens, seconds)
    assert costs.predict("step", 5000) > 0


def test_without_any_measurement_there_is_a_guess() -> None:
    assert CostModel(token_s=0.5).predict("step", 10) == 5.0


def test_costs_survive_a_restart(tmp_path: Path) -> None:
    costs = CostModel()
    costs.learn("step", 1000, 2.0)
    costs.save(tmp_path / "deep" / "costs.json")
    assert CostModel.load(tmp_path / "deep" / "costs.json") == costs


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 3}', '{"step": {"x": 1}}'])
def test_a_damaged_file_is_a_fresh_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    assert CostModel.load(tmp_path / "costs.json") == CostModel()


def test_each_device_has_a_file_of_its_own(tmp_path: Path) -> None:
    """What one GPU takes says nothing of another, nor of another model or number format on the same one."""
    facts = ("FLUX.1-Kontext-dev", "NVIDIA H100 80GB HBM3", "fp8")
    file = per_device(tmp_path / "costs.json", *facts)
    assert file == tmp_path / "costs-flux-1-kontext-dev-nvidia-h100-80gb-hbm3-fp8.json"
    assert per_device(tmp_path / "costs.json", "black-forest-labs/FLUX", "cpu").parent == tmp_path
