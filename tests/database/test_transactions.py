"""What `Database` promises: whole transactions, reads that don't wait, bounded retries, plain refusals."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import InternalError, OperationalError

from rekontext.database import Database, DatabaseUnavailable
from rekontext.database import transactions as module
from rekontext.database.address import sqlite_file
from rekontext.database.tables import audit_log

NOON = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


def note(tx: Connection, action: str, at: datetime = NOON) -> None:
    tx.execute(insert(audit_log).values(at=at, actor="test", action=action, subject="", details={}))


def actions(tx: Connection) -> list[str]:
    return list(tx.execute(select(audit_log.c.action).order_by(audit_log.c.id)).scalars())


async def both(database: Database, work: str) -> list[str]:
    await database.transact(lambda tx: note(tx, work))
    return await database.read(actions)


def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    """What it wrote before is gone and the error reaches the caller as it was."""

    def work(tx: Connection) -> None:
        note(tx, "half")
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        database.transact_sync(work)
    assert database.read_sync(actions) == []


def test_a_committed_write_is_seen_by_the_next_read(database: Database) -> None:
    """Reads have connections of their own and see every commit."""
    assert asyncio.run(both(database, "written")) == ["written"]


def test_reads_do_not_wait_for_a_writer(database: Database) -> None:
    """A poll is answered while a transaction is open."""
    writing, may_commit = threading.Event(), threading.Event()

    def work(tx: Connection) -> None:
        note(tx, "slow")
        writing.set()
        assert may_commit.wait(60)

    async def scene() -> list[str]:
        writer = asyncio.ensure_future(database.transact(work))
        assert await asyncio.to_thread(writing.wait, 30)
        seen = await asyncio.wait_for(database.read(actions), 30)
        may_commit.set()
        await writer
        return seen

    assert asyncio.run(scene()) == []
    assert database.read_sync(actions) == ["slow"]


def test_reads_do_not_wait_for_long_ones(database: Database) -> None:
    """Keys and polls are answered however many histories are looked through."""
    may_end = threading.Event()

    async def scene() -> list[str]:
        long = [asyncio.ensure_future(database.read_long(lambda tx: may_end.wait(60))) for _ in range(20)]
        seen = await asyncio.wait_for(database.read(actions), 30)
        may_end.set()
        assert await asyncio.gather(*long) == [True] * 20
        return seen

    database.transact_sync(lambda tx: note(tx, "written"))
    assert asyncio.run(scene()) == ["written"]


def test_cancelling_the_caller_does_not_split_a_transaction(database: Database) -> None:
    """Once begun it commits as a whole, whoever is still listening."""
    writing, may_commit = threading.Event(), threading.Event()

    def work(tx: Connection) -> None:
        note(tx, "first")
        writing.set()
        assert may_commit.wait(60)
        note(tx, "second")

    async def scene() -> None:
        caller = asyncio.ensure_future(database.transact(work))
        assert await asyncio.to_thread(writing.wait, 30)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        may_commit.set()

    def once_it_ended(tx: Connection) -> None:
        if tx.dialect.name == "postgresql":  # which, unlike SQLite, has more than one writer at a time
            tx.exec_driver_sql("LOCK TABLE audit_log IN SHARE ROW EXCLUSIVE MODE")
        note(tx, "after")

    asyncio.run(scene())
    database.transact_sync(once_it_ended)
    assert database.read_sync(actions) == ["first", "second", "after"]


def test_reads_cannot_write(database: Database) -> None:
    """A function on the wrong side fails loudly."""
    with pytest.raises((DatabaseUnavailable, Exception), match=r"readonly|read-only"):
        database.read_sync(lambda tx: note(tx, "smuggled"))
    assert database.read_sync(actions) == []


@pytest.mark.parametrize("failures", [1, module.TRIES_MAX - 1])
def test_a_lost_race_is_run_again(database: Database, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Deadlocks and locks end in a retry, and each failed try leaves nothing."""
    monkeypatch.setattr("rekontext.database.transactions.time.sleep", lambda _s: None)
    tried = 0

    def work(tx: Connection) -> None:
        nonlocal tried
        tried += 1
        note(tx, f"try {tried}")
        if tried <= failures:
            raise OperationalError("UPDATE", {}, psycopg.errors.DeadlockDetected("deadlock detected"))

    database.transact_sync(work)
    assert database.read_sync(actions) == [f"try {failures + 1}"]


def test_retries_have_an_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stays busy is reported, with nothing changed."""
    monkeypatch.setattr("rekontext.database.transactions.time.sleep", lambda _s: None)
    tried = 0

    def work(tx: Connection) -> None:
        nonlocal tried
        tried += 1
        note(tx, "never")
        raise OperationalError("UPDATE", {}, psycopg.errors.SerializationFailure("could not serialize"))

    with pytest.raises(DatabaseUnavailable, match=f"busy through {module.TRIES_MAX} tries"):
        database.transact_sync(work)
    assert tried == module.TRIES_MAX
    assert database.read_sync(actions) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_in_a_transaction_is_replaced(database: Database) -> None:
    """The transaction is run again from its start: nothing of the first try is left."""
    tried = 0

    def work(tx: Connection) -> None:
        nonlocal tried
        tried += 1
        note(tx, f"try {tried}")
        if tried == 1:
            tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    database.transact_sync(work)
    assert database.read_sync(actions) == ["try 2"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_in_the_commit_leaves_a_doubt(database: Database) -> None:
    """Running it again could do it twice, so the caller must look."""

    def work(tx: Connection) -> None:
        note(tx, "who knows")
        pid = tx.execute(text("SELECT pg_backend_pid()")).scalar_one()
        # A connection of its own ends this one just before the commit is sent.
        database.read_sync(
            lambda other: other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}) and None
        )

    with pytest.raises(DatabaseUnavailable) as fault:
        database.transact_sync(work)
    assert fault.value.is_in_doubt
    assert database.read_sync(actions) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_transaction_whose_session_was_ended_for_its_silence_is_run_again(database: Database) -> None:
    """As when the machine slept in the middle of it. It was ended before its commit: nothing of it is left."""
    tried = 0

    def is_there(pid: int) -> bool:
        count = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        return database.read_sync(lambda other: bool(other.execute(count, {"pid": pid}).scalar_one()))

    def work(tx: Connection) -> None:
        nonlocal tried
        tried += 1
        note(tx, f"try {tried}")
        if tried == 1:
            pid = tx.execute(text("SELECT pg_backend_pid()")).scalar_one()
            tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 1"))
            until = time.monotonic() + 30
            while is_there(pid):
                assert time.monotonic() < until

    for _ in range(10):
        tried = 0
        try:
            database.transact_sync(work)
            break
        except DatabaseUnavailable as fault:  # on a busy machine the connection's end may overtake the reason for it
            if not fault.is_in_doubt:
                raise
    assert database.read_sync(actions) == ["try 2"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("state", ["XX000", "XX001"])
def test_a_fault_of_postgresql_s_own_is_the_database_s(database: Database, state: str) -> None:
    """A damaged page, say: whoever outlives a database that is away outlives this."""
    fail = f"DO $$ BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = '{state}'; END $$"
    for run in (database.transact_sync, database.read_sync):
        with pytest.raises(DatabaseUnavailable, match="invalid page in block 7") as fault:
            run(lambda tx: tx.exec_driver_sql(fail) and None)
        assert not fault.value.is_in_doubt


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_read_that_writes_is_our_own_mistake(database: Database) -> None:
    """Not an outage, though the driver has one class for both."""
    with pytest.raises(InternalError, match="read-only"):
        database.read_sync(lambda tx: note(tx, "smuggled"))


def test_a_statement_that_is_wrong_is_not_retried(database: Database) -> None:
    """Our own mistakes come out at once."""
    tried = 0

    def work(tx: Connection) -> None:
        nonlocal tried
        tried += 1
        tx.execute(text("SELECT 1 FROM nowhere"))

    with pytest.raises(Exception, match="nowhere"):
        database.transact_sync(work)
    assert tried == 1


def test_moments_come_back_as_they_went_in(database: Database) -> None:
    """To the microsecond, in UTC, whatever timezone they were given in."""
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    database.transact_sync(lambda tx: note(tx, "here", elsewhere))
    [moment] = database.read_sync(lambda tx: tx.execute(select(audit_log.c.at)).scalars().all())
    assert moment == NOON
    assert moment.utcoffset() == timedelta(0)


def test_a_moment_without_a_timezone_is_a_fault(database: Database) -> None:
    """It could mean any of two dozen moments."""
    with pytest.raises(Exception, match="without a timezone"):
        database.transact_sync(lambda tx: note(tx, "naive", NOON.replace(tzinfo=None)))


def test_two_processes_may_write_to_one_sqlite_file(tmp_path: Path) -> None:
    """The command line works beside a running server: BEGIN IMMEDIATE waits instead of failing."""
    url = f"sqlite:///{tmp_path}/shared.db"
    first, second = Database.open(url, synchronous="NORMAL"), Database.open(url, synchronous="NORMAL")

    async def scene() -> None:
        await asyncio.gather(*(d.transact(lambda tx: note(tx, "x")) for d in (first, second) for _ in range(100)))

    try:
        asyncio.run(scene())
        assert len(first.read_sync(actions)) == 200
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite://folder/file", "with three slashes"),
        ("mysql://host/name", "names 'mysql'"),
        ("not a url", "can't be read"),
        ("postgresql://rekontext:hunter2@host/name?wibble=1", 'invalid connection option "wibble"'),
        ("postgresql://rekontext:hunter2", "can't be read"),
        ("postgresql://rekontext:hunter2@host:port/name", "can't be read"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_by_name(url: str, complaint: str) -> None:
    """The setting is wrong, so the start stops and says how, without what may be a password."""
    with pytest.raises(ValueError, match=complaint) as refused:
        Database.open(url)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////var/x.db", Path("/var/x.db")),
        ("sqlite+aiosqlite:///x.db", Path("x.db")),
        ("sqlite:///:memory:", None),
        ("postgresql://rekontext:secret@host/name", None),
        ("postgresql://rekontext:secret@host:port/name", None),
    ],
)
def test_a_url_tells_sqlite_s_file(url: str, file: Path | None) -> None:
    """Where it is one's; what can't be read names none."""
    assert sqlite_file(url) == file


def test_the_driver_is_ours_whichever_the_url_names(tmp_path: Path) -> None:
    """Other programs' URLs name theirs, which needn't be here."""
    opened = Database.open(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    assert opened.read_sync(actions) == []
    opened.close()


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """Not found is not the same as wrongly named."""
    with pytest.raises(DatabaseUnavailable):
        Database.open(f"sqlite:///{tmp_path}/no/such/folder/x.db")
    with pytest.raises(DatabaseUnavailable):
        Database.open("postgresql://nobody@127.0.0.1:1/nothing")


@pytest.mark.parametrize("starts_with", [b"", b"SQLite format 3\0"])
def test_a_damaged_file_is_said_to_be_one(tmp_path: Path, starts_with: bytes) -> None:
    """Not a riddle of the driver's, and with what to do."""
    file = tmp_path / "rekontext.db"
    file.write_bytes(starts_with.ljust(8192, b"\xa5"))
    with pytest.raises(DatabaseUnavailable, match=r"is damaged \(.+\): stop the service and put back a backup"):
        Database.open(f"sqlite:///{file}")


def test_damage_inside_a_file_is_found_by_a_check(tmp_path: Path) -> None:
    """Though the service may run on it for long, until it meets the bad pages."""
    file = tmp_path / "rekontext.db"
    database = Database.open(f"sqlite:///{file}")
    database.check_sync()
    database.close()
    data = bytearray(file.read_bytes())
    data[-8192:] = b"\xa5" * 8192
    file.write_bytes(data)
    damaged = Database.open(f"sqlite:///{file}", migrate=False)
    try:
        with pytest.raises(DatabaseUnavailable, match="is damaged"):
            damaged.check_sync()
    finally:
        damaged.close()


def test_a_check_changes_nothing(database: Database) -> None:
    """And is content with a database that is well."""
    database.check_sync()
    assert database.read_sync(actions) == []


def test_the_tables_of_a_newer_version_are_left_alone(database: Database, database_url: str) -> None:
    """An older program must not write into them; the sentence names both."""
    database.transact_sync(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None)
    with pytest.raises(DatabaseUnavailable, match=r"newer Rekontext: its tables are at 9999, .* up to 0010"):
        Database.open(database_url)
    with pytest.raises(DatabaseUnavailable, match="newer Rekontext"):
        database.check_sync()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_can_t_hold_every_prompt_is_refused(postgres_server: str, encoding: str) -> None:
    """Where it was made in another locale than today's: with what makes a good one."""
    name = f"in_{encoding.lower()}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as admin:
        make = "CREATE DATABASE {} ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        admin.execute(sql.SQL(make).format(sql.Identifier(name), sql.Literal(encoding)))
    with pytest.raises(ValueError, match=f"the database {name} is in {encoding}, in which not every prompt"):
        Database.open(f"{postgres_server}/{name}")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_server_that_vanishes_is_given_up_within_seconds(database: Database) -> None:
    """The system's own patience is two hours for one that is waited for, and a quarter for one that is written to."""

    def options(tx: Connection) -> dict[str, str]:
        driver = tx.connection.dbapi_connection
        assert isinstance(driver, psycopg.Connection)
        return driver.info.get_parameters()

    for set_up in (database.transact_sync(options), database.read_sync(options)):
        silent_s = int(set_up["keepalives_idle"]) + int(set_up["keepalives_interval"]) * int(set_up["keepalives_count"])
        assert silent_s <= 30
        assert int(set_up["tcp_user_timeout"]) <= 30_000
        assert int(set_up["connect_timeout"]) <= 30


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_url_may_say_how_to_connect(database_url: str) -> None:
    """Its own options are kept beside ours, and what else it says goes before ours."""
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA mine")
    says = "options=-csearch_path%3Dmine%20-ctimezone%3DAsia/Tokyo&application_name=edits&connect_timeout=3"
    opened = Database.open(f"{database_url}?{says}")
    try:
        opened.transact_sync(lambda tx: note(tx, "there"))
        shown = opened.read_sync(
            lambda tx: [
                tx.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("search_path", "application_name", "timezone", "lock_timeout")
            ]
        )
        assert shown == ["mine", "edits", "UTC", "5s"]
        tables = "SELECT count(*) FROM mine.audit_log"
        assert opened.read_sync(lambda tx: tx.exec_driver_sql(tables).scalar_one()) == 1
    finally:
        opened.close()


def take_writes(database_url: str, does: bool) -> None:
    """Whether sessions that begin from now on may write."""
    name = database_url.rsplit("/", 1)[1]
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(b"SET default_transaction_read_only = off")
        admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {"off" if does else "on"}'.encode())


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_server_that_takes_no_writes_is_unavailable(database: Database, database_url: str) -> None:
    """After a failover the address may lead to a standby for a while: nothing changed, and reads go on."""
    take_writes(database_url, False)
    standby = Database.open(database_url, migrate=False)
    try:
        with pytest.raises(DatabaseUnavailable, match="read-only") as fault:
            standby.transact_sync(lambda tx: note(tx, "never"))
        assert not fault.value.is_in_doubt
        assert standby.read_sync(actions) == []
    finally:
        standby.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_server_that_takes_writes_again_is_written_to(database_url: str) -> None:
    """Though sessions that began before never will: the pool keeps none of those."""
    take_writes(database_url, False)
    standby = Database.open(database_url, migrate=False)

    async def fill_the_pool() -> None:
        together = threading.Barrier(4)
        await asyncio.gather(*(standby.transact(lambda tx: together.wait(30) and None) for _ in range(4)))

    try:
        asyncio.run(fill_the_pool())
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            standby.transact_sync(lambda tx: note(tx, "never"))
        take_writes(database_url, True)
        for _ in range(4):
            standby.transact_sync(lambda tx: note(tx, "again"))
        assert standby.read_sync(actions) == ["again"] * 4
    finally:
        standby.close()
