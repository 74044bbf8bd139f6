"""How long the device takes for a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def seconds(run: Callable[[], object], device: torch.device, *, repeats: int = 5) -> float:
    """Median time of a call, after one that doesn't count."""
    run()
    return median(once(run, device) for _ in range(repeats))


def once(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call, on a GPU between two of its events."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    with torch.cuda.device(device):  # events are recorded on the present device's stream, whatever runs elsewhere
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1000
