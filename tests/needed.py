"""What some tests need of the machine. Without it they are skipped; in CI, where everything is there, they fail."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(what: str, remedy: str) -> NoReturn:
    """End the test, or as a module is imported all of its tests: `what` is not there, and `remedy` brings it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and in CI its tests may not be skipped: {remedy}")
    pytest.skip(f"{what} is missing ({remedy})", allow_module_level=True)


def program(name: str, package: str) -> str:
    """Where a program is that Debian has in `package`."""
    path = shutil.which(name)
    if path is None:
        missing(name, f"apt-get install {package}")
    return path
