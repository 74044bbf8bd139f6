"""The jobs of a key, so that a closed one can go without all of them being read."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_key", "jobs", ["key_id"])
