"""How many cores a process may use, as control groups say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekontext.cli import cores
from rekontext.cli.cores import share_cores, usable

HERE = 64


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_there", lambda: HERE)


def groups(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        ("0::/", {"cpu.max": "800000 100000"}, 8),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, HERE),
        ("0::/", {"cpu.max": "9900000 100000"}, HERE),
        ("0::/a.slice/b.service", {"a.slice/b.service/cpu.max": "max 100000", "a.slice/cpu.max": "300000 100000"}, 3),
        ("0::/a.slice/b.service", {"a.slice/b.service/cpu.max": "200000 100000", "a.slice/cpu.max": "max 100000"}, 2),
        ("0::/../../kubepods/pod7", {"cpu.max": "400000 100000"}, 4),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/7\n0::/",
            {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, HERE),
        ("2:cpuset:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, HERE),
        ("0::/", {}, HERE),
    ],
    ids=lambda value: str(value).replace("\n", " "),
)
def test_the_narrowest_limit_counts(tmp_path: Path, own: str, files: dict[str, str], found: int) -> None:
    """Of both versions of control groups, seen from within a container and from outside; part of a core is a core."""
    (tmp_path / "own").write_text(own + "\n")
    assert usable(groups(tmp_path / "cgroup", files), tmp_path / "own") == found


@pytest.mark.parametrize(
    ("own", "limit", "found"),
    [
        (b"", "200000 100000", HERE),
        (b"nothing\n\n1:half\n0::/\n", "200000 100000", 2),
        (b"0::/\n", "", HERE),
        (b"0::/\n", "200000", HERE),
        (b"0::/\n", "two 100000", HERE),
        (b"0::/\n", "200000 0", HERE),
        (b"0::/\n", "1e999 100000", HERE),
        ("0::/gr\u00fcn/\u732b:1\n".encode(), "200000 100000", 2),
        (b"0::/\xff\n", "200000 100000", 2),
    ],
)
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, own: bytes, limit: str, found: int) -> None:
    """And stops no command: what can be read beside it still counts, also for a group with a name in other letters."""
    (tmp_path / "own").write_bytes(own)
    assert usable(groups(tmp_path / "cgroup", {"cpu.max": limit}), tmp_path / "own") == found


def test_where_there_are_no_control_groups_every_core_counts(tmp_path: Path) -> None:
    """As on another system."""
    assert usable(tmp_path, tmp_path / "own") == HERE


@pytest.mark.parametrize(("found", "given", "threads"), [(8, None, "8"), (HERE, None, None), (8, "3", "3")])
def test_threads_are_no_more_than_cores(
    monkeypatch: pytest.MonkeyPatch, found: int, given: str | None, threads: str | None
) -> None:
    """Unless somebody said how many, or there is nothing to say."""
    with monkeypatch.context() as changed:
        changed.setattr(cores, "usable", lambda: found)
        environment = {} if given is None else {"OMP_NUM_THREADS": given}
        changed.setattr("os.environ", environment)
        share_cores()
        assert environment.get("OMP_NUM_THREADS") == threads
