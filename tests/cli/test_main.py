"""The command line as a person meets it: its help, its exit codes, its one-line errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

from rekontext.api.documents import MINI_NOTICE
from rekontext.models import SLUG
from tests.cli.commands import SOON_S, Run


def test_help_and_version(run: Run) -> None:
    """Both answer on standard output and succeed."""
    helped = run(["--help"])
    assert (helped.code, helped.err) == (0, "")
    assert all(command in helped.out for command in ("edit", "serve", "backup", "restore", "doctor", "accounts"))
    assert run(["--version"]).out.startswith("rekontext ")
    assert "--aspect-ratio" in run(["edit", "--help"]).out
    assert SLUG in run(["keys", "create", "--help"]).out


@pytest.mark.parametrize(
    ("arguments", "besides"),
    [(["--help"], ["pydantic", "sqlalchemy"]), (["accounts", "create", "alice"], []), (["keys", "list"], [])],
    ids=lambda value: " ".join(value),
)
def test_a_command_that_needs_nothing_heavy_imports_nothing_heavy(
    arguments: list[str], besides: list[str], run: Run
) -> None:
    """Help may take half a second, operators' commands a second: neither torch nor the service is loaded for them."""
    run(["accounts", "create", "bob"])
    heavy = {"torch", "numpy", "fastapi", "starlette", "uvicorn", "aiohttp", "PIL", *besides}
    check = (
        "import sys\n"
        "from rekontext.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as ended: assert not ended.code\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], check=False, capture_output=True, text=True, timeout=SOON_S)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["edit"], "Missing argument 'IN'"),
        (["edit", "photo.jpg", "x"], "--out"),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--nonsense"], "--nonsense"),
        (["sreve"], "Did you mean 'serve'"),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--seed", "x"], "--seed"),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--steps", "3"], "--steps is 3 (allowed: an integer from 4 to 50)"),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--guidance", "11"], "--guidance is 11.0 (allowed: a number from 0"),
        (["edit", "photo.jpg", "", "-o", "a.png"], 'PROMPT is ""'),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--aspect-ratio", "7:5"], "match_input_image, 1:1"),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--output-format", "bmp"], "one of webp, jpg, png"),
        (
            ["edit", "photo.jpg", "x", "-o", "a.JPG", "--output-format", "png"],
            '"a.JPG" asks for jpg and --output-format',
        ),
        (["edit", "photo.jpg", "x", "-o", "a.bmp"], "ends in none of .png, .jpg, .jpeg, .webp"),
        (["edit", "photo.jpg", "x", "-o", "nowhere/a.png"], "is not there; make it first"),
        (["edit", "photo.jpg", "x", "-o", "."], "give the name of a file in it"),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--guidance", "nan"], '--guidance is "nan"'),
        (["serve", "--model", "nowhere"], "the model nowhere can't be loaded"),
        (["edit", "none.jpg", "x", "-o", "a.png"], "there is no file none.jpg"),
        (["edit", ".", "x", "-o", "a.png"], "can't be read"),
        (["edit", "text.jpg", "x", "-o", "a.png"], "text.jpg: the bytes are no jpeg, png, gif or webp picture"),
        (["edit", "http://127.0.0.1:1/a.png", "x", "-o", "a.png"], "can't be fetched"),
        (["edit", "photo.jpg", "x", "-o", "a.png", "--model", "nowhere/at/all"], "nowhere/at/all"),
        (["gallery", "a.png", "--photo", "none.jpg"], "there is no file none.jpg"),
        (["gallery", "a.bmp"], "ends in none of .png, .jpg, .jpeg, .webp: rename it"),
        (["gallery", "nowhere/a.png"], "is not there; make it first"),
        (["gallery", "a.png", "--photo", "text.jpg"], "text.jpg: the bytes are no jpeg, png, gif or webp picture"),
        (["gallery", "a.png", "--photo", "photo.jpg", "--model", "nowhere/at/all"], "nowhere/at/all"),
        (["serve", "--port", "99999"], "--port is 99999, which is wrong"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, arguments: Sequence[str], says: str) -> None:
    """The line says what is wrong; nothing is written."""
    Path("text.jpg").write_text("no picture")
    before = sorted(Path.cwd().iterdir())
    outcome = run(arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert says in outcome.err
    assert sorted(Path.cwd().iterdir()) == before


def test_what_is_printed_keeps_its_brackets(run: Run) -> None:
    """They are no markup: neither in the model's full name nor in what people call their accounts."""
    outcome = run(["edit", "photo.jpg", "make it night", "-o", "a.png", "--model", "mini", "--steps", "4"])
    assert " ".join(outcome.err.split()).endswith(MINI_NOTICE)
    run(["accounts", "create", "team [dev]"])
    assert "team [dev]" in run(["accounts", "list"]).out


@pytest.mark.parametrize(
    "arguments",
    [["edit", "photo.jpg", "x", "-o", "a.png"], ["gallery", "a.png"], ["bench", "scheduler", "--engine"]],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (ModuleNotFoundError("No module named 'torch'"), "pip install 'rekontext[engine]'"),
        (
            RuntimeError("CUDA out of memory.\nTried to allocate"),
            "the engine failed: RuntimeError: CUDA out of memory.",
        ),
    ],
    ids=["not installed", "out of memory"],
)
def test_an_engine_that_fails_is_told_in_one_line_and_exit_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], fault: Exception, says: str
) -> None:
    """Whichever command uses it."""
    for opens in ("engine.Engine.open", "rehearsal.open_placed"):
        monkeypatch.setattr(f"rekontext.engine.{opens}", Mock(side_effect=fault))
    monkeypatch.setattr("rekontext.engine.replay.judge", lambda *_: None)
    outcome = run(arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert says in outcome.err
    assert [line for line in outcome.err.splitlines() if line.strip()] == [
        f"error: {outcome.err.partition('error: ')[2].strip()}"
    ]


def test_a_damaged_database_stops_every_command_with_one_line(run: Run) -> None:
    """It names the file, and what to do."""
    run(["accounts", "create", "alice"])
    Path("data/rekontext.db").write_bytes(b"not a database at all" * 1000)
    for arguments in (["serve", "--port", "0"], ["accounts", "list"]):
        outcome = run(arguments)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert "is damaged" in outcome.err
        assert str(Path("data/rekontext.db").absolute()) in outcome.err


def test_python_runs_the_package_as_the_command(run: Run) -> None:
    """Where no script was installed."""
    done = subprocess.run(
        [sys.executable, "-m", "rekontext", "--version"], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, run(["--version"]).out)


@pytest.mark.parametrize(
    ("given", "has"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=lambda value: ", ".join(value) or "nothing",
)
def test_a_command_that_computes_shares_the_cores(given: dict[str, str], has: dict[str, str]) -> None:
    """It tells OpenMP before PyTorch is imported, which reads it once; what somebody set stays."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    check = (
        "import os, sys\n"
        "from rekontext.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        f"print({{name: os.environ[name] for name in {names} if name in os.environ}})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True, timeout=SOON_S, env=environment
    )
    assert done.stdout.splitlines()[-1] == str(has)
