"""A command as whoever types it meets it: its exit code, what it says and what it complains of."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from rekontext.cli import main
from rekontext.cli.doctor import examine
from rekontext.settings import PREFIX

SCRIPT: Final = [sys.executable, "-c", "from rekontext.cli import main; main()"]
SOON_S: Final = 180.0
"""Within this a process says or does what it is to: where others compute, torch alone takes a minute to import."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[[Sequence[str]], Outcome]


def outcome_of(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> Outcome:
    """Run a command in this process, which is as it was after it."""
    mask, environment = os.umask(0o022), dict(os.environ)
    os.umask(mask)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Outcome(code=ended.value.code, out=out, err=err)


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shell has set that runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def findings(verdict: str, *, books: bool = False) -> dict[str, str]:
    """What `rekontext doctor` says of each subject that it finds so."""
    return {each.subject: each.says for each in examine("/nowhere/model", books=books) if each.verdict == verdict}
