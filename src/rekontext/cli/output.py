"""Pictures that commands write: what can be wrong with their place is told before the work, not after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rekontext.cli.failure import CommandFailed
from rekontext.pictures import OutputFormat

_FORMAT_OF_SUFFIX: Final[Mapping[str, OutputFormat]] = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}


def format_of(out: Path, *, otherwise: str = "") -> OutputFormat:
    """The format that a file's name asks for.

    Args:
        otherwise: what else can be done than rename it.

    Raises:
        CommandFailed: it asks for none.
    """
    try:
        return _FORMAT_OF_SUFFIX[out.suffix.lower()]
    except KeyError:
        known = ", ".join(_FORMAT_OF_SUFFIX)
        raise CommandFailed(f'"{out.name}" ends in none of {known}: rename it{otherwise}') from None


def format_asked(out: Path, flag: object) -> object:
    """The format of `--output-format`, which the file's name mustn't contradict, or without it the name's.

    Raises:
        CommandFailed: the two differ, or neither asks for any.
    """
    if not flag:
        return format_of(out, otherwise=" or give --output-format")
    named = _FORMAT_OF_SUFFIX.get(out.suffix.lower(), flag)
    if named != flag and flag in _FORMAT_OF_SUFFIX.values():
        raise CommandFailed(
            f'"{out.name}" asks for {named} and --output-format for {flag}: rename it or leave --output-format out'
        )
    return flag


def check_writable(out: Path) -> None:
    """Before minutes of work, not after.

    Raises:
        CommandFailed: nothing can be written there.
    """
    if out.is_dir():
        raise CommandFailed(f"{out} is a folder; give the name of a file in it")
    if not out.absolute().parent.is_dir():
        raise CommandFailed(f"the folder {out.absolute().parent} is not there; make it first")
    if not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
        raise CommandFailed(f"{out} can't be written; choose another place")


def write(files: Mapping[Path, bytes]) -> None:
    """Files of one folder, each whole or not at all; none takes its place before all of them have found room.

    Raises:
        CommandFailed: one can't be written. If that is for want of room, what was there is as it was.
    """
    out, *_ = files
    try:
        with tempfile.TemporaryDirectory(
            dir=out.absolute().parent, prefix=".rekontext-", ignore_cleanup_errors=True
        ) as folder:
            for out, data in files.items():
                (Path(folder) / out.name).write_bytes(data)
            for out in files:
                (Path(folder) / out.name).replace(out)
    except OSError as fault:
        raise CommandFailed(f"{out} can't be written: {fault.strerror}", exit_code=1) from fault
