"""LoRAs that accounts bring by address. Their bytes lie in the object store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rekontext.database.instant import Instant

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "loras",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("object_key", sa.String(length=500), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("source", sa.String(length=500), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("used_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_loras_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_loras")),
        sa.UniqueConstraint("object_key", name=op.f("uq_loras_object_key")),
    )
    op.create_index("ix_loras_account", "loras", ["account_id", "used_at"])
    op.create_index("ix_loras_age", "loras", ["used_at"])

    op.create_table(
        "lora_sources",
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("lora_id", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=500), nullable=False),
        sa.Column("seen_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_lora_sources_account_id")),
        sa.ForeignKeyConstraint(["lora_id"], ["loras.id"], name=op.f("fk_lora_sources_lora_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account_id", "digest", name=op.f("pk_lora_sources")),
    )
    op.create_index("ix_lora_sources_lora", "lora_sources", ["lora_id"])
