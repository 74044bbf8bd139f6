"""Where Triton is, for tests of our kernels. PyTorch for GPUs brings it; without one `make install` puts it apart."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Final

from tests.needed import missing

APART: Final = str(Path(sys.prefix) / "triton")


def need_triton() -> None:
    """Have it found from here on, or skip; in CI it must be there."""
    if APART not in sys.path:
        sys.path.append(APART)
    if importlib.util.find_spec("triton") is None:
        missing("Triton", "make install; it is made for Linux on x86-64")
