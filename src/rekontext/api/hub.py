"""Where LoRAs lie on the Hugging Face hub that are named as it names them: owner/name, or a file in it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final
from urllib.parse import quote

import orjson

from rekontext.models import is_hub_id, is_lora_on_hub
from rekontext.pictures import Fetcher, shown_address

HUB: Final = "https://huggingface.co"
_ITS_NAME: Final = "huggingface.co/"
"""Before a repository, as some clients write it."""
_LISTING_BYTES_MAX: Final = 2**20
_SHOWN_CHARACTERS: Final = 64
_USUAL: Final = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of any LoRA."""


class NotOnHub(ValueError):
    """No one file is meant. The message says what is."""


class Hub:
    """One hub. It is asked without a key: what its operator may see isn't every caller's.

    Args:
        fetcher: for callers.
        url: where it is.
    """

    def __init__(self, fetcher: Fetcher, *, url: str = HUB) -> None:
        self._fetcher = fetcher
        self._url = url.rstrip("/")

    def place(self, given: str) -> str:
        """Where a repository, or a file in one, lies.

        Raises:
            NotOnHub: it can't be the name of any.
        """
        bare = given.removeprefix(_ITS_NAME)
        if not is_lora_on_hub(bare):
            raise NotOnHub(
                f"{shown_address(given)} is neither the http(s) URL of a .safetensors file, nor owner/name or "
                "owner/name/FILE.safetensors of one on the hub, nor a name"
            )
        owner, name, *file = bare.split("/", 2)
        repository = f"{self._url}/{owner}/{name}"
        return f"{repository}/resolve/main/{quote(file[0])}" if file else repository

    async def address(self, place: str, *, caller: Hashable) -> str:
        """Of a file: of a repository's one LoRA, and of anything else it is the place itself.

        Raises:
            NotOnHub: a repository has none, or several.
            PictureUnreachable: the hub doesn't say which it has.
        """
        repository = place.removeprefix(f"{self._url}/")
        if repository == place or not is_hub_id(repository):
            return place
        listing = await self._fetcher.fetch(
            f"{self._url}/api/models/{repository}", bytes_max=_LISTING_BYTES_MAX, caller=caller
        )
        try:
            told: Any = orjson.loads(listing)
            files = [name for each in told["siblings"] if _is_lora(name := each["rfilename"])]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as fault:
            raise NotOnHub(f"the hub doesn't tell which files {repository} has") from fault
        if _USUAL in files:
            files = [_USUAL]
        if len(files) != 1:
            shown = ", ".join(name[:_SHOWN_CHARACTERS] for name in sorted(files)[:5]) or "none"
            raise NotOnHub(
                f"{repository} has {len(files)} .safetensors files ({shown}); name the one, as "
                f"{repository}/FILE.safetensors"
            )
        return f"{place}/resolve/main/{quote(files[0])}"


def _is_lora(file: Any) -> bool:
    """Whether a file may be one: below may lie whole models. Raises AttributeError for what is no name."""
    return bool(file.endswith(".safetensors")) and "/" not in file
