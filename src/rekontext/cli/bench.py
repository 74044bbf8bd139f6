"""`rekontext bench scheduler`: what the order in which edits are served is worth, against first-come-first-served."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rekontext.cli.computing import computing

if TYPE_CHECKING:
    from rekontext.engine.replay import Verdict

_EDITS_ON_ENGINE: Final = 400
"""Of ordinary accounts; the greedy one brings about as many. On two cores that takes ten minutes."""

_MEANINGS: Final = {
    "mean_latency_vs_fifo": "mean latency, to first-come-first-served's",
    "p99_vs_fifo": "99th percentile of latency, likewise",
    "ordinary_mean_vs_fifo": "ordinary accounts' mean latency, likewise",
    "ordinary_mean_vs_alone": "the same, to one without the greedy",
    "eta_error_running": "median error of the time left, running edit",
    "eta_error_queued": "the same, edits that had to queue",
    "eta_error_queued_ordinary": "of these, the ordinary accounts'",
}


def run_bench_scheduler(*, seed: int, as_json: bool, on_engine: bool) -> None:
    """Replay a seeded load on a simulated clock, and on request on the real engine, and print the comparison."""
    from rekontext.engine.replay import Load, judge
    from rekontext.engine.scheduler import Policy

    always = Load(seed=seed)
    busy = replace(always, rate=0.8)
    half = replace(busy, greedy_part=0.5, backlog=0)
    none = replace(half, greedy_part=0.0)
    loads = {"": always, "busy_": busy, "half_": half, "none_": none}
    verdicts = {prefix: judge(load, Policy()) for prefix, load in loads.items()}
    if on_engine:
        verdicts["engine_"] = _on_engine(seed)
    if as_json:
        figures = {prefix + name: value for prefix, v in verdicts.items() for name, value in asdict(v).items()}
        print(json.dumps({"seed": seed, **figures}, indent=1))  # noqa: T201 - for programs, so no styling
        return
    console = Console(highlight=False)
    console.print(
        f"{always.edits} edits on a simulated clock, seed {seed}. One account is greedy: it [b]always[/b] has "
        f"{always.backlog} more waiting, beside {always.accounts} others that ask for {always.rate:g} of the device's "
        f"time, or, [b]busy[/b], for {busy.rate:g} of it; or it brings [b]half[/b] of all edits, which ask for "
        f"{half.rate:g} of it; or there is [b]none[/b]."
        + (f" On the [b]engine[/b]: the first load, {_EDITS_ON_ENGINE} edits." if on_engine else "")
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "always", "busy", "half", "none", *(["engine"] if on_engine else [])):
        table.add_column(heading)
    for name, meaning in _MEANINGS.items():
        table.add_row(meaning, *(f"{getattr(verdict, name):.3f}" for verdict in verdicts.values()))
    console.print(table)


def _on_engine(seed: int) -> Verdict:
    from rekontext.engine.replay import Load

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with computing(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        from rekontext.engine.rehearsal import rehearse

        task = bar.add_task("on the real engine", total=3 * _EDITS_ON_ENGINE)
        return rehearse(Load(seed=seed, edits=_EDITS_ON_ENGINE), on_edit=lambda: bar.advance(task))
