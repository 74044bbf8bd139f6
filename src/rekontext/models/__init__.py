"""Models that ship inside the package."""

from __future__ import annotations

from pathlib import Path


def mini_path() -> Path:
    """The folder of the embedded model, in diffusers layout."""
    return Path(__file__).parent / "mini"
