"""Accounts take turns: jobs wait in the order of `turn`, then of `number`."""

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
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index("ix_jobs_queue", "jobs", ["turn", "number"], sqlite_where=_IS_QUEUED, postgresql_where=_IS_QUEUED)
