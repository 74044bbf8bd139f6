"""The questions that are asked all the time are answered from an index, on both databases, in a full history."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Select, bindparam, event, insert, select, text

from rekontext.accounts import keys, ledger
from rekontext.database import Database
from rekontext.database.tables import api_keys, jobs, webhook_deliveries, webhook_endpoints
from rekontext.jobs import endpoints, idempotency, statements, sweeper, webhooks
from tests.jobs.office import ALICE, BOB, Office

HISTORY = 4000
ENDPOINTS = 100
KEYS = 100


@pytest.fixture
def full(database: Database) -> Office:
    """Many jobs that ended, a few that wait or run."""
    office = Office(database=database)
    office.open_account()
    now = office.clock.now()

    def fill(tx: Connection) -> None:
        ended = {"state": "COMPLETED", "outputs": [], "finished_at": now, "files_until": None}
        waiting = {"state": "QUEUED", "outputs": None, "finished_at": None, "files_until": None}
        tx.execute(
            insert(api_keys),
            [
                {
                    "id": f"key-{number}",
                    "account_id": ALICE,
                    "name": "",
                    "digest": str(number),
                    "hint": "",
                    "scopes": [],
                    "sync_response": "json",
                    "created_at": now,
                    "revoked_at": now,
                }
                for number in range(KEYS)
            ],
        )
        tx.execute(
            insert(jobs),
            [
                {
                    "id": f"job-{number}",
                    "account_id": ALICE,
                    "key_id": f"key-{number % KEYS}",
                    "model": "m",
                    "price_micros": 0,
                    "parameters": {},
                    "attempt": 0,
                    "faults": 0,
                    "accepted_at": now,
                    "available_at": now,
                }
                | (waiting if number % 100 == 0 else ended)
                for number in range(HISTORY)
            ],
        )
        tx.execute(
            insert(webhook_endpoints),
            [
                {
                    "id": f"end-{number}",
                    "account_id": ALICE,
                    "url": "https://example.com",
                    "secret": "",
                    "event_types": [],
                    "active": number == 0,
                    "created_at": now,
                }
                for number in range(ENDPOINTS)
            ],
        )
        tx.execute(
            insert(webhook_deliveries),
            [
                {
                    "id": f"msg-{number}",
                    "account_id": ALICE,
                    "endpoint_id": f"end-{number % ENDPOINTS}",
                    "url": "https://example.com",
                    "event_type": "edit.completed",
                    "body": "{}",
                    "attempt": 1,
                    "tries": 1,
                    "created_at": now,
                    "due_at": now,
                    "state": "PENDING" if number % 100 == 0 else "DELIVERED",
                    "finished_at": None if number % 100 == 0 else now,
                }
                for number in range(HISTORY)
            ],
        )
        # Holds and captures as well, so that the ledger's indexes have something to choose from.
        moment = "now()" if tx.dialect.name == "postgresql" else "0"
        for kind in ("hold", "capture"):
            tx.execute(
                text(
                    "INSERT INTO ledger_transfers (account_id, kind, job_id, amount_micros, at, actor, note) "
                    f"SELECT account_id, '{kind}', id, 0, {moment}, 'test', '' FROM jobs"
                )
            )

    database.transact_sync(fill)
    database.transact_sync(lambda tx: tx.execute(text("ANALYZE")) and None)
    return office


def plan(tx: Connection, statement: Select[Any], values: dict[str, Any]) -> str:
    """What the database would do, as text."""
    if tx.dialect.name == "postgresql":
        # As the driver does from the fifth time on: one plan for all values.
        tx.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
    word = "EXPLAIN" if tx.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"

    def explain(_connection: object, _cursor: object, sent: str, given: object, *_: object) -> tuple[str, object]:
        return f"{word} {sent}", given

    event.listen(tx, "before_cursor_execute", explain, retval=True)
    try:
        cursor = tx.execute(statement, values).cursor
        assert cursor is not None
        return "\n".join(str(row[-1]) for row in cursor.fetchall())
    finally:
        event.remove(tx, "before_cursor_execute", explain)


NOW = datetime.fromisoformat("2026-03-14T09:26:53+00:00")
HOT: list[tuple[str, Select[Any], dict[str, Any], str | tuple[str, ...]]] = [
    (
        "claim",
        statements.NEXT,
        {"now": NOW, "latest": NOW + timedelta(minutes=5), "limit": 4, "besides": ["b"]},
        "ix_jobs_turns",
    ),
    ("status", statements.BY_ID, {"job": "job-1"}, "uq_jobs_id"),
    ("ends", statements.ENDED, {"jobs": ["job-1", "job-2"]}, "uq_jobs_id"),
    ("in flight", statements.IN_FLIGHT, {"account": ALICE}, "ix_jobs_in_flight"),
    ("queued", statements.QUEUED, {}, ("ix_jobs_queue", "ix_jobs_turns", "ix_jobs_in_flight")),
    ("position", statements.AHEAD, {"turn": 1, "number": 50}, ("ix_jobs_turns", "ix_jobs_queue")),
    ("first turn", statements.FIRST_TURN, {}, "ix_jobs_turns"),
    ("highest turn", statements.HIGHEST_TURN, {}, "ix_jobs_turns"),
    ("running", statements.RUNNING, {"limit": 4}, "ix_jobs_leases"),
    ("waiting", statements.WAITING, {"limit": 4}, "ix_jobs_queue"),
    (
        "an account's running",
        statements.RUNNING_OF,
        {"account": ALICE, "limit": 4},
        ("ix_jobs_in_flight", "ix_jobs_leases"),
    ),
    (
        "an account's waiting",
        statements.WAITING_OF,
        {"account": ALICE, "limit": 1},
        ("ix_jobs_in_flight", "ix_jobs_queue"),
    ),
    ("oldest turn", statements.OLDEST_TURN, {}, "ix_jobs_queue"),
    (
        "last turn",
        statements.LAST_TURN,
        {"account": ALICE},
        ("ix_jobs_in_flight", "ix_jobs_turns", "ix_jobs_queue"),
    ),
    ("overdue", statements.OVERDUE, {"since": NOW, "limit": 4}, "ix_jobs_queue"),
    ("expired leases", statements.EXPIRED, {"now": NOW, "limit": 4}, "ix_jobs_leases"),
    ("claimed", statements.CLAIMED, {"worker": "w", "at": NOW}, "ix_jobs_leases"),
    ("key", keys.BY_DIGEST, {"digest": "0"}, "uq_api_keys_digest"),
    ("idempotency", idempotency.EARLIER, {"account": ALICE, "key": "k"}, "pk_idempotency_keys"),
    ("held", ledger.HELD_FOR, {"job": "job-1"}, "uq_ledger_transfers_hold"),
    ("spent", ledger.CAPTURED_SINCE, {"account": ALICE, "since": NOW}, "ix_ledger_transfers_spend"),
    ("webhooks due", webhooks.DUE, {"now": NOW, "limit": 4}, "ix_webhook_deliveries_due"),
    ("an account's due", webhooks.DUE_OF, {"account": ALICE, "now": NOW, "limit": 4}, "ix_webhook_deliveries_turns"),
    ("accounts that wait", webhooks.WAITING, {}, "ix_webhook_deliveries_turns"),
    ("outlived", webhooks.OUTLIVED, {"before": NOW, "now": NOW, "limit": 4}, "ix_webhook_deliveries_age"),
    ("messages asked for", endpoints.REQUESTED_PENDING, {"account": ALICE}, "ix_webhook_deliveries_requested"),
    (
        "endpoint that makes room",
        endpoints.LEAST_NEEDED,
        {"account": ALICE, "messages_max": 4},
        "ix_webhook_deliveries_endpoint",
    ),
    ("old inputs", sweeper.INPUTS, {"before": NOW - timedelta(days=1), "limit": 4, "skipped": 0}, "ix_jobs_inputs"),
    ("old files", sweeper.FILES, {"now": NOW, "limit": 4, "skipped": 0}, "ix_jobs_files"),
    ("closed keys", sweeper.CLOSED_KEYS, {"before": NOW, "limit": 4}, "ix_jobs_key"),
    ("old records", sweeper.RECORDS, {"before": NOW - timedelta(days=1), "limit": 4}, "ix_jobs_finished"),
]


@pytest.mark.parametrize("analyzed", [True, False])
def test_hot_queries_use_their_indexes(full: Office, analyzed: bool) -> None:
    """No table is read from end to end, nor an account's whole history. On SQLite nobody runs ANALYZE."""
    if not analyzed and full.database.read_sync(lambda tx: tx.dialect.name) == "sqlite":
        full.database.transact_sync(lambda tx: tx.execute(text("DROP TABLE sqlite_stat1")) and None)

    def plans(tx: Connection) -> dict[str, tuple[str | tuple[str, ...], str]]:
        return {name: (index, plan(tx, statement, values)) for name, statement, values, index in HOT}

    explained = full.database.transact_sync(plans)
    assert {name: found for name, (index, found) in explained.items() if not is_used(index, found)} == {}


def is_used(index: str | tuple[str, ...], explained: str) -> bool:
    if isinstance(index, tuple):
        return any(is_used(each, explained) for each in index)
    if index in explained:
        return True
    # SQLite names the index behind a UNIQUE or a PRIMARY KEY itself.
    if index.startswith(("uq_jobs", "uq_api", "pk_")) and "USING INDEX sqlite_autoindex" in explained:
        return True
    # Tables that are empty here PostgreSQL may as well read whole.
    return any(f"Seq Scan on {table}" in explained for table in ("api_keys", "idempotency_keys"))


def test_a_query_without_an_index_would_be_found(full: Office) -> None:
    """The check above can fail."""
    statement = select(jobs.c.number).where(jobs.c.model == bindparam("model"))
    explained = full.database.transact_sync(lambda tx: plan(tx, statement, {"model": "m"}))
    assert "Seq Scan on jobs" in explained or "SCAN jobs" in explained
    assert "INDEX" not in explained.upper()


def rows_read(tx: Connection, work: Callable[[], object]) -> int:
    """How many rows `work` makes the database look at, about."""
    if tx.dialect.name == "postgresql":
        counted = text("SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables")
        before = tx.execute(counted).scalar_one()
        work()
        return int(tx.execute(counted).scalar_one() - before)
    driver, steps = tx.connection.driver_connection, 0

    def step() -> None:
        nonlocal steps
        steps += 1

    assert driver is not None
    driver.set_progress_handler(step, 10)  # instructions of SQLite's machine: about so many for each row
    try:
        work()
    finally:
        driver.set_progress_handler(None, 0)
    return steps


def test_a_backlog_of_an_account_that_is_full_is_passed_over(full: Office) -> None:
    """A claim comes to the others' messages, though statistics say that nobody else has any; or sees there are none."""
    backlog, now = 5000, full.clock.now()
    message = {
        "url": "https://example.com",
        "event_type": "edit.completed",
        "body": "{}",
        "state": "PENDING",
        "attempt": 1,
        "tries": 1,
        "created_at": now,
    }

    def write(tx: Connection, account: str, count: int) -> None:
        tx.execute(
            insert(webhook_deliveries),
            [message | {"id": f"{account}-{n}", "account_id": account, "due_at": now} for n in range(count)],
        )

    def claim(tx: Connection) -> tuple[int, list[str]]:
        claimed = list[webhooks.Claimed]()
        read = rows_read(
            tx, lambda: claimed.extend(webhooks.claim(tx, limit=9, now=now, again_at=now, held={ALICE: 8}))
        )
        return read, [message.id for message in claimed]

    full.database.transact_sync(lambda tx: write(tx, ALICE, backlog))
    full.database.transact_sync(lambda tx: tx.execute(text("ANALYZE")) and None)
    full.open_account(BOB)
    alone = full.database.transact_sync(claim)
    full.database.transact_sync(lambda tx: write(tx, BOB, 1))
    beside = full.database.transact_sync(claim)
    assert [taken for _, taken in (alone, beside)] == [[], [f"{BOB}-0"]]
    assert [read for read, _ in (alone, beside) if read > backlog // 5] == []
