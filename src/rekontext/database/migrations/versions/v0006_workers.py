"""The processes that have devices, so that those without any know what they accept edits for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from rekontext.database.instant import Instant

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("seen_at", Instant(), nullable=False),
        sa.Column("devices", DOCUMENT, nullable=False),
        sa.Column("edit_s", sa.Float()),
        sa.Column("profile", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
