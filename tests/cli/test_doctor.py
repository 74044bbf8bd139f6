"""`rekontext doctor` names what is broken, and changes nothing."""

from __future__ import annotations

import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import pytest
import torch

from rekontext.cli.doctor import Verdict, examine
from rekontext.cli.doctor.engine import _gpu_kernels
from rekontext.cli.doctor.machine import free_of_limit
from tests.cli.commands import Run, findings
from tests.triton import need_triton


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
    monkeypatch.setattr("rekontext.cli.doctor.machine._available_memory_bytes", lambda: 2**29)
    found = {each.subject: each for each in [*examine("mini"), *examine("/nowhere/model")]}
    assert "memory" not in {each.subject for each in examine("mini") if each.verdict == "broken"}
    assert "processes with devices" in found["device"].says
    assert "engine" not in found
    assert [each.subject for each in found.values() if each.verdict == "broken"] == []


@pytest.mark.parametrize(("limit", "free"), [("1000", 500), ("400", 0), ("max", None)])
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, limit: str, free: int | None) -> None:
    """Not what the machine has; and files read a while ago take nothing from anybody."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("800\n")
    (tmp_path / "memory.stat").write_text("anon 400\nactive_file 100\ninactive_file 300\n")
    assert free_of_limit(tmp_path) == free


def test_the_less_of_machine_and_container_counts(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A limit below what mini needs is said; none, or one above what is free at all, changes nothing."""
    assert free_of_limit(tmp_path) is None
    monkeypatch.setattr("rekontext.cli.doctor.machine._free_of_machine", lambda: 2**33)
    for limit, verdict in ((2**29, "broken"), (2**40, "ok")):
        monkeypatch.setattr("rekontext.cli.doctor.machine.free_of_limit", lambda _group, limit=limit: limit)
        found = next(each for each in examine("mini") if each.subject == "memory")
        assert found.verdict == verdict
        assert f"{min(limit, 2**33) / 2**30:.1f} GiB free" in found.says


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


def test_doctor_looks_where_serve_would(run: Run) -> None:
    """The data folder is a flag of both."""
    run(["accounts", "create", "alice", "--data-dir", "kept"])
    said = run(["doctor", "--model", "/nowhere/model", "--data-dir", "kept"]).out
    assert f"{Path.cwd()}/kept/rekontext.db" in "".join(said.split())


def test_doctor_opens_the_database(run: Run) -> None:
    """A file that is there may still be damaged."""
    assert "to be made" in findings("ok")["database"]
    run(["accounts", "create", "alice"])
    assert "rekontext.db" in findings("ok")["database"]
    Path("data/rekontext.db").write_bytes(b"not a database at all" * 1000)
    assert "is damaged" in findings("broken")["database"]


def test_doctor_adds_up_the_books_when_asked_to(run: Run) -> None:
    """It says what it read; what is wrong, with the account and both amounts; and of much that is wrong some."""
    assert "\nbooks" not in run(["doctor", "--model", "/nowhere/model"]).out
    assert findings("ok", books=True)["books"] == "none yet"
    for name in ("alice", "bob"):
        run(["accounts", "create", name, "--credits", "5"])
    assert "2 transfers of 2 accounts: each adds up to 0" in findings("ok", books=True)["books"]
    with closing(sqlite3.connect("data/rekontext.db")) as database, database:
        database.execute(
            "UPDATE balances SET paid_micros = paid_micros + 7, held_paid_micros = 3, held_free_micros = 2"
        )
    said = findings("broken", books=True)["books"]
    assert re.search(r"account acc_\w+ shows \d+ in paid, its entries say \d+", said)
    assert "; and 3 more; " in said
    broken = run(["doctor", "--books", "--model", "/nowhere/model"])
    assert (broken.code, "books" in broken.err) == (1, True)
    Path("data/rekontext.db").write_bytes(b"not a database at all" * 1000)
    assert "not read: " in findings("broken", books=True)["books"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_books_may_take_as_long_as_they_are(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of PostgreSQL for callers is cut off after 30 s, which an old ledger takes longer than."""
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", database_url)
    monkeypatch.setattr(
        "rekontext.accounts.integrity.faults", lambda tx: [tx.exec_driver_sql("SHOW statement_timeout").scalar_one()]
    )
    [finding] = [each for each in examine("/nowhere/model", books=True) if each.subject == "books"]
    assert "in micro-dollars: 0;" in finding.says


def test_doctor_tries_the_store_and_the_rate_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its store no edit ends well; without its Redis all do, so that is only noted."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("REKONTEXT_STORE_URL", f"file://{Path.cwd()}/objects")
    assert "written, read and removed" in findings("ok")["store"]
    assert [each for each in Path("objects").rglob("*") if each.is_file()] == []
    monkeypatch.setenv("REKONTEXT_STORE_URL", f"file://{Path.cwd()}/photo.jpg")
    monkeypatch.setenv("REKONTEXT_RATE_LIMITS_URL", f"redis://{nobody}/0")
    assert "see REKONTEXT_STORE_URL" in findings("broken")["store"]
    assert "counts by itself" in findings("note")["rate limits"]
    monkeypatch.setenv("REKONTEXT_RATE_LIMITS_URL", "mongodb://x")
    assert "set REKONTEXT_RATE_LIMITS_URL" in findings("broken")["rate limits"]


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
        assert says in findings(verdict)["safety check"]
    monkeypatch.setenv("REKONTEXT_SAFETY_URL", "ftp://hush")
    refused = findings("broken")["settings"]
    assert "REKONTEXT_SAFETY_URL is wrong" in refused
    assert "hush" not in refused


def test_doctor_tries_the_store_in_the_data_folder_too() -> None:
    """It may be another disk than the folder's, or another user's. One that isn't there is left to the first start."""
    assert "(to be made)" in findings("ok")["store"]
    assert not Path("data").exists()
    Path("data/store").mkdir(parents=True)
    assert "written, read and removed" in findings("ok")["store"]
    assert list(Path("data/store").iterdir()) == []
    Path("data/store/doctor").write_bytes(b"in the way")
    assert f"{Path.cwd()}/data/store: the store could not write" in findings("broken")["store"]


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
