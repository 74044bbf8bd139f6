"""The commands of whoever runs the service, on files that aren't theirs, are damaged, or have no room left."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from rekontext.accounts import audit, ledger, statement
from rekontext.cli.doctor import Finding, examine
from rekontext.database import JobId, transactions
from rekontext.installation import open_database
from rekontext.pictures.store import PictureStore, StoreUnavailable
from rekontext.settings import load_settings
from tests.cli.commands import Outcome, forget_settings, outcome_of

NOBODY: Final = 65_534


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that every user may enter, no settings, and no device that would have torch imported."""
    forget_settings(monkeypatch)
    monkeypatch.setenv("REKONTEXT_DEVICE", "none")
    monkeypatch.setenv("COLUMNS", "500")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.chdir(folder)
        yield Path(folder)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Outcome:
        return outcome_of(arguments, capsys)

    return run


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be one also where the tests run as root, whom no permission stops; what lies here is that one's."""
    if os.getuid() != 0:
        yield
        return
    for path in Path().rglob("*"):
        os.chown(path, NOBODY, -1)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextmanager
def locked(path: Path, mode: int) -> Iterator[None]:
    """Give a file or folder another mode for a while."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def findings() -> dict[str, Finding]:
    return {each.subject: each for each in examine("/nowhere/model")}


def broken() -> dict[str, str]:
    return {subject: each.says for subject, each in findings().items() if each.verdict == "broken"}


def test_doctor_tells_what_it_may_not_look_at(run: Run, place: Path) -> None:
    """Another user's folder is a finding like others, told with them and with who should ask."""
    run("accounts", "create", "alice")
    with locked(place / "data", 0), ordinary_user():
        outcome = run("doctor", "--books")
        said = broken()
    assert outcome.code == 1
    assert "all REKONTEXT_* variables are understood" in outcome.out
    assert "error: broken: database, books, secret, store, disk; " in outcome.err
    assert said["database"] == (
        f"{place}/data/rekontext.db can't be reached: Permission denied; run this as the service's user"
    )
    assert "run this as the service's user" in said["disk"]


@pytest.mark.parametrize(
    "arguments", [["backup", "copy.db"], ["restore", "data/copy.db"], ["accounts", "list"], ["accounts", "create", "b"]]
)
def test_a_command_of_another_user_is_one_line(run: Run, place: Path, arguments: list[str]) -> None:
    """With who should run it; it isn't what was typed that is wrong, so the exit code isn't 2."""
    run("accounts", "create", "alice")
    with locked(place / "data", 0), ordinary_user():
        outcome = run(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "data/" in outcome.err
    assert "can't be reached: Permission denied; run this as the service's user" in outcome.err


@pytest.mark.parametrize(("name", "mode"), [("rekontext.db", 0o444), (".", 0o555)])
def test_doctor_tries_whether_the_database_can_be_written(run: Run, place: Path, name: str, mode: int) -> None:
    """Reading goes well where `serve` would be refused."""
    run("accounts", "create", "alice")
    assert findings()["database"].verdict == "ok"
    with locked(place / "data" / name, mode), ordinary_user():
        says = findings()["database"].says
    assert says.startswith(f"{place / 'data' / name} can't be written; run this as the service's user")


def test_what_commands_keep_is_for_their_user_alone(run: Run, place: Path) -> None:
    """Also in a folder that is open to everybody, which stays so: its owner may have reasons."""
    Path("data").mkdir(mode=0o755)
    run("accounts", "create", "alice")
    run("backup", "copy.db")
    kept = [*Path("data").iterdir(), Path("copy.db")]
    assert {path.name for path in kept} >= {"rekontext.db", "secret", "copy.db"}
    assert [path for path in kept if path.stat().st_mode & 0o077] == []
    assert stat.S_IMODE(Path("data").stat().st_mode) == 0o755
    assert {findings()[subject].verdict for subject in ("database", "secret")} == {"ok"}


@pytest.mark.parametrize(("mode", "who"), [(0o644, "every user of this machine"), (0o640, "its group")])
def test_doctor_notes_who_else_can_read_the_books_and_the_secret(run: Run, place: Path, mode: int, who: str) -> None:
    """Earlier starts may have left them so. Where the folder keeps everybody out, no mode within it matters."""
    run("accounts", "create", "alice")
    for name in ("rekontext.db", "secret"):
        Path("data", name).chmod(mode)
    assert {findings()[subject].verdict for subject in ("database", "secret")} == {"ok"}
    Path("data").chmod(0o755)
    assert findings()["database"] == Finding(
        subject="database",
        verdict="note",
        says=f"SQLite, {place}/data/rekontext.db; {who} can read it: chmod go= {place}/data/rekontext.db*",
    )
    assert findings()["secret"].says == f"data/secret fits the database; {who} can read it: chmod go= data/secret"
    assert run("doctor").code == 0


def test_a_database_that_a_url_names_is_made_by_the_first_start_alone(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by whoever looks: a slip in the URL would leave an empty one there."""
    Path("books").mkdir()
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", f"sqlite:///{place}/books/r.db")
    assert run("doctor", "--books").code == 0
    assert findings()["database"].says == f"SQLite, {place}/books/r.db (to be made)"
    for arguments in (["accounts", "list"], ["keys", "create", "alice"]):
        outcome = run(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"no database {place}/books/r.db; REKONTEXT_DATABASE_URL says where it is" in outcome.err
    with locked(place / "books", 0o555), ordinary_user():
        assert broken()["database"].startswith(f"{place}/books can't be written")
    assert list(place.rglob("*")) == [place / "books"]
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", f"sqlite:///{place}/bokos/r.db")
    assert broken()["database"].startswith(f"there is no folder {place}/bokos; make it")
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", f"sqlite:///{place}/books/r.db")
    assert run("accounts", "create", "alice").code == 0
    assert findings()["database"].verdict == "ok"


def test_a_full_disk_is_told_as_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as if somebody had taken a permission away."""
    (place / "data" / "store").mkdir(parents=True)

    async def put(*_: object, **__: object) -> None:
        raise StoreUnavailable("the store could not write 'doctor/tried': No space left on device (os error 28)")

    monkeypatch.setattr(PictureStore, "put", put)
    assert broken()["store"].endswith("(os error 28); make room there")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["acme", "--credits", "-5"], "-$5.00 can't be added as a grant"),
        ([" "], "an account's name is ' '; allowed: 1 to 200 characters"),
        (["x" * 201], "an account's name has 201 characters; allowed: 1 to 200"),
    ],
)
def test_a_refused_account_leaves_no_database_behind(run: Run, place: Path, arguments: list[str], says: str) -> None:
    """Nor a secret: the folder may be the wrong one."""
    outcome = run("accounts", "create", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err
    assert list(place.iterdir()) == []


def test_the_audit_log_names_the_user_of_the_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever called sudo, which has the service's user act for all of them; else as whom the command ran."""
    monkeypatch.delenv("SUDO_USER", raising=False)
    run("accounts", "create", "alice")
    monkeypatch.setenv("SUDO_USER", "anna")
    run("keys", "create", "alice")
    monkeypatch.setenv("SUDO_USER", "\x1b" + "x" * 300)
    run("credits", "add", "alice", "1")
    database = open_database(load_settings())
    try:
        by = {each.action: each.actor for each in reversed(database.read_sync(audit.records))}
    finally:
        database.close()
    assert by["account.create"] == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    assert by["key.create"] == "cli:anna"
    assert by["credits.grant"] == "cli:\\x1b" + "x" * 192


def test_the_books_of_a_month_are_a_bill(run: Run) -> None:
    """As one document or as lines, with sums."""
    account = json.loads(run("accounts", "create", "alice", "--credits", "10", "--json").out)["id"]
    run("credits", "add", "alice", "5", "--kind", "payment", "--note", "invoice \x1b17")
    now = datetime.now(UTC)
    database = open_database(load_settings())
    try:
        database.transact_sync(lambda tx: ledger.hold(tx, account, 40_000, job=JobId("job-1"), now=now))
        database.transact_sync(lambda tx: ledger.settle(tx, account, "capture", job=JobId("job-1"), now=now))
    finally:
        database.close()
    told = json.loads(run("credits", "list", "alice", "--json").out)
    moved = told.pop("transfers")
    assert told == {
        "account_id": account,
        "month": f"{now:%Y-%m}",
        "payments": 5,
        "grants": 10,
        "corrections": 0,
        "charged": 0.04,
        "charged_of_paid": 0,
        "edits": 1,
    }
    assert [(each["kind"], each["amount"], each["request_id"]) for each in moved] == [
        ("grant", 10, None),
        ("payment", 5, None),
        ("capture", 0.04, "job-1"),
    ]
    lines = run("credits", "list", account, "--month", f"{now:%Y-%m}").out.splitlines()
    assert lines[0].endswith(f"  grant  $10.00  {moved[0]['actor']}")
    assert lines[3] == r"  invoice \x1b17"
    assert lines[4].endswith("  capture  $0.04  job-1")
    assert lines[5:] == [
        f"{now:%Y-%m} (UTC): $0.04 charged for edits (1), $0.00 of it from paid credits.",
        "$5.00 were paid, $10.00 granted, $0.00 corrected.",
    ]
    assert "$0.00 charged" in run("credits", "list", "alice", "--month", "2001-02").out
    for month in ("2026-13", "last", "9999-12"):
        outcome = run("credits", "list", "alice", "--month", month)
        assert (outcome.code, outcome.out) == (2, "")
        assert f'--month is "{month}"; allowed: a year and a month, such as 2026-11' in outcome.err
    assert "there is no account 'bob'" in run("credits", "list", "bob").err


@pytest.mark.parametrize(
    "looking",
    [
        ["accounts", "list"],
        ["accounts", "webhook-secret", "alice"],
        ["keys", "list"],
        ["keys", "list", "alice"],
        ["credits", "show", "alice"],
        ["credits", "list", "alice"],
        ["doctor", "--books"],
    ],
    ids=" ".join,
)
def test_whoever_only_looks_waits_for_no_writer(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, looking: list[str]
) -> None:
    """Least of all where one hangs: that is when they are needed."""
    run("accounts", "create", "alice")
    monkeypatch.setattr(transactions, "_BUSY_TIMEOUT_MS", 0)
    monkeypatch.setattr(transactions, "TRIES_MAX", 1)
    with closing(sqlite3.connect(place / "data" / "rekontext.db")) as writer:
        writer.execute("BEGIN IMMEDIATE")
        outcome = run(*looking)
        assert (outcome.code, outcome.err) == (0, "")
        assert "the database stayed busy" in run("keys", "create", "alice").err


def test_a_service_may_write_while_the_books_are_read(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of years take long; else no edit could be accepted meanwhile."""
    run("accounts", "create", "alice", "--credits", "1")
    between = statement.between

    def long(*arguments: Any) -> Sequence[statement.Movement]:
        with closing(sqlite3.connect(place / "data" / "rekontext.db", timeout=0)) as service:
            service.execute("BEGIN IMMEDIATE")
            return between(*arguments)

    monkeypatch.setattr(statement, "between", long)
    assert "$1.00 granted" in run("credits", "list", "alice").out
