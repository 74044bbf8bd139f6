"""docs/structure.md is true of the files that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SOURCE: Final = ROOT / "src" / "rekontext"
LISTED: Final = ("", "api", "engine", "fleet", "jobs")
"""Rooms whose files are named one by one; the others are small enough for a line."""


def test_the_page_names_the_files_that_there_are() -> None:
    """None is missing in the rooms that it lists, and none that it names is gone."""
    tree = (ROOT / "docs" / "structure.md").read_text().split("```")[1]
    named = set(re.findall(r"\w+\.py\b", tree))
    there = {path.name for room in LISTED for path in (SOURCE / room).glob("*.py") if path.stem.strip("_") == path.stem}
    assert named == there
