"""Indexes for the bounds of webhooks: what an endpoint was sent, and what waits because its account asked for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_IS_REQUESTED = sa.text("state = 'PENDING' AND (event_type = 'webhook.test' OR attempt > tries)")


def upgrade() -> None:
    op.create_index("ix_webhook_deliveries_endpoint", "webhook_deliveries", ["endpoint_id", "state"])
    op.create_index(
        "ix_webhook_deliveries_requested",
        "webhook_deliveries",
        ["account_id"],
        sqlite_where=_IS_REQUESTED,
        postgresql_where=_IS_REQUESTED,
    )
