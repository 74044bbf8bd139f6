"""When a message was replayed; an index in which a backlog is passed over on the way to others' messages; one by age.

A replay was known by `attempt > tries`, before tries were counted by their outcome.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rekontext.database.instant import Instant

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("webhook_deliveries", sa.Column("replayed_at", Instant()))
    op.execute("UPDATE webhook_deliveries SET replayed_at = due_at WHERE state = 'PENDING' AND attempt > tries")
    op.drop_index("ix_webhook_deliveries_requested", "webhook_deliveries")
    _index(
        "requested",
        "account_id",
        where="state = 'PENDING' AND (event_type = 'webhook.test' OR replayed_at IS NOT NULL)",
    )
    _index("age", "created_at", where="state = 'PENDING'")
    _index("turns", "account_id", "due_at", where="state = 'PENDING'")


def _index(name: str, *columns: str, where: str) -> None:
    op.create_index(
        f"ix_webhook_deliveries_{name}",
        "webhook_deliveries",
        columns,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )
