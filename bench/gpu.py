"""FLUX.1 Kontext [dev] at its own size on this machine's GPU, with random weights, beside diffusers with the same ones.

    python -m bench.gpu [--only PART ...] [--budget SECONDS] [--out FOLDER]
    python -m bench.gpu --size small --device cpu --backend eager

Prints a table, and writes bench/results/<device>-<date>.json every ten seconds and after every part, so that what was
measured survives whatever comes after. A part that fails or takes too long is named under "failed" and stops no other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, Final, get_args

import torch
import torch._dynamo

from bench import gpu_parts
from bench.gpu_bench import Bench
from bench.random_model import FULL, SMALL
from rekontext.engine.attention import BACKENDS
from rekontext.engine.costs import slug
from rekontext.engine.tuning import PassBy

RESULTS: Final = Path(__file__).parent / "results"
BUDGET_S: Final = 510.0
"""The whole run shall take less than nine minutes; ending needs some of it too."""
WRITE_EVERY_S: Final = 10.0
STUCK_S: Final = 20.0
"""So long after the budget a run is ended that hangs in the device's driver, where no signal reaches it."""

ENTRIES_MAX: Final = 12

PARTS: Final[dict[str, tuple[Callable[[Bench], None], float]]] = {
    "ceilings": (gpu_parts.ceilings, 60),
    "bf16": (gpu_parts.bf16, 120),
    "denoise": (gpu_parts.denoise, 50),
    "edits": (gpu_parts.edits, 60),
    "ceilings-fp8": (gpu_parts.ceilings_fp8, 30),
    "fp8": (gpu_parts.fp8, 90),
    "denoise-fp8": (gpu_parts.denoise_fp8, 40),
    "diffusers": (gpu_parts.diffusers, 150),
    "diffusers-edit": (gpu_parts.diffusers_edit, 75),
    "edits-fp8": (gpu_parts.edits_fp8, 50),
    "loras": (gpu_parts.loras, 45),
    "errors": (gpu_parts.errors, 40),
    "profile": (gpu_parts.profile, 40),
    "autoencoder": (gpu_parts.autoencoder, 30),
    "load": (gpu_parts.load, 60),
    "compiled": (gpu_parts.compiled, 90),
    "compiled-again": (gpu_parts.compiled_again, 60),
    "narrow-attention": (gpu_parts.narrow_attention, 20),
}
"""In the order in which they run, each with the seconds after which it is given up.

First what is looked up elsewhere, with what it needs; edits in bfloat16 come before fp8, so that the most memory they
take is that of bfloat16 alone. Of the last two one undoes compilation, and one may break the device.
"""


class OutOfTime(BaseException):
    """A part took longer than it may. No `Exception`: whoever tries one thing after the other would go on."""


def measure(bench: Bench, *, only: list[str] | None, budget_s: float, write: Callable[[dict[str, Any]], None]) -> None:
    """Run the parts one after the other, within the budget."""
    started = time.monotonic()
    for name, (part, limit_s) in PARTS.items():
        if only and name not in only:
            continue
        left_s = budget_s - (time.monotonic() - started)
        if left_s < 5:
            bench.failed[name] = f"not started: the budget of {budget_s:.0f} s was spent"
            continue
        began = time.monotonic()
        try:
            bench.begin(name)
            with time_limit(min(limit_s, left_s)), torch.inference_mode():
                part(bench)
        except (Exception, OutOfTime) as error:
            traceback.print_exc()
            bench.failed[name] = f"{type(error).__name__}: {str(error)[:500]}"
        took_s = bench.figures[f"part_{name}_s"] = time.monotonic() - began
        bench.end(name)
        write(bench.results())
        print(f"{name}: {took_s:.1f} s {bench.failed.get(name, '')}", flush=True)


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after so many seconds. Only on the main thread."""

    def ring(*_: object) -> None:
        raise OutOfTime(f"given up after {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again after that: libraries that try one thing after the other may take the first ring for a failure.
    signal.setitimer(signal.ITIMER_REAL, limit_s, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(results: dict[str, Any]) -> str:
    """The figures, one a line; of those by shape or by kernel the first."""
    lines = [f"{name:44} {value:14.4g}" for name, value in results.items() if isinstance(value, float)]
    lines += [f"{name:44} {value}" for name, value in results.items() if isinstance(value, str)]
    for fact, entries in results.items():
        if isinstance(entries, dict) and fact != "failed":
            lines += [
                f"{fact}: {name:60} {value if isinstance(value, str) else f'{value:.4g}'}"
                for name, value in list(entries.items())[:ENTRIES_MAX]
            ]
    lines += [f"FAILED {name}: {reason}" for name, reason in results["failed"].items()]
    return "\n".join(lines)


def free_name(path: Path) -> Path:
    """`path`, or where an earlier run has it, the same with a number: no run takes another's figures away."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if not each.exists())


@contextmanager
def writing(bench: Bench, write: Callable[[dict[str, Any]], None], *, give_up_s: float) -> Iterator[None]:
    """Write every few seconds what is known so far: whoever ends this process takes the part under way along.

    After `give_up_s` the process ends itself: a kernel that hangs holds it for ever.
    """
    done = threading.Event()
    give_up = time.monotonic() + give_up_s

    def watch() -> None:
        while not done.wait(WRITE_EVERY_S):
            is_stuck = time.monotonic() > give_up
            if is_stuck:
                bench.failed["run"] = "it hung: ended after the budget"
            write(bench.results())
            if is_stuck:
                os._exit(3)

    watching = threading.Thread(target=watch, name="writing", daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


def age_s() -> float:
    """How long this process has been there: what imports and the device's driver took before the first part counts."""
    since_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot


def main(arguments: list[str] | None = None, *, spent_s: float = 0.0) -> dict[str, Any]:
    """Measure, print, write; returns what was written. `spent_s` of the budget is gone already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="some parts alone")
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="inductor", help='of torch.compile, or "none"; "eager" only traces')
    parser.add_argument("--static", action="store_true", help="compile for each number of tokens apart")
    parser.add_argument("--by", choices=get_args(PassBy), help="what computes our passes; otherwise as the engine")
    parser.add_argument("--attention", choices=list(BACKENDS), help="a backend by name; otherwise the fastest")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for the whole run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    now = datetime.now(UTC)
    bench = Bench(
        size=FULL if options.size == "full" else SMALL,
        device=device,
        backend=options.backend,
        dynamic=not options.static,
        attention=options.attention,
        by=options.by,
    )
    bench.facts |= {"date": now.isoformat(timespec="seconds"), "size": options.size}
    options.out.mkdir(parents=True, exist_ok=True)
    file = free_name(options.out / f"{slug(bench.facts['device'])}-{now:%Y-%m-%d}.json")

    one_at_a_time = threading.Lock()

    def write(results: dict[str, Any]) -> None:
        with one_at_a_time:
            draft = file.with_suffix(".tmp")
            draft.write_text(json.dumps(results, indent=1) + "\n")
            draft.replace(file)

    left_s = options.budget - spent_s

    # A cache of our own: what an earlier run compiled must not make this one's first start look fast.
    # And a pass that is compiled too often must fail, not go on uncompiled as it would by default.
    wanted = {"recompile_limit": 32, "fail_on_recompile_limit_hit": True}
    strictly = torch._dynamo.config.patch(
        {name: to for name, to in wanted.items() if hasattr(torch._dynamo.config, name)}
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache, strictly:
        before = {name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
        try:
            with writing(bench, write, give_up_s=left_s + STUCK_S):
                measure(bench, only=options.only, budget_s=left_s, write=write)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
    results = bench.results()
    print(table(results))
    print(f"written to {file}")
    return results


if __name__ == "__main__":
    main(spent_s=age_s())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written, and the compiler's workers could hold up the end for minutes
