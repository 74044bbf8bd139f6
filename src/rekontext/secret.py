"""The one secret of an installation, and what is derived from it.

Whoever has it can forge links, and with a copy of the database test guesses at keys; so it is kept apart from the
database, in a file that only its owner reads, or is passed in. Knows nothing of what the derived secrets are for.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Final

from rekontext.sources import Randomness

FILE_NAME: Final = "secret"
_BYTES: Final = 32


class SecretError(ValueError):
    """The secret can't be read or kept. The message says what to do."""


def open_secret(data_dir: Path, *, randomness: Randomness) -> bytes:
    """Read the secret in `data_dir`, or make both if they are not there.

    Raises:
        SecretError: the file is empty or can't be read, or the folder can't be made.
    """
    path = data_dir / FILE_NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            # Exclusive creation: of two processes that start together, one makes the secret and the other reads it.
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            secret = path.read_text(encoding="ascii").strip()
            if not secret:
                raise SecretError(
                    f"{path} is empty: put the secret back; or, if it is lost, remove the file and close all keys with "
                    "`rekontext keys reset`"
                ) from None
            return secret.encode()
        secret = randomness(_BYTES).hex()
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        return secret.encode()
    except (OSError, UnicodeDecodeError) as fault:
        raise SecretError(f"the secret can't be kept in {path}: {fault}") from fault


def derive(secret: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose, from which neither the secret nor another purpose's bytes can be found."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()
