"""What a figure about shared cores is measured under."""

from __future__ import annotations

import os

import pytest

from bench.crowded import waiting
from rekontext.cli import cores


def test_how_the_command_waits_is_not_how_the_next_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a container may use fewer cores than there are, which the command tells OpenMP, too."""
    monkeypatch.setattr(cores, "_there", lambda: 64)
    monkeypatch.setattr(cores, "usable", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    before = dict(os.environ)
    with waiting(is_shared=True):
        assert (os.environ["GOMP_SPINCOUNT"], os.environ["OMP_NUM_THREADS"]) == (cores.SPINS, "2")
    assert dict(os.environ) == before
    with waiting(is_shared=False):
        assert not {"GOMP_SPINCOUNT", "OMP_NUM_THREADS"} & os.environ.keys()
    assert dict(os.environ) == before
