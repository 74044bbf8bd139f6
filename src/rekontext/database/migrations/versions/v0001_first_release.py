"""The tables of the first release, and the triggers that keep ledger and audit log append-only."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from rekontext.database.instant import Instant

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DOCUMENT = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
IMMUTABLE = ("ledger_transfers", "ledger_entries", "audit_log")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("monthly_cap_micros", sa.BigInteger()),
        sa.Column("in_flight_max", sa.Integer()),
        sa.Column("webhook_secret", sa.String(length=200), nullable=False),
        sa.CheckConstraint("in_flight_max > 0", name=op.f("ck_accounts_in_flight_positive")),
        sa.CheckConstraint("monthly_cap_micros >= 0", name=op.f("ck_accounts_cap_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("details", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(length=32), nullable=False),
        sa.Column("scopes", DOCUMENT, nullable=False),
        sa.Column("models", DOCUMENT),
        sa.Column("requests_per_minute", sa.Integer()),
        sa.Column("sync_response", sa.String(length=8), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant()),
        sa.Column("revoked_at", Instant()),
        sa.CheckConstraint("sync_response IN ('image', 'json')", name=op.f("ck_api_keys_sync_response_known")),
        sa.CheckConstraint("requests_per_minute > 0", name=op.f("ck_api_keys_rate_positive")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_api_keys_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_index("ix_api_keys_account", "api_keys", ["account_id"])

    op.create_table(
        "assets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("object_key", sa.String(length=500), nullable=False),
        sa.Column("content_type", sa.String(length=100), nullable=False),
        sa.Column("file_name", sa.String(length=255), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_assets_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assets")),
        sa.UniqueConstraint("object_key", name=op.f("uq_assets_object_key")),
    )
    op.create_index("ix_assets_account", "assets", ["account_id", "created_at"])
    op.create_index("ix_assets_age", "assets", ["created_at"])

    op.create_table(
        "balances",
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("free_micros", sa.BigInteger(), nullable=False),
        sa.Column("paid_micros", sa.BigInteger(), nullable=False),
        sa.Column("held_free_micros", sa.BigInteger(), nullable=False),
        sa.Column("held_paid_micros", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("free_micros >= 0", name=op.f("ck_balances_free_not_negative")),
        sa.CheckConstraint("held_free_micros >= 0", name=op.f("ck_balances_held_free_not_negative")),
        sa.CheckConstraint("held_paid_micros >= 0", name=op.f("ck_balances_held_paid_not_negative")),
        sa.CheckConstraint("paid_micros >= 0", name=op.f("ck_balances_paid_not_negative")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_balances_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_balances")),
    )
    op.create_table(
        "ledger_transfers",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("job_id", sa.String(length=64)),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(kind IN ('hold', 'capture', 'release')) = (job_id IS NOT NULL)",
            name=op.f("ck_ledger_transfers_job_named"),
        ),
        sa.CheckConstraint(
            "amount_micros >= 0 OR kind = 'correction'", name=op.f("ck_ledger_transfers_amount_not_negative")
        ),
        sa.CheckConstraint(
            "kind IN ('payment', 'grant', 'correction', 'hold', 'capture', 'release')",
            name=op.f("ck_ledger_transfers_kind_known"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_ledger_transfers_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_transfers")),
    )
    op.create_index("ix_ledger_transfers_account", "ledger_transfers", ["account_id", "id"])
    op.create_index(
        "ix_ledger_transfers_spend",
        "ledger_transfers",
        ["account_id", "at", "amount_micros"],
        **where("kind = 'capture'"),
    )
    op.create_index("uq_ledger_transfers_hold", "ledger_transfers", ["job_id"], unique=True, **where("kind = 'hold'"))
    op.create_index(
        "uq_ledger_transfers_settle",
        "ledger_transfers",
        ["job_id"],
        unique=True,
        **where("kind IN ('capture', 'release')"),
    )

    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=200), nullable=False),
        sa.Column("event_types", DOCUMENT, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_webhook_endpoints_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index("ix_webhook_endpoints_account", "webhook_endpoints", ["account_id"])

    op.create_table(
        "jobs",
        sa.Column("number", SERIAL, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64)),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("price_micros", sa.BigInteger(), nullable=False),
        sa.Column("parameters", DOCUMENT, nullable=False),
        sa.Column("input_key", sa.String(length=500)),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("faults", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200)),
        sa.Column("lease_until", Instant()),
        sa.Column("cancel_requested_at", Instant()),
        sa.Column("accepted_at", Instant(), nullable=False),
        sa.Column("available_at", Instant(), nullable=False),
        sa.Column("started_at", Instant()),
        sa.Column("finished_at", Instant()),
        sa.Column("files_until", Instant()),
        sa.Column("outputs", DOCUMENT),
        sa.Column("made", DOCUMENT),
        sa.Column("inference_s", sa.Float()),
        sa.Column("timings", DOCUMENT),
        sa.Column("error_code", sa.String(length=64)),
        sa.Column("error", sa.Text()),
        sa.CheckConstraint("(state = 'COMPLETED') = (outputs IS NOT NULL)", name=op.f("ck_jobs_completed_has_outputs")),
        sa.CheckConstraint("(state = 'FAILED') = (error IS NOT NULL)", name=op.f("ck_jobs_failed_has_error")),
        sa.CheckConstraint(
            "(state = 'PROCESSING') = (lease_until IS NOT NULL)", name=op.f("ck_jobs_processing_has_lease")
        ),
        sa.CheckConstraint("(state = 'PROCESSING') = (worker IS NOT NULL)", name=op.f("ck_jobs_processing_has_worker")),
        sa.CheckConstraint(
            "(state IN ('QUEUED', 'PROCESSING')) = (finished_at IS NULL)", name=op.f("ck_jobs_finished_has_time")
        ),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')", name=op.f("ck_jobs_state_known")
        ),
        sa.CheckConstraint("faults >= 0 AND faults <= attempt", name=op.f("ck_jobs_faults_are_attempts")),
        sa.CheckConstraint("price_micros >= 0", name=op.f("ck_jobs_price_not_negative")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_jobs_account_id")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_jobs_key_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
    )
    op.create_index("ix_jobs_files", "jobs", ["files_until"], **where("files_until IS NOT NULL"))
    op.create_index("ix_jobs_finished", "jobs", ["finished_at"], **where("finished_at IS NOT NULL"))
    op.create_index("ix_jobs_history", "jobs", ["account_id", "number"])
    op.create_index("ix_jobs_in_flight", "jobs", ["account_id", "state"], **where("state IN ('QUEUED', 'PROCESSING')"))
    op.create_index(
        "ix_jobs_inputs", "jobs", ["finished_at"], **where("finished_at IS NOT NULL AND input_key IS NOT NULL")
    )
    op.create_index("ix_jobs_leases", "jobs", ["lease_until"], **where("state = 'PROCESSING'"))
    op.create_index("ix_jobs_queue", "jobs", ["number"], **where("state = 'QUEUED'"))

    op.create_table(
        "ledger_entries",
        sa.Column("transfer_id", SERIAL, nullable=False),
        sa.Column("book", sa.String(length=16), nullable=False),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "book IN ('free', 'paid', 'held_free', 'held_paid', 'grants', 'payments', 'revenue')",
            name=op.f("ck_ledger_entries_book_known"),
        ),
        sa.CheckConstraint("amount_micros <> 0", name=op.f("ck_ledger_entries_amount_not_zero")),
        sa.ForeignKeyConstraint(["transfer_id"], ["ledger_transfers.id"], name=op.f("fk_ledger_entries_transfer_id")),
        sa.PrimaryKeyConstraint("transfer_id", "book", name=op.f("pk_ledger_entries")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("endpoint_id", sa.String(length=64)),
        sa.Column("job_id", sa.String(length=64)),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_type", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("due_at", Instant(), nullable=False),
        sa.Column("finished_at", Instant()),
        sa.CheckConstraint(
            "(state = 'PENDING') = (finished_at IS NULL)", name=op.f("ck_webhook_deliveries_finished_has_time")
        ),
        sa.CheckConstraint("state IN ('PENDING', 'DELIVERED', 'DEAD')", name=op.f("ck_webhook_deliveries_state_known")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_webhook_deliveries_account_id")),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], name=op.f("fk_webhook_deliveries_endpoint_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index("ix_webhook_deliveries_account", "webhook_deliveries", ["account_id", "created_at"])
    op.create_index("ix_webhook_deliveries_due", "webhook_deliveries", ["due_at"], **where("state = 'PENDING'"))
    op.create_index("ix_webhook_deliveries_finished", "webhook_deliveries", ["finished_at"])

    op.create_table(
        "idempotency_keys",
        sa.Column("account_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_digest", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_idempotency_keys_account_id")),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
            name=op.f("fk_idempotency_keys_job_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_age", "idempotency_keys", ["created_at"])
    op.create_index("ix_idempotency_keys_job", "idempotency_keys", ["job_id"])

    op.create_table(
        "webhook_attempts",
        sa.Column("id", SERIAL, autoincrement=True, nullable=False),
        sa.Column("delivery_id", sa.String(length=64), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["webhook_deliveries.id"], name=op.f("fk_webhook_attempts_delivery_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_attempts")),
    )
    op.create_index("ix_webhook_attempts_delivery", "webhook_attempts", ["delivery_id"])
    for table in IMMUTABLE:
        forbid_changes(table)


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def forbid_changes(table: str) -> None:
    message = f"rows of {table} are never changed or deleted"
    if op.get_bind().dialect.name == "sqlite":
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_forbid() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_forbid BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_forbid()"
    )
