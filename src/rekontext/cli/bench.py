"""`rekontext bench scheduler`: what the order in which edits are served is worth, against first-come-first-served."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

_MEANINGS = {
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
    figures: dict[str, float] = dict(asdict(judge(load, Policy())))
    if on_engine:
        from rekontext.engine.rehearsal import rehearse

        figures |= {f"engine_{name}": value for name, value in asdict(rehearse(seed=seed)).items()}
    if as_json:
        print(json.dumps({"seed": seed, **figures}, indent=1))  # noqa: T201 - for programs, so no styling
        return
    table = Table(
        title=f"{load.edits} edits of {load.accounts} accounts at load {load.rate:g}, and a greedy account\n"
        f"that always has {load.backlog} waiting (seed {seed})",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for heading in ("figure", "value", ""):
        table.add_column(heading)
    for name, value in figures.items():
        meaning = _MEANINGS[name.removeprefix("engine_")]
        table.add_row(name, f"{value:.3f}", f"on the real engine: {meaning}" if name not in _MEANINGS else meaning)
    Console(highlight=False).print(table)
