"""How models are named, and the one that ships inside the package. Opens none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

MINI: Final = "mini"
_HUB_ID: Final = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w(?:[\w.-]*\w)?/\w(?:[\w.-]{0,94}\w)?")


def mini_folder() -> Path:
    """Where the embedded model lies, in diffusers' layout."""
    return Path(__file__).parent / MINI


def local_path(model: str) -> Path:
    """Where a model lies if its name is a path; nothing need be there."""
    return Path(os.path.expanduser(model))  # noqa: PTH111 - Path's own raises for a "~name" whose home isn't known


def is_hub_id(model: str) -> bool:
    """Whether a name is owner/name, by the hub's rules (`huggingface_hub.utils.validate_repo_id`).

    Told without that library, which a service alone doesn't have.
    """
    return _HUB_ID.fullmatch(model) is not None
