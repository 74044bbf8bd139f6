"""A command as whoever types it meets it: its exit code, what it says and what it complains of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from rekontext.cli import main
from rekontext.settings import PREFIX


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str


def outcome_of(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> Outcome:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Outcome(code=ended.value.code, out=out, err=err)


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shell has set that runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
