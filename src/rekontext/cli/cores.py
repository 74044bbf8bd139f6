"""How many cores this process may use, and having what computes on them keep to that. Imports nothing that computes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SPINS: Final = "1000"
"""What GNU's OpenMP takes itself where it has more threads than cores: some 0.05 ms, about as long as waking a thread
takes, so that an edit which has the cores for itself takes no longer."""


def share_cores() -> None:
    """Tell OpenMP, before PyTorch is imported, how many threads to have and how they are to wait for each other.

    Left alone it has a thread for each core of the machine, also where a container may use two of sixty-four. And it
    asks for milliseconds whether the others are done before a thread sleeps: where other programs want the cores too,
    that time is taken from the very threads it waits for, and an edit takes many times its share of them.

    What is set already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    cores = usable()
    if cores < _there():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def usable(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may run on, or whose time it may have: by `docker run --cpus`, a limit on Kubernetes, or
    systemd's CPUQuota. Of a part of one, the whole."""
    return min([_there(), *(max(1, math.ceil(quota)) for quota in _quotas(cgroups, own))])


def _there() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Of this process's control group and of all above it, those that have a limit, in cores. What can't be read is
    passed over: a command runs all the same."""
    try:
        lines = os.fsdecode(own.read_bytes()).splitlines()  # a group may be named as a folder may
    except OSError:
        return
    for line in lines:
        controllers, colon, path = line.partition(":")[2].partition(":")
        if not colon or (controllers and "cpu" not in controllers.split(",")):
            continue
        # In a container the path may be the host's, of which only the top is to be seen: it is the container's own.
        root = cgroups / "cpu" if controllers else cgroups
        within = Path(path.lstrip("/"))
        for group in {root, *(root / each for each in (within, *within.parents))}:
            yield from _quota_of(group, is_v1=bool(controllers))


def _quota_of(group: Path, *, is_v1: bool) -> Iterator[float]:
    try:
        if is_v1:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        else:
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        if quota.strip() not in {"max", "-1"}:
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # the topmost group has no such file
        return
