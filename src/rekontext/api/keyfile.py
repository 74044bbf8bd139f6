"""The one key of an installation without accounts: made at the first start and kept in a file only its owner reads."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rekontext.api.auth import Caller, InvalidKey

FILE_NAME: Final = "api-key"
_RANDOM_BYTES: Final = 24


class KeyFileError(ValueError):
    """The key file is there and can't be used. The message says what to do."""


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """A key that was read or made.

    Attributes:
        is_new: True at the first start, when the key must be shown once.
    """

    key: str
    path: Path
    is_new: bool


def open_key_file(data_dir: Path) -> KeyFile:
    """Read the key in `data_dir`, or make both if they are not there.

    Raises:
        KeyFileError: the file is empty or can't be read, or the folder can't be made.
    """
    path = data_dir / FILE_NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            # Exclusive creation: of two processes that start together, one makes the key and the other reads it.
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = path.read_text(encoding="ascii").strip()
            if not key:
                raise KeyFileError(f"{path} holds no key; remove the file to have a new one made") from None
            return KeyFile(key=key, path=path, is_new=False)
        key = f"rk_{secrets.token_hex(_RANDOM_BYTES)}"
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(key + "\n")
        return KeyFile(key=key, path=path, is_new=True)
    except (OSError, UnicodeDecodeError) as fault:
        raise KeyFileError(f"the API key can't be kept in {path}: {fault}") from fault


class SingleKey:
    """`Keys` with one key and one caller."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    async def authenticate(self, key: str) -> Caller:
        if not hmac.compare_digest(key.encode(), self._key):
            raise InvalidKey
        return Caller(name="owner")
