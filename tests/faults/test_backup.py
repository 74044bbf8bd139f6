"""A backup made while the server runs is what comes back, whatever a killed server left beside its database."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from sqlalchemy import Connection, select

from rekontext.accounts import integrity, ledger
from rekontext.cli import main
from rekontext.database.tables import jobs
from rekontext.installation import open_database
from tests.api.studio import Studio
from tests.faults.server import settings
from tests.faults.test_server_killed import GOOD, ROOT, START_S_MAX, running

pytestmark = pytest.mark.anyio

DATABASE: Final = "rekontext.db"
Command = Callable[..., subprocess.CompletedProcess[str]]


def rekontext(data_dir: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line on this data folder, in a process of its own as an operator's is."""
    return subprocess.run(
        [sys.executable, "-m", "rekontext.cli", *arguments, "--data-dir", data_dir],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "500"},
        check=False,
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
    )


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same in this process, for what needs no other: a process takes seconds to start."""
    monkeypatch.setenv("COLUMNS", "500")

    def run(data_dir: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--data-dir", str(data_dir)])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, out, err)

    return run


def state(data_dir: Path) -> tuple[list[str], int]:
    """The finished jobs and what is left of the first account's credits."""

    def look(tx: Connection) -> tuple[list[str], int]:
        assert integrity.faults(tx) == []
        found = tx.execute(select(jobs.c.id, jobs.c.account_id).where(jobs.c.finished_at.is_not(None))).all()
        return [row.id for row in found], ledger.balance(tx, found[0].account_id).available_micros

    database = open_database(settings(data_dir))
    try:
        return database.read_sync(look)
    finally:
        database.close()


def files(folder: Path, name: str = "*") -> dict[str, bytes]:
    """Those of such a name, with what is in them."""
    return {path.name: path.read_bytes() for path in folder.glob(name) if path.is_file()}


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """For its first account and key, in a data folder of its own."""
    studio = Studio(folder=tmp_path / "studio")
    studio.service.parts.database.close()
    return studio


async def edit(url: str, key: str, how_many: int) -> list[str]:
    async with httpx2.AsyncClient(base_url=url, headers={"x-api-key": key}, timeout=60) as client:
        answers = [await client.post("/v1/flux-kontext-dev", json=GOOD) for _ in range(how_many)]
    assert [answer.status_code for answer in answers] == [200] * how_many
    return [answer.headers["x-request-id"] for answer in answers]


async def test_what_is_restored_after_a_kill_is_the_backup(studio: Studio, tmp_path: Path) -> None:
    """Not the backup with what came after it in the log that the kill left behind; and the server goes on from it."""
    data_dir, copy = studio.options.data_dir, tmp_path / "copy.db"
    async with running(data_dir) as (process, url):
        before = await edit(url, studio.key, 2)
        made = rekontext(data_dir, "backup", copy)
        assert (made.returncode, made.stderr) == (0, "")
        assert str(data_dir / "secret") in made.stdout
        assert "is there already" in rekontext(data_dir, "backup", copy).stderr
        after = await edit(url, studio.key, 3)
        refused = rekontext(data_dir, "restore", copy)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "is in use: stop every server" in refused.stderr
        process.kill()
        await process.wait()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert list(files(tmp_path, "copy.db*")) == ["copy.db"]
    left = files(data_dir, f"{DATABASE}*")
    assert f"{DATABASE}-wal" in left, "the kill left nothing behind: this test shows nothing"

    restored = rekontext(data_dir, "restore", copy)
    assert (restored.returncode, restored.stderr) == (0, "")
    [folder] = data_dir.glob("replaced-*")
    assert str(folder) in restored.stdout
    assert files(folder) == left
    assert list(files(data_dir, f"{DATABASE}*")) == [DATABASE]
    assert state(data_dir) == (before, 10_000_000 - 2 * 40_000)
    async with running(data_dir) as (_, url):
        later = await edit(url, studio.key, 1)
    assert state(data_dir) == ([*before, *later], 10_000_000 - 3 * 40_000)

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    shutil.copy(data_dir / "secret", elsewhere)
    assert state(elsewhere) == ([*before, *after], 10_000_000 - 5 * 40_000)


def test_a_copy_that_is_no_good_is_not_put_back(studio: Studio, tmp_path: Path, here: Command) -> None:
    """The database stays as it is, and the line names the file."""
    data_dir = studio.options.data_dir
    good = tmp_path / "good.db"
    assert here(data_dir, "backup", good).returncode == 0
    damaged, strange, newer = (tmp_path / name for name in ("damaged.db", "strange.db", "newer.db"))
    content = bytearray(good.read_bytes())
    content[-8192:] = b"\xa5" * 8192
    damaged.write_bytes(content)
    sqlite3.connect(strange).execute("CREATE TABLE t (x)").connection.close()
    shutil.copy(good, newer)
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9999'")
    connection.close()
    there = sorted(path.name for path in data_dir.iterdir())
    for copy, says in (
        (damaged, "is damaged"),
        (strange, "is no database of Rekontext"),
        (newer, "upgraded by a newer Rekontext"),
        (tmp_path / "nothing.db", "there is no file"),
        (data_dir / "secret", "can't be copied"),
    ):
        outcome = here(data_dir, "restore", copy)
        assert (outcome.stdout, outcome.stderr.count("\n")) == ("", 1)
        assert outcome.returncode > 0
        assert str(copy) in outcome.stderr
        assert says in outcome.stderr
        assert sorted(path.name for path in data_dir.iterdir()) == there


@pytest.mark.parametrize("table", ["ledger_entries", "jobs"])
def test_a_damaged_database_is_not_copied(studio: Studio, tmp_path: Path, here: Command, table: str) -> None:
    """Whoever keeps the last few copies would lose the good ones; it isn't the caller's fault, and nothing is left."""
    data_dir = studio.options.data_dir
    with sqlite3.connect(data_dir / DATABASE) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # every page is in the file
        [page_bytes] = connection.execute("PRAGMA page_size").fetchone()
        [page] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()
    connection.close()
    with (data_dir / DATABASE).open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xa5" * page_bytes)
    outcome = here(data_dir, "backup", tmp_path / "copy.db")
    assert (outcome.returncode, outcome.stdout, outcome.stderr.count("\n")) == (1, "", 1)
    assert f"{data_dir / DATABASE} is damaged (" in outcome.stderr
    assert files(tmp_path, "copy.db*") == {}


def test_a_backup_that_finds_no_room_is_not_bad_input(
    studio: Studio, tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1: the same call does better once there is room. A name that is taken stays taken, which is 2."""
    data_dir, copy = studio.options.data_dir, tmp_path / "copy.db"
    connect = sqlite3.connect

    def small(where: str, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(where, **options)
        if copy.name in where:
            connection.execute("PRAGMA max_page_count = 2")
        return connection

    monkeypatch.setattr("rekontext.database.copies.sqlite3.connect", small)
    outcome = here(data_dir, "backup", copy)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert f"can't be copied to {copy}: database or disk is full" in outcome.stderr
    monkeypatch.undo()
    copy.touch()
    assert here(data_dir, "backup", copy).returncode == 2


def test_a_backup_is_put_where_nothing_was(studio: Studio, tmp_path: Path, here: Command) -> None:
    """On a new machine, say; a damaged database is moved aside like any other."""
    good, data_dir = tmp_path / "good.db", tmp_path / "new"
    assert here(studio.options.data_dir, "backup", good).returncode == 0
    assert here(data_dir, "restore", good).returncode == 0
    assert [path.name for path in data_dir.iterdir()] == [DATABASE]
    (data_dir / DATABASE).write_bytes(b"not a database at all" * 1000)
    (data_dir / f"{DATABASE}-journal").write_bytes(b"of it")
    assert here(data_dir, "restore", good).returncode == 0
    shutil.copy(studio.options.data_dir / "secret", data_dir)
    assert studio.account in here(data_dir, "accounts", "list").stdout
    [folder] = data_dir.glob("replaced-*")
    assert sorted(files(folder)) == [DATABASE, f"{DATABASE}-journal"]


def test_a_data_folder_may_have_any_name(tmp_path: Path, here: Command) -> None:
    """Also one that a URL would read otherwise: the database is in it, and nowhere beside it."""
    data_dir, copy = tmp_path / "what? %41#", tmp_path / "copy.db"
    for command in (["accounts", "create", "alice"], ["backup", copy], ["restore", copy]):
        assert here(data_dir, *command).returncode == 0
    assert "alice" in here(data_dir, "accounts", "list").stdout
    assert (data_dir / DATABASE).is_file()
    assert set(tmp_path.iterdir()) == {data_dir, copy}


def test_postgresql_is_left_to_its_own_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Command) -> None:
    """Both commands say which."""
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", "postgresql://a:geheim@127.0.0.1:1/b")
    for command in ("backup", "restore"):
        outcome = here(tmp_path, command, tmp_path / "copy.db")
        assert outcome.returncode == 2
        assert "pg_dump" in outcome.stderr
        assert "geheim" not in outcome.stderr
