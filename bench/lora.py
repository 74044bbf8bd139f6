"""What it costs that edits ask for LoRAs of their own: default edits with the embedded model, in one run and in turn.

    python -m bench.lora [--repeats N]

Prints the median time of an edit that has the LoRAs of the one before it, of one that has others, their ratio, and
what merging them took. Each LoRA is of rank 16 and changes every matrix in the blocks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

from safetensors.torch import save_file

from bench.engine import default_request
from bench.random_model import random_lora
from rekontext.engine import Engine

_NAMES: Final = ("one", "other")


def measure(*, repeats: int) -> dict[str, float]:
    """All figures: seconds, and a ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Engine.open("mini", device="cpu", lora_folder=folder) as engine:
            transformer = engine.model.transformer
            for each in _NAMES:
                save_file(random_lora(transformer.config, transformer.device), folder / f"{each}.safetensors")
            took: dict[bool, list[float]] = {True: [], False: []}
            swaps: list[float] = []
            for i in range(2 * (repeats + 1)):
                # Twice the one, twice the other: every second edit has what the last one had.
                request = replace(default_request(), loras=((_NAMES[i // 2 % 2], 1.0),))
                engine.forget()
                started = time.perf_counter()
                result = engine.submit(request).result()
                took[i % 2 == 0].append(time.perf_counter() - started)
                swaps += [result.timings["swap"]] if "swap" in result.timings else []
    same_s, other_s = median(took[False][1:]), median(took[True][1:])
    return {
        "edit_with_the_same_loras_s": same_s,
        "edit_with_other_loras_s": other_s,
        "ratio": other_s / same_s,
        "merging_s": median(swaps[1:]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    for name, value in measure(repeats=parser.parse_args().repeats).items():
        print(f"{name:42} {value:12.3f}")


if __name__ == "__main__":
    main()
