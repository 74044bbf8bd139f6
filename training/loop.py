"""What all training stages share: one resumable loop with averaged weights, progress lines and a loss curve.

Knows optimisers, learning rates and files. Does not know pictures or models.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rekontext.engine.precision import multiplies_bfloat16

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast one stage trains.

    Attributes:
        iterations: optimiser steps in all.
        rate: peak learning rate, after a linear warm-up of `warmup` iterations.
        cooldown: share of the iterations, at the end, in which the rate falls linearly to zero.
        average: decay per iteration of the averaged weights that are exported.
        save_every: iterations between two resumable states.
    """

    iterations: int
    rate: float
    warmup: int = 50
    cooldown: float = 0.4
    average: float = 0.995
    save_every: int = 200
    seed: int = 0

    def rate_at(self, iteration: int) -> float:
        """Learning rate of one iteration: warm up, stay, cool down."""
        left = (self.iterations - iteration) / max(1.0, self.iterations * self.cooldown)
        return self.rate * min(1.0, (iteration + 1) / self.warmup, left)


def halved(device: torch.device) -> bool:
    """Whether products are computed in bfloat16: where the device has units for it. Imitated, they take ten times."""
    return device.type != "cpu" or multiplies_bfloat16()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """What a forward pass runs in."""
    return torch.autocast(device.type, torch.bfloat16) if halved(device) else nullcontext()


class Averaged:
    """An exponential moving average of the weights: what is exported, steadier than the last iteration."""

    def __init__(self, modules: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in modules.state_dict().items()}

    @torch.no_grad()
    def update(self, modules: nn.Module, iteration: int) -> None:
        """Move towards the present weights; faster at first, when the start values are still noise."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        for name, value in modules.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)


def draw_curve(table: Path) -> None:
    """Draw every column of a CSV of losses as a PNG beside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with table.open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("iteration", "seconds", "rate")]
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 3.5), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([int(row["iteration"]) for row in rows], [float(row[name]) for row in rows])
        axis.set(title=name, xlabel="iteration")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(table.with_suffix(".png"), dpi=100)
    plt.close(figure)


def train(
    modules: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    make_batch: Callable[[int], Batch],
    losses_of: Callable[[Batch], dict[str, Tensor]],
    *,
    plan: Plan,
    runs: Path,
    name: str,
    on_save: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train `modules` in place and leave them with the averaged weights.

    A state lies in `runs/name.pt`: a stage that was cut off goes on from there, one that had ended returns at once.

    Args:
        make_batch: iteration -> batch. Draws everything from the iteration's own seed, so a resumed run sees
            what an uninterrupted one would have seen. Runs in a thread, one batch ahead.
        losses_of: batch -> named losses; "loss" is minimised, the others are only written down.
        on_save: called with the iteration after each saved state, e.g. to export a first usable model.
    """
    optimizers = list(optimizers)
    runs.mkdir(parents=True, exist_ok=True)
    state_path, table_path = runs / f"{name}.pt", runs / f"{name}.csv"
    averaged, start = Averaged(modules, plan.average), 0
    # Before a state is loaded: a state remembers the rate that it had come down to.
    peak = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if state_path.exists():
        state: dict[str, Any] = torch.load(state_path, weights_only=True)
        modules.load_state_dict(state["modules"])
        averaged.shadow, start = state["averaged"], state["iteration"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"{name}: going on at iteration {start}", flush=True)
    if start >= plan.iterations:
        modules.load_state_dict(averaged.shadow)
        return modules.eval()
    began, seen = time.monotonic(), 0
    sums: dict[str, float] = {}
    modules.train()
    # One thread, and one only: a second pool of workers would fight the training's for the cores.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as ahead:
        upcoming = ahead.submit(make_batch, start)
        for iteration in range(start, plan.iterations):
            batch = upcoming.result()
            if iteration + 1 < plan.iterations:
                upcoming = ahead.submit(make_batch, iteration + 1)
            factor = plan.rate_at(iteration) / plan.rate
            for optimizer, rates in zip(optimizers, peak, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            torch.manual_seed(plan.seed * 1_000_003 + iteration)
            losses = losses_of(batch)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            averaged.update(modules, iteration)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            seen += 1
            done = iteration + 1
            saving = done % plan.save_every == 0 or done == plan.iterations
            if done % 25 == 0 or saving:
                row = {key: value / seen for key, value in sums.items()}
                assert all(math.isfinite(value) for value in row.values()), f"{name}: {row} at iteration {done}"
                _write(table_path, {"iteration": done, "seconds": round(time.monotonic() - began, 1), **row})
                pace = (time.monotonic() - began) / (done - start)
                text = "  ".join(f"{key} {value:.5f}" for key, value in row.items())
                left = pace * (plan.iterations - done) / 60
                print(f"{name} {done}/{plan.iterations}  {text}  {pace:.2f} s/it  {left:.0f} min left", flush=True)
                sums, seen = {}, 0
            if saving:
                state = {
                    "iteration": done,
                    "modules": modules.state_dict(),
                    "averaged": averaged.shadow,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                }
                torch.save(state, state_path.with_suffix(".part"))
                state_path.with_suffix(".part").replace(state_path)
                draw_curve(table_path)
                if on_save is not None:
                    on_save(done)
    modules.load_state_dict(averaged.shadow)
    return modules.eval()


def _write(table: Path, row: dict[str, float]) -> None:
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
