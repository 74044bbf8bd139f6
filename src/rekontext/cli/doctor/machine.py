"""Is there room: the host's memory, or what a container may have of it, and the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from rekontext.cli.doctor.finding import Finding
from rekontext.models import MINI
from rekontext.settings import Settings

_GIB: Final = 2**30
_MINI_NEEDS_BYTES: Final = 3 * _GIB // 2
_DISK_NEEDED_BYTES: Final = _GIB
_CONTROL_GROUP: Final = Path("/sys/fs/cgroup")
"""Our own in a container. Elsewhere it is the machine's, which has no limit."""


def look_at_memory(settings: Settings) -> Finding:
    free = _available_memory_bytes()
    if free is None:
        return Finding(subject="memory", verdict="note", says="this system does not tell how much is free")
    if settings.has_device and settings.model == MINI and free < _MINI_NEEDS_BYTES:
        needed = _MINI_NEEDS_BYTES / _GIB
        return Finding(
            subject="memory",
            verdict="broken",
            says=f"{free / _GIB:.1f} GiB free, mini needs {needed:.1f} GiB; close something",
        )
    return Finding(subject="memory", verdict="ok", says=f"{free / _GIB:.1f} GiB free")


def _available_memory_bytes() -> int | None:
    known = [free for free in (_free_of_machine(), free_of_limit(_CONTROL_GROUP)) if free is not None]
    return min(known, default=None)


def free_of_limit(group: Path) -> int | None:
    """What a control group (version 2) may still take, in bytes; None without a limit.

    Copies of files that nobody used lately are given back before anybody is killed: they count as free.
    """
    try:
        limit, taken, stat = (
            (group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
    except OSError:
        return None
    if limit.strip() == "max":
        return None
    idle_files = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return max(0, int(limit) - int(taken) + idle_files)


def _free_of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def look_at_disk(settings: Settings) -> Finding:
    place = data_dir = settings.data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Finding(
            subject="disk",
            verdict="broken",
            says=f"{place} can't be written; run this as the service's user, or set REKONTEXT_DATA_DIR",
        )
    if free < _DISK_NEEDED_BYTES:
        return Finding(
            subject="disk",
            verdict="broken",
            says=f"{free / _GIB:.1f} GiB free for {data_dir}; make room or set REKONTEXT_DATA_DIR",
        )
    return Finding(subject="disk", verdict="ok", says=f"{free / _GIB:.1f} GiB free for {data_dir}")
