"""An engine in a process of its own against one in the service's process, in one run, edit by edit in turn.

    python -m bench.fleet [--device cuda:0] [--json] [--repeats N]

Prints the time of a default edit with the embedded model through either, their ratio, and how long an edit takes that
finds its device asleep, with a process that stands by and without; of a GPU also the memory that is taken meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import replace
from statistics import median

from bench.engine import default_request
from rekontext.contract import Fleet
from rekontext.fleet import LocalFleet, Opening, ProcessFleet

IDLE_S = 3.0
"""Longer than the other fleet's edit takes, or the device would fall asleep between two of its own."""
STANDBY_S = 15.0
"""How long it sleeps at least: the process that stands by has imported everything by then."""
WAKING_TRIES = 3


async def measure(device: str, *, repeats: int) -> dict[str, float]:
    """All figures: seconds, gigabytes, and the ratio of the time in a process of its own to that in ours."""
    opening = _opening(device)
    ours, apart = LocalFleet(replace(opening, device=device)), ProcessFleet(opening, devices=[device])
    await ours.start()
    await apart.start()
    try:
        for fleet in (ours, apart):  # pages and kernels are loaded
            await _edit(fleet)
        times = [(await _edit(ours), await _edit(apart)) for _ in range(repeats)]
    finally:
        await ours.close()
        await apart.close()
    here_s, apart_s = (median(each) for each in zip(*times, strict=True))
    return {
        "edit_s": here_s,
        "edit_apart_s": apart_s,
        "ratio_apart": median(apart / here for here, apart in times),
        **await _waking(device, "nothing", standby=False),
        **await _waking(device, "standby", standby=True),
    }


async def _waking(device: str, name: str, *, standby: bool) -> dict[str, float]:
    """An edit that wakes its device; and the GPU's memory that the fleet takes before it and after."""
    before_gb = _taken_gb(device)
    fleet = ProcessFleet(_opening(device), devices=[device], idle_s=IDLE_S, standby=standby)
    await fleet.start()
    try:
        seen = []
        for _ in range(WAKING_TRIES):
            while fleet.devices != {device: "asleep"}:  # noqa: ASYNC110 - a timer of the fleet's own ends it
                await asyncio.sleep(0.1)
            await asyncio.sleep(STANDBY_S)
            seen.append((_taken_gb(device) - before_gb, await _edit(fleet), _taken_gb(device) - before_gb))
    finally:
        await fleet.close()
    asleep_gb, edit_s, awake_gb = (median(each) for each in zip(*seen, strict=True))
    figures = {f"edit_from_{name}_s": edit_s}
    if device != "cpu":
        figures |= {f"asleep_from_{name}_gb": asleep_gb, f"awake_from_{name}_gb": awake_gb}
    return figures


def _opening(device: str) -> Opening:
    """A CPU computes in float32 here, whatever it multiplies faster."""
    return Opening(dtype="float32" if device == "cpu" else None)


def _taken_gb(device: str) -> float:
    """Of a GPU's memory, by whomever."""
    if device == "cpu":
        return 0.0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1e9


async def _edit(fleet: Fleet) -> float:
    started = time.perf_counter()
    await fleet.edit(default_request())
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda:N" (default cpu)')
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--repeats", type=int, default=12, help="edits through each (default 12)")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.device, repeats=arguments.repeats))
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"default edit, engine in this process     {figures['edit_s']:.2f} s")
    print(f"default edit, engine in its own process  {figures['edit_apart_s']:.2f} s")
    print(f"  of the time                            {figures['ratio_apart']:.2f}")
    for name, what in (
        ("nothing", "the same, its device asleep before"),
        ("standby", "the same, and a process standing by"),
    ):
        print(f"{what:40} {figures[f'edit_from_{name}_s']:.1f} s")
        if f"asleep_from_{name}_gb" in figures:
            asleep_gb, awake_gb = figures[f"asleep_from_{name}_gb"], figures[f"awake_from_{name}_gb"]
            print(f"  memory that it takes asleep, awake     {asleep_gb:.2f}, {awake_gb:.2f} GB")


if __name__ == "__main__":
    main()
