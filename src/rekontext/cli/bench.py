"""`rekontext bench scheduler`: what the order in which edits are served is worth, against first-come-first-served."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from rekontext.engine.replay import Verdict

_EDITS_ON_ENGINE: Final = 400
"""Of ordinary accounts; the greedy one brings about as many. On two cores that takes ten minutes."""

_MEANINGS: Final = {
    "mean_latency_vs_fifo": "mean latency, to first-come-first-served's",
    "p99_vs_fifo": "99th percentile of latency, likewise",
    "ordinary_mean_vs_fifo": "ordinary accounts' mean latency, likewise",
    "ordinary_mean_vs_alone": "the same, to a run without the greedy one",
    "eta_error_running": "median error of the time left, running edit",
    "eta_error_queued": "of the time to the end, queued edits",
    "eta_error_queued_ordinary": "the same, ordinary accounts only",
}


def run_bench_scheduler(*, seed: int, as_json: bool, on_engine: bool) -> None:
    """Replay a seeded load on a simulated clock, and on request on the real engine, and print the comparison."""
    from rekontext.engine.replay import Load, judge
    from rekontext.engine.scheduler import Policy

    load = Load(seed=seed)
    simulated: dict[str, float] = asdict(judge(load, Policy()))
    real: dict[str, float] = asdict(_on_engine(seed)) if on_engine else {}
    if as_json:
        figures = simulated | {f"engine_{name}": value for name, value in real.items()}
        print(json.dumps({"seed": seed, **figures}, indent=1))  # noqa: T201 - for programs, so no styling
        return
    shorter = f" ({_EDITS_ON_ENGINE} on the engine)" if real else ""
    table = Table(
        title=f"{load.edits} edits{shorter} of {load.accounts} accounts at load {load.rate:g}, and a greedy account\n"
        f"that always has {load.backlog} waiting (seed {seed})",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for heading in ("figure", "simulated", *(["on the engine"] if real else []), ""):
        table.add_column(heading)
    for name, meaning in _MEANINGS.items():
        table.add_row(name, *(f"{figures[name]:.3f}" for figures in (simulated, real) if figures), meaning)
    Console(highlight=False).print(table)


def _on_engine(seed: int) -> Verdict:
    from rekontext.engine.rehearsal import rehearse
    from rekontext.engine.replay import Load

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("on the real engine", total=3 * _EDITS_ON_ENGINE)
        return rehearse(Load(seed=seed, edits=_EDITS_ON_ENGINE), on_edit=lambda: bar.advance(task))
