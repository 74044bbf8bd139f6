"""PostgreSQL going away and coming back under an open `Database`: stale connections are nobody's concern."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, insert, select, text

from rekontext.database import Database, DatabaseUnavailable
from rekontext.database.tables import audit_log
from tests.database import postgres
from tests.database.postgres import PostgresServer
from tests.fakes import FakeClock

CONNECTIONS = 3
_numbers = count(1)


@pytest.fixture(scope="module")
def own_server(postgres_server: str) -> Iterator[PostgresServer]:
    """A server that tests may stop. The shared one is asked for only because it skips, or fails, without any."""
    programs = postgres.binaries()
    assert programs is not None
    with postgres.running(programs, may_crash=True) as server:
        yield server


@pytest.fixture
def database(own_server: PostgresServer) -> Iterator[Database]:
    """An empty database of the test's own; nobody else is connected to it."""
    name = f"restarts_{next(_numbers)}"
    with psycopg.connect(f"{own_server.url}/postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    opened = Database.open(f"{own_server.url}/{name}", connections=CONNECTIONS)
    yield opened
    opened.close()


def note(tx: Connection, action: str) -> None:
    tx.execute(insert(audit_log).values(at=FakeClock().now(), actor="test", action=action, subject="", details={}))


def actions(tx: Connection) -> list[str]:
    return sorted(tx.execute(select(audit_log.c.action)).scalars())


async def open_every_connection(database: Database) -> None:
    """As many writes and reads at the same moment as may be."""
    meet = threading.Barrier(2 * CONNECTIONS)

    def work(tx: Connection) -> None:
        tx.execute(text("SELECT 1"))
        meet.wait(10)

    await asyncio.gather(*(run(work) for run in (database.transact, database.read) for _ in range(CONNECTIONS)))


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_between_two_transactions_goes_unnoticed(
    own_server: PostgresServer, database: Database, mode: postgres.Mode
) -> None:
    """Every pooled connection is stale after it; each write happens once and each read is answered all the same."""

    async def restart() -> None:
        await open_every_connection(database)
        own_server.stop(mode)
        own_server.start()

    await database.transact(lambda tx: note(tx, "before"))
    await restart()
    assert await database.read(actions) == ["before"]
    await restart()
    await database.transact(lambda tx: note(tx, "first"))
    writes = [database.transact(lambda tx: note(tx, "more")) for _ in range(10)]
    await asyncio.gather(*writes, *(database.read(actions) for _ in range(10)))
    assert await database.read(actions) == ["before", "first", *["more"] * 10]


@pytest.mark.anyio
async def test_while_it_is_away_calls_fail_at_once_and_leave_no_doubt(
    own_server: PostgresServer, database: Database
) -> None:
    """And the first call after it is back succeeds."""
    await open_every_connection(database)
    own_server.stop()
    for run in (database.transact, database.read):
        with pytest.raises(DatabaseUnavailable, match="refused") as fault:
            await asyncio.wait_for(run(lambda tx: tx.execute(text("SELECT 1")).scalar_one()), 10)
        assert not fault.value.is_in_doubt
    own_server.start()
    await database.transact(lambda tx: note(tx, "back"))
    assert await database.read(actions) == ["back"]


def test_a_transaction_that_a_restart_breaks_off_is_run_again(own_server: PostgresServer, database: Database) -> None:
    """From its start, on a new connection: nothing of the first try is left."""
    tried = 0

    def work(tx: Connection) -> None:
        nonlocal tried
        tried += 1
        note(tx, f"try {tried}")
        if tried == 1:
            own_server.stop()
            own_server.start()
            note(tx, "never")

    database.transact_sync(work)
    assert database.read_sync(actions) == ["try 2"]


def test_a_read_is_never_in_doubt(own_server: PostgresServer, database: Database) -> None:
    """It changed nothing, so one that breaks off at its very end is simply run again."""
    tried = 0

    def work(tx: Connection) -> int:
        nonlocal tried
        tried += 1
        tx.execute(text("SELECT 1"))
        if tried == 1:
            own_server.stop()
            own_server.start()
        return tried

    assert database.read_sync(work) == 2
