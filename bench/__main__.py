"""All parts, one after the other: `python -m bench`, or some of them: `python -m bench engine scheduler`.

The GPU part has a command of its own, `python -m bench.gpu`, because it needs one.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = {
    "engine": ["-m", "bench.engine"],
    "scheduler": ["-m", "rekontext.cli", "bench", "scheduler", "--engine"],
    "lora": ["-m", "bench.lora"],
    "crowded": ["-m", "bench.crowded"],
    "service": ["-m", "bench.service"],
    "fleet": ["-m", "bench.fleet"],
}


def main() -> int:
    """Run the parts that were named, or all. Returns 1 if one of them failed, 2 for a name that isn't there."""
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        print(f"no such part: {', '.join(unknown)}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    failed = []
    for part in wanted:
        print(f"\n## {part}\n", flush=True)
        # A process of its own for each: peak memory and thread pools must not leak from one part into the next.
        if subprocess.run([sys.executable, *PARTS[part]], check=False).returncode:
            failed.append(part)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
