"""The one secret of an installation, and what is derived from it.

Whoever has it can forge links, and with a copy of the database test guesses at keys; so it is kept apart from the
database, in a file that only its owner reads, or is passed in. Knows nothing of what the derived secrets are for.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
from contextlib import suppress
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
        if not path.exists():
            with suppress(FileExistsError):  # then another process was quicker
                _write_new(path, randomness(_BYTES).hex())
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise SecretError(f"the secret can't be kept in {path}: {fault}") from fault
    if not secret:
        raise SecretError(
            f"{path} is empty: put the secret back; or, if it is lost, remove the file and close all keys with "
            "`rekontext keys reset`"
        )
    return secret.encode()


def _write_new(path: Path, secret: str) -> None:
    """Have the file appear whole: who finds an empty one is told to close all keys.

    Raises:
        FileExistsError: it is there.
    """
    handle, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # for its owner only
    try:
        _fill(handle, secret)
        try:
            os.link(made, path)
        except FileExistsError:
            raise
        except OSError:
            # A file system without hard links: there another process may read this before it is filled.
            _fill(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), secret)
    finally:
        Path(made).unlink()
    with suppress(OSError):  # not every file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _fill(handle: int, secret: str) -> None:
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())


def derive(secret: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose, from which neither the secret nor another purpose's bytes can be found."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()
