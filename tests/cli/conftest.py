"""What every test of a command starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.commands import Outcome, Run, forget_settings, outcome_of
from tests.pictures.samples import photo_bytes


@pytest.fixture(autouse=True)
def clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder with one photo in it, and no settings."""
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    # It is for the whole process, which here is the tests' own: later ones would log into a closed stream.
    monkeypatch.setattr("rekontext.cli.serve.configure", lambda **_: None)
    Path("photo.jpg").write_bytes(photo_bytes(60, 40))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(arguments: Sequence[str]) -> Outcome:
        return outcome_of(arguments, capsys)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real pipeline on disk, tiny and with random weights."""
    from tests.small_model import Shape, build

    folder = tmp_path_factory.mktemp("model")
    build(folder, Shape())
    return str(folder)
