"""A default edit with the embedded model where other programs want every core too, against the same by itself.

    python -m bench.crowded [--repeats N]

Once as the `rekontext` command has its threads wait for each other, once as OpenMP has them wait unasked.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from bench.engine import apart, our_edit
from rekontext.cli.cores import share_cores, usable

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def measure(*, repeats: int) -> dict[str, float]:
    """Seconds of an edit, and how many times as long it takes among as many busy programs as there are cores."""
    figures: dict[str, float] = {}
    for name, is_shared in (("command", True), ("unasked", False)):
        with waiting(is_shared=is_shared), apart(our_edit, "bfloat16") as run:
            run()
            alone = median(run()[0] for _ in range(repeats))
            with busy():
                crowded = median(run()[0] for _ in range(repeats))
        figures |= {f"{name}_alone_s": alone, f"{name}_crowded_s": crowded, f"{name}_ratio": crowded / alone}
    return figures


@contextmanager
def waiting(*, is_shared: bool) -> Iterator[None]:
    """Processes begun within have OpenMP wait as the command has it, or as it does unasked."""
    before = dict(os.environ)
    for name in SETTINGS:
        os.environ.pop(name, None)
    if is_shared:
        share_cores()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def busy() -> Iterator[None]:
    """As many programs as this process may use cores, which have nothing to wait for."""
    programs = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(usable())]
    for program in programs:
        program.start()
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.join()


def _compute() -> None:
    while True:
        pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    for name, value in measure(repeats=parser.parse_args().repeats).items():
        print(f"{name:20} {value:8.2f}")


if __name__ == "__main__":
    main()
