"""An engine in a process of its own against one in the service's process, in one run, edit by edit in turn.

    python -m bench.fleet [--json] [--repeats N]

Prints the time of a default edit with the embedded model through either, their ratio, and how long an edit takes that
finds its device asleep, with a process that stands by and without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from statistics import median

from bench.engine import default_request
from rekontext.contract import Fleet
from rekontext.fleet import LocalFleet, Opening, ProcessFleet

IDLE_S = 3.0
"""Longer than the other fleet's edit takes, or the device would fall asleep between two of its own."""
STANDBY_S = 15.0
"""How long it sleeps at least: the process that stands by has imported everything by then."""
WAKING_TRIES = 3


async def measure(*, repeats: int) -> dict[str, float]:
    """All figures: seconds, and the ratio of the time in a process of its own to that in ours."""
    ours, apart = LocalFleet(Opening(device="cpu")), ProcessFleet(Opening(), devices=["cpu"])
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
    ratio = median(apart / here for here, apart in times)
    return {
        "edit_s": here_s,
        "edit_apart_s": apart_s,
        "ratio_apart": ratio,
        "edit_from_nothing_s": await _waking(standby=False),
        "edit_from_standby_s": await _waking(standby=True),
    }


async def _waking(*, standby: bool) -> float:
    fleet = ProcessFleet(Opening(), devices=["cpu"], idle_s=IDLE_S, standby=standby)
    await fleet.start()
    try:
        times = []
        for _ in range(WAKING_TRIES):
            while fleet.devices != {"cpu": "asleep"}:  # noqa: ASYNC110 - a timer of the fleet's own ends it
                await asyncio.sleep(0.1)
            await asyncio.sleep(STANDBY_S)
            times.append(await _edit(fleet))
    finally:
        await fleet.close()
    return median(times)


async def _edit(fleet: Fleet) -> float:
    started = time.perf_counter()
    await fleet.edit(default_request())
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--repeats", type=int, default=12, help="edits through each (default 12)")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(repeats=arguments.repeats))
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"default edit, engine in this process     {figures['edit_s']:.2f} s")
    print(f"default edit, engine in its own process  {figures['edit_apart_s']:.2f} s")
    print(f"  of the time                            {figures['ratio_apart']:.2f}")
    print(f"the same, its device asleep before       {figures['edit_from_nothing_s']:.1f} s")
    print(f"the same, and a process standing by      {figures['edit_from_standby_s']:.1f} s")


if __name__ == "__main__":
    main()
