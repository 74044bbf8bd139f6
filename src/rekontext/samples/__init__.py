"""Two freely licensed photos to try edits on; README.md beside this file names their authors."""

from importlib import resources
from pathlib import Path


def sample_photos() -> list[Path]:
    """The files, sorted by name."""
    folder = Path(str(resources.files("rekontext.samples")))
    return sorted(folder.glob("*.jpg"))
