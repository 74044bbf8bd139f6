"""An index in which one account's backlog of messages is passed over on the way to the others'."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_IS_PENDING = sa.text("state = 'PENDING'")


def upgrade() -> None:
    op.create_index(
        "ix_webhook_deliveries_turns",
        "webhook_deliveries",
        ["account_id", "due_at"],
        sqlite_where=_IS_PENDING,
        postgresql_where=_IS_PENDING,
    )
