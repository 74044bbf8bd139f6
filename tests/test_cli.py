"""The command line as a person meets it: its answers, its exit codes, its one-line errors."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Final
from unittest.mock import Mock

import httpx2
import pytest
import torch
from PIL import Image

from rekontext.api.documents import MINI_NOTICE
from rekontext.api.edits import SLUG
from rekontext.cli.doctor import Verdict, _gpu_kernels, examine
from rekontext.database import DatabaseUnavailable
from rekontext.settings import Settings
from tests.commands import Outcome, forget_settings, outcome_of
from tests.pictures.samples import photo_bytes
from tests.triton import need_triton

SCRIPT: Final = [sys.executable, "-c", "from rekontext.cli import main; main()"]
SOON_S: Final = 180.0
"""Within this a process says or does what it is to: where others compute, torch alone takes a minute to import."""


Run = Callable[[Sequence[str]], Outcome]


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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real pipeline on disk, tiny and with random weights."""
    from tests.small_model import Shape, build

    folder = tmp_path_factory.mktemp("model")
    build(folder, Shape())
    return str(folder)


def test_help_and_version(run: Run) -> None:
    """Both answer on standard output and succeed."""
    helped = run(["--help"])
    assert (helped.code, helped.err) == (0, "")
    assert all(command in helped.out for command in ("edit", "serve", "backup", "restore", "doctor", "accounts"))
    assert run(["--version"]).out.startswith("rekontext ")
    assert "--aspect-ratio" in run(["edit", "--help"]).out
    assert SLUG in run(["keys", "create", "--help"]).out


def test_help_imports_nothing_heavy() -> None:
    """Half a second is all that it may take, so neither torch nor the service is loaded for it."""
    check = (
        "import sys\n"
        "from rekontext.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'pydantic', 'aiohttp', 'uvicorn'} & set(sys.modules)\n"
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


@pytest.mark.parametrize(("name", "expected"), [("a.png", "PNG"), ("b.JPG", "JPEG"), ("c.webp", "WEBP")])
def test_edit_writes_the_picture(run: Run, model: str, name: str, expected: str) -> None:
    """The format follows the name, and the line on standard output says what was made."""
    outcome = run(["edit", "photo.jpg", "make it night", "-o", name, "--model", model, "--steps", "4", "--seed", "7"])
    assert outcome.code == 0, outcome.err
    with Image.open(name) as written:
        assert written.format == expected
        assert f"{name}  {written.width}x{written.height}  seed 7" in outcome.out
    assert sorted(each.name for each in Path.cwd().iterdir()) == sorted([name, "photo.jpg"])


def test_what_is_printed_keeps_its_brackets(run: Run) -> None:
    """They are no markup: neither in the model's full name nor in what people call their accounts."""
    outcome = run(["edit", "photo.jpg", "make it night", "-o", "a.png", "--model", "mini", "--steps", "4"])
    assert " ".join(outcome.err.split()).endswith(MINI_NOTICE)
    run(["accounts", "create", "team [dev]"])
    assert "team [dev]" in run(["accounts", "list"]).out


def test_edit_is_repeatable_by_its_seed(run: Run, model: str) -> None:
    """A drawn seed is told, and giving it back makes the same file; --output-format beats the name."""
    options = ["--model", model, "--steps", "4", "--aspect-ratio", "1:1", "--output-format", "png"]
    first = run(["edit", "photo.jpg", "blur it", "-o", "one.jpg", *options])
    seed = first.out.split("seed ")[1].split()[0]
    run(["edit", "photo.jpg", "blur it", "-o", "two.jpg", *options, "--seed", seed])
    assert Path("one.jpg").read_bytes() == Path("two.jpg").read_bytes()
    with Image.open("one.jpg") as written:
        assert (written.format, written.width) == ("PNG", written.height)


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


def test_a_failed_edit_leaves_the_old_file(run: Run) -> None:
    """OUT is replaced whole or not at all."""
    Path("a.png").write_bytes(b"precious")
    assert run(["edit", "photo.jpg", "x", "-o", "a.png", "--model", "./nowhere"]).code == 2
    assert Path("a.png").read_bytes() == b"precious"


def test_doctor_names_what_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 and the reason, with what to do."""
    outcome = run(["doctor", "--model", "/nowhere/model"])
    assert outcome.code == 1
    assert "error: broken: model" in outcome.err
    assert "/nowhere/model is not there" in outcome.out
    assert "./nowhere is not there" in run(["doctor", "--model", "./nowhere"]).out
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", "mysql://nowhere/x")
    assert "database" in [each.subject for each in examine(None) if each.verdict == "broken"]
    monkeypatch.setenv("REKONTEXT_PORT", "x")
    assert [each.subject for each in examine(None) if each.verdict == "broken"] == ["settings"]


def test_doctor_asks_for_no_engine_where_none_is_wanted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a machine has neither a device nor the model."""
    monkeypatch.setenv("REKONTEXT_DEVICE", "none")
    monkeypatch.setattr("rekontext.cli.doctor._available_memory_bytes", lambda: 2**29)
    found = {each.subject: each for each in [*examine("mini"), *examine("/nowhere/model")]}
    assert "memory" not in {each.subject for each in examine("mini") if each.verdict == "broken"}
    assert "processes with devices" in found["device"].says
    assert "engine" not in found
    assert [each.subject for each in found.values() if each.verdict == "broken"] == []


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """A server that says the same to every POST; its port."""

    class Says(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _findings(verdict: str, *, books: bool = False) -> dict[str, str]:
    return {each.subject: each.says for each in examine("/nowhere/model", books=books) if each.verdict == verdict}


def test_doctor_looks_where_serve_would(run: Run) -> None:
    """The data folder is a flag of both."""
    run(["accounts", "create", "alice", "--data-dir", "kept"])
    said = run(["doctor", "--model", "/nowhere/model", "--data-dir", "kept"]).out
    assert f"{Path.cwd()}/kept/rekontext.db" in "".join(said.split())


def test_doctor_opens_the_database(run: Run) -> None:
    """A file that is there may still be damaged."""
    assert "to be made" in _findings("ok")["database"]
    run(["accounts", "create", "alice"])
    assert "rekontext.db" in _findings("ok")["database"]
    Path("data/rekontext.db").write_bytes(b"not a database at all" * 1000)
    assert "is damaged" in _findings("broken")["database"]


def test_doctor_adds_up_the_books_when_asked_to(run: Run) -> None:
    """It says what it read; what is wrong, with the account and both amounts; and of much that is wrong some."""
    assert "\nbooks" not in run(["doctor", "--model", "/nowhere/model"]).out
    assert _findings("ok", books=True)["books"] == "none yet"
    for name in ("alice", "bob"):
        run(["accounts", "create", name, "--credits", "5"])
    assert "2 transfers of 2 accounts: each adds up to 0" in _findings("ok", books=True)["books"]
    with closing(sqlite3.connect("data/rekontext.db")) as database, database:
        database.execute(
            "UPDATE balances SET paid_micros = paid_micros + 7, held_paid_micros = 3, held_free_micros = 2"
        )
    said = _findings("broken", books=True)["books"]
    assert re.search(r"account acc_\w+ shows \d+ in paid, its entries say \d+", said)
    assert "; and 3 more; " in said
    broken = run(["doctor", "--books", "--model", "/nowhere/model"])
    assert (broken.code, "books" in broken.err) == (1, True)
    Path("data/rekontext.db").write_bytes(b"not a database at all" * 1000)
    assert "not read: " in _findings("broken", books=True)["books"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_books_may_take_as_long_as_they_are(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of PostgreSQL for callers is cut off after 30 s, which an old ledger takes longer than."""
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", database_url)
    monkeypatch.setattr(
        "rekontext.accounts.integrity.faults", lambda tx: [tx.exec_driver_sql("SHOW statement_timeout").scalar_one()]
    )
    [finding] = [each for each in examine("/nowhere/model", books=True) if each.subject == "books"]
    assert "in micro-dollars: 0;" in finding.says


def test_a_database_beside_another_secret_is_not_served(run: Run) -> None:
    """Every key would be refused. The line says where the secret is looked for, and no new one is made."""
    assert "to be made" in _findings("ok")["secret"]
    run(["accounts", "create", "alice"])
    assert "data/secret fits" in _findings("ok")["secret"]
    old = Path("data/secret").read_bytes()

    def refused(says: str) -> None:
        serve = [*SCRIPT, "serve", "--port", "0"]
        served = subprocess.run(serve, check=False, capture_output=True, text=True, timeout=SOON_S)
        assert (served.returncode, served.stdout, served.stderr.count("\n")) == (2, "", 1)
        assert says in served.stderr
        assert "`rekontext keys reset`" in served.stderr
        for arguments in (["keys", "create", "alice"], ["accounts", "create", "bob"]):
            outcome = run(arguments)
            assert (outcome.code, outcome.out) == (2, "")
            assert says in outcome.err
        assert says in _findings("broken")["secret"]

    Path("data/secret").unlink()
    refused("data/secret is not there")
    assert not Path("data/secret").exists()
    Path("data/secret").write_bytes(b"another secret, as long as the old one")
    refused("another secret than data/secret")
    assert "alice" in run(["accounts", "list"]).out
    Path("data/secret").write_bytes(old)
    assert run(["keys", "create", "alice"]).code == 0


def test_the_secret_of_requests_own_webhooks_is_shown_and_replaced(run: Run) -> None:
    """For a receiver that is set up by an operator."""
    run(["accounts", "create", "alice"])
    shown = run(["accounts", "webhook-secret", "alice"]).out.strip()
    assert shown.startswith("whsec_")
    replaced = json.loads(run(["accounts", "webhook-secret", "alice", "--replace", "--json"]).out)["webhook_secret"]
    assert replaced == run(["accounts", "webhook-secret", "alice"]).out.strip() != shown


def test_where_the_secret_is_lost_all_keys_are_closed_and_new_ones_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is said that this is meant; never while the secret fits."""
    run(["accounts", "create", "alice"])
    assert "nothing to reset" in run(["keys", "reset", "--yes"]).err
    monkeypatch.setenv("REKONTEXT_SECRET", "a secret that is long enough to be one")
    assert "another secret than REKONTEXT_SECRET" in run(["keys", "create", "alice"]).err
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    asked = run(["keys", "reset"])
    assert (asked.code, asked.out.strip()) == (130, "")
    assert f"every API key in {Path.cwd()}/data/rekontext.db" in asked.err
    assert "another secret" in run(["keys", "create", "alice"]).err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "Revoked: 1." in run(["keys", "reset"]).out
    assert run(["keys", "create", "alice"]).code == 0
    assert "REKONTEXT_SECRET fits" in _findings("ok")["secret"]
    monkeypatch.delenv("REKONTEXT_SECRET")
    Path("data/secret").unlink()
    assert json.loads(run(["keys", "reset", "--yes", "--json"]).out) == {"revoked": 1}
    assert "data/secret fits" in _findings("ok")["secret"]


def test_doctor_tries_the_store_and_the_rate_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its store no edit ends well; without its Redis all do, so that is only noted."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("REKONTEXT_STORE_URL", f"file://{Path.cwd()}/objects")
    assert "written, read and removed" in _findings("ok")["store"]
    assert [each for each in Path("objects").rglob("*") if each.is_file()] == []
    monkeypatch.setenv("REKONTEXT_STORE_URL", f"file://{Path.cwd()}/photo.jpg")
    monkeypatch.setenv("REKONTEXT_RATE_LIMITS_URL", f"redis://{nobody}/0")
    assert "see REKONTEXT_STORE_URL" in _findings("broken")["store"]
    assert "counts by itself" in _findings("note")["rate limits"]
    monkeypatch.setenv("REKONTEXT_RATE_LIMITS_URL", "mongodb://x")
    assert "set REKONTEXT_RATE_LIMITS_URL" in _findings("broken")["rate limits"]


@pytest.mark.parametrize(
    ("answer", "verdict", "says"),
    [
        ('{"allowed": true}', "ok", "it answers"),
        ('{"allowed": false}', "note", "lets no gray picture out"),
        ("what?", "broken", "no edit would be done"),
    ],
)
def test_doctor_asks_the_safety_check(
    monkeypatch: pytest.MonkeyPatch, answer: str, verdict: Verdict, says: str
) -> None:
    """Without it no edit ends well. Whatever it is, its address may hold a password, and isn't shown."""
    with answering(answer.encode()) as port:
        monkeypatch.setenv("REKONTEXT_SAFETY_URL", f"http://user:hush@127.0.0.1:{port}/check")
        assert says in _findings(verdict)["safety check"]
    monkeypatch.setenv("REKONTEXT_SAFETY_URL", "ftp://hush")
    refused = _findings("broken")["settings"]
    assert "REKONTEXT_SAFETY_URL is wrong" in refused
    assert "hush" not in refused


def test_doctor_tries_the_store_in_the_data_folder_too() -> None:
    """It may be another disk than the folder's, or another user's. One that isn't there is left to the first start."""
    assert "(to be made)" in _findings("ok")["store"]
    assert not Path("data").exists()
    Path("data/store").mkdir(parents=True)
    assert "written, read and removed" in _findings("ok")["store"]
    assert list(Path("data/store").iterdir()) == []
    Path("data/store/doctor").write_bytes(b"in the way")
    assert f"{Path.cwd()}/data/store: the store could not write" in _findings("broken")["store"]


def test_serve_may_be_started_again_where_a_disk_is_not_there_yet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a boot a mount may come later; exit code 1, by which a supervisor tries again."""
    monkeypatch.setenv("REKONTEXT_STORE_URL", "file:///proc/mount/store")
    outcome = run(["serve", "--port", "0"])
    assert (outcome.code, "can't be opened" in outcome.err) == (1, True)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REKONTEXT_DATABASE_URL", "mysql://a:geheim@b/c", "REKONTEXT_DATABASE_URL can't be used: database url names"),
        ("REKONTEXT_DATABASE_URL", "geheim", "REKONTEXT_DATABASE_URL can't be used: database url can't be read"),
        ("REKONTEXT_DATABASE_URL", "postgresql://a:geheim", "REKONTEXT_DATABASE_URL can't be used: database url can't"),
        ("REKONTEXT_STORE_URL", "file://no/folder", "must name an absolute folder"),
        ("REKONTEXT_RATE_LIMITS_URL", "mongodb://a:geheim@b", "REKONTEXT_RATE_LIMITS_URL can't be used: rate limit"),
        ("REKONTEXT_DATA_DIR", "photo.jpg", "the secret can't be kept in photo.jpg/secret"),
    ],
)
def test_serve_stops_at_a_setting_that_can_t_be_used(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    """One line that names it, without the password in it, and no account whose key nobody gets to see.

    With exit code 2, by which a supervisor knows that no new start mends it.
    """
    monkeypatch.setenv(name, value)
    outcome = run(["serve", "--port", "0"])
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert says in outcome.err
    assert "geheim" not in outcome.err
    assert not Path("data/rekontext.db").exists()


def test_serve_may_be_started_again_where_the_database_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1: the next start may find it."""
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", "postgresql://a:geheim@127.0.0.1:1/c")
    outcome = run(["serve", "--port", "0"])
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "(REKONTEXT_DATABASE_URL)" in outcome.err
    assert "geheim" not in outcome.err


def test_a_damaged_database_stops_every_command_with_one_line(run: Run) -> None:
    """It names the file, and what to do."""
    run(["accounts", "create", "alice"])
    Path("data/rekontext.db").write_bytes(b"not a database at all" * 1000)
    for arguments in (["serve", "--port", "0"], ["accounts", "list"]):
        outcome = run(arguments)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert "is damaged" in outcome.err
        assert str(Path("data/rekontext.db").absolute()) in outcome.err


def test_doctor_says_why_a_gpus_steps_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels are compiled where they run; that needs what a bare machine may not have."""
    need_triton()
    device = torch.device("cpu")
    assert _gpu_kernels(device).verdict == "ok"
    fault = RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
    monkeypatch.setattr("rekontext.engine.kernels.activated", Mock(side_effect=fault))
    finding = _gpu_kernels(device)
    assert finding.verdict == "note"
    assert "gcc" in finding.says


def test_doctor_is_content_with_a_model_that_is_there(run: Run, model: str) -> None:
    """Every subject of the check is listed, and nothing is broken."""
    outcome = run(["doctor", "--model", model])
    assert outcome.code == 0, outcome.err
    assert all(
        f"\n{subject} " in outcome.out
        for subject in ("python", "engine", "device", "model", "database", "store", "rate limits", "memory", "disk")
    )


@contextmanager
def _serving(model: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    command = [*SCRIPT, "serve", "--model", model, "--port", "0", "--data-dir", "kept"]
    environment = {**os.environ, "NO_COLOR": "1", **settings}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = Timer(SOON_S, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def _read_until(process: subprocess.Popen[str], word: str) -> str:
    """What the process has said up to the line with `word`. Ends at the latest when the process does."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if word in line:
            return said
    pytest.fail(f"{word!r} was never said:\n{said}")


def _edited_by(client: httpx2.Client) -> httpx2.Response:
    return client.post(
        "/v1/flux-kontext-dev",
        data={"prompt": "make it night", "num_inference_steps": "4"},
        files={"input_image": Path("photo.jpg").read_bytes()},
    )


def test_serve_from_first_start_to_ctrl_c(model: str) -> None:
    """The printed key and curl line work; Ctrl-C ends it with 0.

    With `idle_s` it holds no model meanwhile: the engine's process ends, and comes again for the next edit.
    """
    with _serving(model, REKONTEXT_IDLE_S="1") as served:
        said = _read_until(served, "edited.png")
        key = said.split("shown this once: ")[1].split()[0]
        assert "shown this once" in said.replace(key, "")
        url = said.split("Rekontext on ")[1].split(": playground")[0]
        assert key.encode() not in b"".join(path.read_bytes() for path in Path("kept").iterdir() if path.is_file())
        assert "device_asleep" in said or _read_until(served, "device_asleep")
        with httpx2.Client(base_url=url, headers={"x-api-key": key}, timeout=SOON_S) as client:
            assert client.get("/readyz").status_code == 200
            assert 'rekontext_devices{state="asleep"} 1.0' in client.get("/metrics").text
            answer = _edited_by(client)
            pages = [client.get(path).status_code for path in ("/", "/console", "/docs")]
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert (answer.headers["x-cost"], answer.headers["x-remaining-credits"]) == ("0.04", "9.96")
        assert pages == [200, 200, 200]
        served.send_signal(signal.SIGINT)
        assert served.wait(timeout=SOON_S) == 0


def test_serve_without_a_device_lets_another_process_run_its_edits(model: str) -> None:
    """In front of machines that come and go. It needs to know nothing of the model."""
    with _serving("no/such-model", REKONTEXT_DEVICE="none") as front:
        said = _read_until(front, "No device here")
        key = said.split("shown this once: ")[1].split()[0]
        url = said.split("Rekontext on ")[1].split(": playground")[0]
        with _serving(model) as behind:
            assert "in other processes" in _read_until(front, "edited.png")
            with httpx2.Client(base_url=url, headers={"x-api-key": key}, timeout=60) as client:
                answer = _edited_by(client)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            behind.send_signal(signal.SIGINT)
            assert behind.wait(timeout=SOON_S) == 0
        front.send_signal(signal.SIGINT)
        assert front.wait(timeout=SOON_S) == 0


def _code_when_told_to_end(script: str, *, after: str, by: signal.Signals = signal.SIGTERM) -> int:
    """How a program ends that gets a signal once it has said a word."""
    environment = {**os.environ, "REKONTEXT_DEVICE": "cpu"}  # the engine that the script replaces is in its process
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = Timer(SOON_S, process.kill)
        watchdog.start()
        try:
            _read_until(process, after)
            process.send_signal(by)
            return process.wait()
        finally:
            watchdog.cancel()
            process.kill()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_serve_ends_with_0_when_it_is_told_to(by: signal.Signals) -> None:
    """SIGTERM is how process managers say so, and SIGHUP how a terminal does that goes away.

    The model that is ready by then takes no time here.
    """
    script = (
        "from concurrent.futures import Future\n"
        "from types import SimpleNamespace\n"
        "from rekontext.cli import main\n"
        "from rekontext.contract import ModelCard\n"
        "from rekontext.fleet import LocalFleet\n"
        "card = ModelCard(name='mini', canvas_area=1, parameters=1, device='cpu', dtype='float32', is_mini=True, "
        "knows=())\n"
        "engine = SimpleNamespace(card=card, broken=Future(), close=lambda: None)\n"
        "LocalFleet._open = lambda self: engine\n"
        "LocalFleet.profile = lambda self: {}\n"
        "main(['serve', '--port', '0'])\n"
    )
    assert _code_when_told_to_end(script, after="edited.png", by=by) == 0


def _greeting(*options: str) -> str:
    """What a server says before it loads its model, which here takes for ever; then it is killed."""
    script = (
        "import sys, threading\n"
        "from rekontext.cli import main\n"
        "from rekontext.fleet import LocalFleet\n"
        "LocalFleet._open = lambda self: threading.Event().wait()\n"
        "main(['serve', '--port', '0', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", script, *options]
    environment = {**os.environ, "NO_COLOR": "1", "REKONTEXT_DEVICE": "cpu"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = Timer(SOON_S, process.kill)
        watchdog.start()
        try:
            return _read_until(process, "Loading")
        finally:
            watchdog.cancel()
            process.kill()


def test_the_greeting_names_an_account_that_there_is(run: Run) -> None:
    """And how to make the admin key that an account opened before the first start doesn't have."""
    run(["accounts", "create", "team one"])
    said = _greeting()
    assert "For another API key: rekontext keys create 'team one'" in said
    assert "There is no admin key: add --scope admin --scope edit --scope read" in said
    made = run(["keys", "create", "team one", "--scope", "admin", "--scope", "edit", "--scope", "read", "--json"])
    assert json.loads(made.out)["scopes"] == ["admin", "edit", "read"]
    assert "admin" not in _greeting()
    run(["keys", "revoke", json.loads(made.out)["id"]])
    assert "There is no admin key" in _greeting()


def test_serve_need_not_wait_for_a_model_that_is_being_loaded() -> None:
    """Which takes minutes for a large one; here it takes for ever."""
    script = (
        "import threading\n"
        "from rekontext.cli import main\n"
        "from rekontext.fleet import LocalFleet\n"
        "LocalFleet._open = lambda self: threading.Event().wait()\n"
        "main(['serve', '--port', '0'])\n"
    )
    assert _code_when_told_to_end(script, after="startup complete") == 0


def test_what_may_have_happened_is_not_said_to_have_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credits that are added once more are booked twice: look first."""
    run(["accounts", "create", "alice"])

    def broken(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("the database failed: gone", is_in_doubt=in_doubt)

    monkeypatch.setattr("rekontext.accounts.Acts.add_credits", broken)
    for in_doubt in (True, False):
        outcome = run(["credits", "add", "alice", "10"])
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert ("may have happened: look" in outcome.err) is in_doubt


def test_operators_open_accounts_make_keys_and_give_credits(run: Run) -> None:
    """Each answer is one JSON document, and the first has the key of the new account."""
    opened = json.loads(run(["accounts", "create", "alice", "--credits", "10", "--json"]).out)
    assert opened["api_key"].startswith("rk_")
    assert (opened["name"], opened["credits"]) == ("alice", 10)
    made = json.loads(run(["keys", "create", "alice", "--scope", "read", "--sync-response", "json", "--json"]).out)
    assert (made["scopes"], made["sync_response"], made["account_id"]) == (["read"], "json", opened["id"])
    listed = json.loads(run(["keys", "list", opened["id"], "--json"]).out)["keys"]
    assert [each["id"] for each in listed] == [opened["key_id"], made["id"]]
    assert not any("api_key" in each for each in listed)
    assert json.loads(run(["keys", "revoke", made["id"], "--json"]).out)["revoked_at"] is not None
    assert json.loads(run(["credits", "add", "alice", "2.5", "--kind", "payment", "--json"]).out)["credits"] == 2.5
    assert "or a correction of less" in run(["credits", "add", "alice", "-0.5"]).err
    run(["credits", "add", "alice", "-0.5", "--kind", "correction"])
    assert json.loads(run(["credits", "show", "alice", "--json"]).out)["available"] == 12
    [account] = json.loads(run(["accounts", "list", "--json"]).out)["accounts"]
    assert (account["id"], account["available"]) == (opened["id"], 12)
    assert opened["id"] in run(["accounts", "list"]).out
    assert "$12.00 can be spent" in run(["credits", "show", "alice"]).out
    run(["credits", "add", "alice", "1000"])
    assert "$12.00 can be spent" in run(["credits", "add", "alice", "-1000", "--kind", "correction"]).out
    too_much = run(["credits", "add", "alice", "-13", "--kind", "correction"])
    assert (too_much.code, too_much.err.count("\n")) == (2, 1)
    assert "A correction can't take $13.00 away: $12.00 can be spent." in too_much.err


def test_a_key_is_revoked_by_its_id_or_by_itself(run: Run) -> None:
    """Whoever found one where it doesn't belong has nothing else of it; without an account all keys are listed."""
    alice, bob = (json.loads(run(["accounts", "create", name, "--json"]).out) for name in ("alice", "bob"))
    run(["keys", "revoke", alice["api_key"]])
    run(["keys", "revoke", bob["key_id"]])
    run(["keys", "create", "bob"])
    listed = json.loads(run(["keys", "list", "--json"]).out)["keys"]
    assert [(each["account_id"], each["revoked_at"] is None) for each in listed] == [
        (alice["id"], False),
        (bob["id"], False),
        (bob["id"], True),
    ]
    lines = run(["keys", "list"]).out.splitlines()
    assert [line for line in lines if line.startswith(("alice", "bob"))] == [
        f"alice ({alice['id']})",
        f"bob ({bob['id']})",
    ]
    strange = run(["keys", "revoke", alice["api_key"][:-1]])
    assert (strange.code, strange.err) == (2, "error: there is no such API key; it may be mistyped or cut short\n")


def test_python_runs_the_package_as_the_command(run: Run) -> None:
    """Where no script was installed."""
    done = subprocess.run(
        [sys.executable, "-m", "rekontext", "--version"], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, run(["--version"]).out)


def test_keys_and_accounts_are_listed_for_narrow_windows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a pipe there are 80 columns: whatever is copied or looked for stands whole on a line."""
    monkeypatch.setenv("COLUMNS", "80")
    first = json.loads(run(["accounts", "create", "alice", "--json"]).out)
    options = ["--scope", "read", "--scope", "edit", "--scope", "admin", "--requests-per-minute", "600"]
    made = json.loads(run(["keys", "create", "alice", "--expires-in-days", "30", *options, "--json"]).out)
    run(["keys", "revoke", first["key_id"]])
    revoked_at = json.loads(run(["keys", "list", "alice", "--json"]).out)["keys"][0]["revoked_at"]
    lines = run(["keys", "list", "alice"]).out.splitlines()
    assert lines[0] == f"{first['key_id']}  revoked {revoked_at}"
    assert lines[1:3] == [f"  {first['api_key'][: len(made['hint'])]}…  edit, read; answers image", "  default"]
    assert lines[3] == f"{made['id']}  open until {made['expires_at']}"
    assert lines[4] == f"  {made['hint']}…  admin, edit, read; 600 requests a minute; answers image"
    listed = run(["accounts", "list"]).out.splitlines()
    assert listed[0].startswith(f"{first['id']}  opened ")
    assert listed[1:] == ["  $0.00 can be spent", "  alice"]
    assert max(map(len, [*lines, *listed])) <= 80


def test_a_key_s_name_can_t_speak_to_the_terminal(run: Run) -> None:
    """Whoever holds a key names those that it makes; operators list them."""
    run(["accounts", "create", "alice"])
    run(["keys", "create", "alice", "--name", "\x1b]0;owned\x1b\\"])
    listed = run(["keys", "list", "alice"]).out
    assert r"\x1b]0;owned" in listed
    assert "\x1b" not in listed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["credits", "show", "nobody"], "there is no account 'nobody'"),
        (["keys", "revoke", "key_0"], "there is no API key 'key_0'"),
        (["accounts", "create", "alice", "--credits", "ten"], "'ten' is not an amount"),
        (["accounts", "create", "  "], "1 to 200 characters"),
        (["keys", "create", "alice", "--sync-response", "xml"], "--sync-response"),
        (["credits", "add", "bob", "1e999999"], "'1e999999' is beyond the largest amount"),
        (["keys", "create", "bob", "--name", "x" * 201], "1 to 200 characters, this one has 201"),
        (["keys", "create", "bob", "--requests-per-minute", "3000000000"], "allowed: 1 to 1000000"),
        (
            ["keys", "create", "bob", "--expires-in-days", "1e12"],
            "less than or equal to 36500",
        ),
        (["keys", "create", "bob", "--expires-in-days", "nan"], "'--expires-in-days'"),
        (["keys", "create", "bob", "--expires-in-days", "0"], "--expires-in-days is 0: the key would never open"),
        (["keys", "create", "bob", "--expires-in-days", "1e-12"], "--expires-in-days is 1e-12"),
        (
            ["keys", "create", "bob", "--model", "mini"],
            f'--model is "mini": the key would open no edit; allowed: {SLUG}',
        ),
        (["keys", "create", "bob", "--model", SLUG, "--model", ""], '--model is "": the key'),
    ],
)
def test_an_operator_s_mistake_is_one_line_and_exit_code_2(run: Run, arguments: Sequence[str], says: str) -> None:
    """And the line says what is wrong."""
    run(["accounts", "create", "bob"])
    outcome = run(arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert says in outcome.err


def test_a_command_in_the_wrong_folder_makes_no_database_there(run: Run) -> None:
    """It says where it looked; only opening an account, and serving, begin anew."""
    for arguments in (["accounts", "list"], ["credits", "show", "alice"], ["keys", "create", "alice"]):
        outcome = run(arguments)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert f"there is no database {Path.cwd()}/data/rekontext.db" in outcome.err
    assert not Path("data").exists()


def test_servers_on_free_ports_have_names_of_their_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two under one name on one database, the second would take the first one's jobs for its own of yesterday."""
    ports: list[int] = []

    def refuse(settings: Settings, **_: object) -> None:
        ports.append(settings.port)
        raise ValueError("enough")

    monkeypatch.setattr("rekontext.cli.serve.assemble", refuse)
    assert "enough" in run(["serve", "--port", "0"]).err
    assert ports[0] > 0


def test_serve_ends_when_the_model_can_t_be_loaded(tmp_path: Path) -> None:
    """One line with the reason and exit code 1, not a server that is never ready."""
    Path("empty").mkdir()
    command = [*SCRIPT, "serve", "--model", "./empty", "--port", "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SOON_S)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the model ./empty can't be loaded")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["./nowhere", "/nope", "nowhere.safetensors", "~/no/where", "~nobody-here/x", "a/b/c"])
def test_a_model_that_is_not_there_stops_serve_before_a_key_is_made(run: Run, name: str) -> None:
    """The key is shown once, by a start that ends well."""
    outcome = run(["serve", "--model", name, "--port", "0"])
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"the model {name} can't be loaded: there is no such folder or file" in outcome.err
    assert not Path("data").exists()


def test_serve_says_when_the_port_is_taken(run: Run) -> None:
    """And makes no key that nobody would get to see."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run(["serve", "--port", str(port)])
    assert outcome.code == 1
    assert f"can't listen on 127.0.0.1 port {port} (Address already in use); try another --port" in outcome.err
    assert not Path("data").exists()
