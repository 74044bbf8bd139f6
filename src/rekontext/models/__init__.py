"""How models and LoRAs are named, and the model that ships inside the package. Opens none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

SLUG: Final = "flux-kontext-dev"
"""Under which edits are ordered, whatever model of the family makes them."""

MINI: Final = "mini"
STRENGTH: Final = re.compile(r"[+-]?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})", re.ASCII)
LORA_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
"""Of one that is on offer: neither commas nor colons, which stand between names and before strengths."""
BROUGHT_LORA: Final = re.compile(rf"{LORA_NAME.pattern}@([0-9a-f]{{16}})", re.ASCII)
"""Of one that an account brought: what it is called there, and the id that we gave it."""
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


def is_lora_on_hub(name: str) -> bool:
    """Whether it may be a hub id, or one and a file of it: owner/name or owner/name/FILE.safetensors."""
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    is_path = repository.endswith(".safetensors")  # misspelt, since it isn't there
    return is_hub_id(f"{owner}/{repository}") and not is_path and (not file or file.endswith(".safetensors"))


def lora_and_strength(entry: str) -> tuple[str, float]:
    """Which LoRA, and by how much: "watercolour.safetensors:0.8"; 1 where nothing is said.

    Raises:
        ValueError: it names none, or its strength isn't a finite number other than 0.
    """
    name, colon, strength = entry.rpartition(":")
    if not colon:
        name, strength = entry, "1"
    by = float(strength) if STRENGTH.fullmatch(strength) else 0.0
    if not name.strip() or by == 0:
        raise ValueError(
            f'"{entry}" is no LoRA; allowed is FILE or FILE:STRENGTH, such as watercolour.safetensors:0.8, with the '
            "strength where FILE has a colon in it"
        )
    return name, by


def offered_loras(folder: Path | None) -> dict[str, Path]:
    """The LoRAs that edits may ask for, by name: the .safetensors files of a folder as they are now.

    Files whose names aren't `LORA_NAME` are left out; all are, where the folder can't be read.
    """
    if folder is None:
        return {}
    try:
        files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    except OSError:
        return {}
    return {file.stem: file for file in files if LORA_NAME.fullmatch(file.stem)}
