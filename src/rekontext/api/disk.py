"""Can the folders that everything is kept in be written? Reads alone don't tell: they go on when a disk is full."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final

TRIAL_BYTES: Final = 4 * 2**20
"""What is written on trial, into a file without a name that is gone at once. An edit's pictures are about as much."""

KEPT_S: Final = 5.0
LOOK_S_MAX: Final = 2.0
_TRIAL: Final = bytes(TRIAL_BYTES)


class DiskCheck:
    """Tries it, at most one trial at a time, whose outcome counts for `KEPT_S`.

    Args:
        folders: none where all is kept elsewhere; then there is always room.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._trial: asyncio.Task[bool] | None = None
        self._known: tuple[float, bool] | None = None

    async def has_room(self) -> bool:
        """Whether there is room. A disk that doesn't answer for `LOOK_S_MAX` has none."""
        if not self._folders:
            return True
        if self._known is not None and monotonic() - self._known[0] < KEPT_S:
            return self._known[1]
        if self._trial is None:
            self._trial = asyncio.create_task(self._try())
        try:
            async with asyncio.timeout(LOOK_S_MAX):
                return await asyncio.shield(self._trial)
        except TimeoutError:
            return False

    async def _try(self) -> bool:
        try:
            has_room = await asyncio.to_thread(_all_take, self._folders)
            self._known = monotonic(), has_room
            return has_room
        finally:
            self._trial = None


def _all_take(folders: Sequence[Path]) -> bool:
    try:
        for folder in folders:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(_TRIAL)
                file.flush()
    except OSError:
        return False
    return True
