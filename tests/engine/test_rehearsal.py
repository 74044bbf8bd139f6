"""The scheduler's load on the real engine: short, since it takes real time."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite

from rekontext.engine.rehearsal import rehearse
from rekontext.engine.replay import Load


def test_on_the_real_engine_too_most_edits_wait_less_than_in_order_of_arrival() -> None:
    done: list[None] = []
    # It asks for much of the device, which rests little when the greedy account is left out.
    load = Load(seed=42, edits=8, rate=0.8, backlog=4)
    verdict = rehearse(load, on_edit=lambda: done.append(None))
    assert len(done) == 3 * load.edits
    assert all(isfinite(figure) for figure in asdict(verdict).values())
    # In this little time no account is known as greedy; the order alone gives 0.5 on the simulated clock.
    assert verdict.mean_latency_vs_fifo < 0.9
