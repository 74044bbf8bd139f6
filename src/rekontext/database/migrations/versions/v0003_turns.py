"""Accounts take turns: jobs wait in the order of `turn`, then of `number`. Those that wait already get theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_IS_QUEUED = sa.text("state = 'QUEUED'")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("turn", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.execute(
        "UPDATE jobs SET turn = waiting.turn FROM ("
        "SELECT number, row_number() OVER (PARTITION BY account_id ORDER BY number) - 1 AS turn "
        "FROM jobs WHERE state = 'QUEUED'"
        ") AS waiting WHERE jobs.number = waiting.number"
    )
    op.create_index("ix_jobs_turns", "jobs", ["turn", "number"], sqlite_where=_IS_QUEUED, postgresql_where=_IS_QUEUED)
