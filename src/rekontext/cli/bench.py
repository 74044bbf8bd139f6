"""`rekontext bench scheduler`: what the order in which edits are served is worth, against first-come-first-served."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

_MEANINGS = {
    "mean_latency_vs_fifo": "mean latency, all accounts",
    "p99_vs_fifo": "99th percentile of latency, all accounts",
    "ordinary_mean_vs_fifo": "mean latency of ordinary accounts",
    "ordinary_mean_vs_alone": "the same, against a run without the greedy account",
    "eta_error_running": "median error of the predicted time, running edit",
    "eta_error_queued": "the same, for edits that had to queue",
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
        title=f"{load.edits} edits of {load.accounts} accounts, load {load.rate:g}, and a greedy account that always "
        f"has {load.backlog} waiting (seed {seed})",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for heading in ("figure", "ratio to first-come-first-served", ""):
        table.add_column(heading)
    for name, value in figures.items():
        meaning = _MEANINGS[name.removeprefix("engine_")]
        table.add_row(name, f"{value:.3f}", f"on the real engine: {meaning}" if name not in _MEANINGS else meaning)
    Console(highlight=False).print(table)
