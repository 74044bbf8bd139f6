"""The databases that tests are lent: whatever one leaves behind, the next finds tables without rows."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.database.postgres import Lender

NOTE = "INSERT INTO audit_log (at, actor, action, subject, details) VALUES (now(), 'a', 'b', 'c', '{}') RETURNING id"


@pytest.fixture
def lender(postgres_server: str, postgres_template: str) -> Iterator[Lender]:
    lender = Lender(postgres_server, postgres_template, prefix="own")
    yield lender
    lender.drop()


def noted(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(NOTE).fetchone()
    assert row is not None
    return int(row[0])


def test_rows_are_gone_and_numbers_begin_anew(lender: Lender) -> None:
    """Though a connection is still open in a transaction that holds them."""
    with lender.lend() as url:
        assert [noted(url), noted(url)] == [1, 2]
        left_open = psycopg.connect(url)
        left_open.execute("SELECT * FROM audit_log FOR UPDATE")
    left_open.close()
    with lender.lend() as again:
        assert again == url
        assert noted(again) == 1


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE extra (x int)",
        "DROP TABLE webhook_attempts",
        "ALTER TABLE audit_log DISABLE TRIGGER ALL",
        "ALTER TABLE accounts ADD COLUMN x int",
        "UPDATE alembic_version SET version_num = 'newer'",
        "ALTER DATABASE it SET default_transaction_read_only = on",
        f"{NOTE}; ANALYZE audit_log",
    ],
)
def test_a_database_in_which_more_was_changed_is_lent_to_nobody(lender: Lender, change: str) -> None:
    with lender.lend() as url, psycopg.connect(url, autocommit=True) as admin:
        admin.execute(change.replace("DATABASE it", f"DATABASE {url.rpartition('/')[2]}").encode())
    with lender.lend() as other:
        assert other != url
        assert noted(other) == 1
