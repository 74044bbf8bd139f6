"""An installed database comes to the shape that tables.py describes, once, whoever starts first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from rekontext.database import Database
from rekontext.database.migrate import config
from rekontext.database.tables import IMMUTABLE, metadata


def test_upgrading_from_nothing_gives_the_tables_of_the_schema(empty_database_url: str) -> None:
    """Columns, types, indexes and keys are those of tables.py."""

    def differences(tx: Connection) -> list[object]:
        context = MigrationContext.configure(tx, opts={"compare_type": True, "target_metadata": metadata})
        return list(compare_metadata(context, metadata))

    database = Database.open(empty_database_url, connections=1)
    try:
        assert database.read_sync(differences) == []
    finally:
        database.close()


def install(url: str, revision: str, *rows: str) -> None:
    """A database of an earlier version, with these rows; `{now}` in them is a moment."""
    database = Database.open(url, connections=1, migrate=False)

    def work(tx: Connection) -> None:
        command.upgrade(config(tx), revision)
        for row in rows:
            tx.execute(text(row.format(now="now()" if tx.dialect.name == "postgresql" else "0")))

    database.transact_sync(work)
    database.close()


def account_row(account: str, name: str) -> str:
    return f"INSERT INTO accounts VALUES ('{account}', '{name}', {{now}}, NULL, NULL, 'whsec_')"


def test_a_database_of_the_first_release_gets_the_tables_of_this_one(empty_database_url: str) -> None:
    """Without its rows being touched."""
    install(empty_database_url, "0001", account_row("a", "Alice"))
    database = Database.open(empty_database_url, connections=1)
    try:
        found = database.read_sync(lambda tx: inspect(tx).get_table_names())
        assert set(found) >= set(metadata.tables)
        assert database.read_sync(lambda tx: tx.execute(text("SELECT name FROM accounts")).scalars().all()) == ["Alice"]
    finally:
        database.close()


def test_jobs_that_wait_get_their_turns_when_the_database_is_upgraded(empty_database_url: str) -> None:
    """Of an account that has many the later ones stand behind everyone's first."""
    states = [("a", "CANCELLED", "{now}"), *((account, "QUEUED", "NULL") for account in "abab")]
    jobs = (
        "INSERT INTO jobs (id, account_id, model, state, price_micros, parameters, attempt, faults, accepted_at, "
        f"available_at, finished_at) VALUES ('{job}', '{account}', 'm', '{state}', 0, '[]', 0, 0, {{now}}, {{now}}, "
        f"{finished})"
        for job, (account, state, finished) in enumerate(states)
    )
    install(empty_database_url, "0002", account_row("a", "Alice"), account_row("b", "Bob"), *jobs)
    database = Database.open(empty_database_url, connections=1)
    try:
        found = database.read_sync(lambda tx: tx.execute(text("SELECT turn FROM jobs ORDER BY number")).scalars().all())
        assert found == [0, 0, 0, 1, 1]
    finally:
        database.close()


def test_replays_that_wait_are_known_after_an_upgrade(empty_database_url: str) -> None:
    """They had more attempts than tries, which from then on is true of other messages too."""
    columns = "id, account_id, url, event_type, body, state, attempt, tries, created_at, due_at, finished_at"
    messages = (
        f"INSERT INTO webhook_deliveries ({columns}) VALUES ('{state}-{tries}', 'a', 'https://example.com', 'e', '', "
        f"'{state}', 2, {tries}, {{now}}, {{now}}, {finished})"
        for state, tries, finished in (("PENDING", 1, "NULL"), ("PENDING", 2, "NULL"), ("DEAD", 1, "{now}"))
    )
    install(empty_database_url, "0004", account_row("a", "Alice"), *messages)
    database = Database.open(empty_database_url, connections=1)
    try:
        replayed = text("SELECT id FROM webhook_deliveries WHERE replayed_at IS NOT NULL")
        assert database.read_sync(lambda tx: tx.execute(replayed).scalars().all()) == ["PENDING-1"]
    finally:
        database.close()


def test_the_checks_of_the_schema_are_in_the_database(database: Database) -> None:
    """Autogenerate doesn't compare CHECK constraints, so their names are compared here."""

    def names(tx: Connection) -> dict[str, set[str | None]]:
        inspector = inspect(tx)
        return {table: {check["name"] for check in inspector.get_check_constraints(table)} for table in metadata.tables}

    wanted = {
        name: {
            str(constraint.name)
            for constraint in table.constraints
            if constraint.__visit_name__ in ("check_constraint", "table_or_column_check_constraint")
        }
        for name, table in metadata.tables.items()
    }
    assert database.read_sync(names) == wanted
    assert sum(map(len, wanted.values())) > 20


def test_several_processes_may_start_on_an_empty_database_at_once(empty_database_url: str) -> None:
    """The losers of the race wait for the winner and find its tables."""

    def start() -> int:
        database = Database.open(empty_database_url, connections=1)
        try:
            return len(database.read_sync(lambda tx: inspect(tx).get_table_names()))
        finally:
            database.close()

    with ThreadPoolExecutor(4) as threads:
        counts = list(threads.map(lambda _: start(), range(4)))
    assert counts == [len(metadata.tables) + 1] * 4


@pytest.mark.parametrize("table", IMMUTABLE)
@pytest.mark.parametrize("act", ["UPDATE {} SET actor = 'mallory'", "DELETE FROM {}"])
def test_history_cannot_be_changed(database: Database, table: str, act: str) -> None:
    """Not even by someone who is at the SQL prompt."""
    if table == "ledger_entries":
        act = act.replace("actor = 'mallory'", "amount_micros = 1")

    def write(tx: Connection) -> None:
        moment = "now()" if tx.dialect.name == "postgresql" else "0"
        tx.execute(text(f"INSERT INTO accounts VALUES ('a', 'Alice', {moment}, NULL, NULL, 'whsec_')"))
        tx.execute(
            text(
                "INSERT INTO ledger_transfers (id, account_id, kind, amount_micros, at, actor, note) "
                f"VALUES (1, 'a', 'grant', 5, {moment}, 'cli', '')"
            )
        )
        tx.execute(text("INSERT INTO ledger_entries VALUES (1, 'free', 5)"))
        tx.execute(
            text(
                "INSERT INTO audit_log (at, actor, action, subject, details) "
                f"VALUES ({moment}, 'cli', 'grant', 'a', '{{}}')"
            )
        )

    database.transact_sync(write)
    with pytest.raises(DBAPIError, match=f"rows of {table} are never changed or deleted"):
        database.transact_sync(lambda tx: tx.execute(text(act.format(table))) and None)
