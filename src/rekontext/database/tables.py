"""Every table of the service, with the rules that the database itself keeps.

This file is the schema; `migrations/` is how an installed one gets there, and a test holds the two together.
It knows no queries. Money is in whole micro-dollars (1 USD = 1_000_000).
"""

from __future__ import annotations

from typing import Any, Final, NewType

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from rekontext.database.instant import Instant

AccountId = NewType("AccountId", str)
KeyId = NewType("KeyId", str)
JobId = NewType("JobId", str)
EndpointId = NewType("EndpointId", str)
DeliveryId = NewType("DeliveryId", str)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts up by itself only in a column declared exactly INTEGER.
_Serial: Final = BigInteger().with_variant(Integer(), "sqlite")
_Json: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _id(name: str = "id", **options: Any) -> Column[str]:
    return Column(name, String(64), **options)


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index over the rows that fulfil `where`, on both databases."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


def _account(*, nullable: bool = False) -> Column[str]:
    return Column("account_id", String(64), ForeignKey("accounts.id"), nullable=nullable)


installation = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("pepper_mark", String(64), nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

accounts = Table(
    "accounts",
    metadata,
    _id(primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("monthly_cap_micros", BigInteger),
    Column("in_flight_max", Integer),
    Column("webhook_secret", String(200), nullable=False),
    CheckConstraint("monthly_cap_micros >= 0", name="cap_not_negative"),
    CheckConstraint("in_flight_max > 0", name="in_flight_positive"),
)

api_keys = Table(
    "api_keys",
    metadata,
    _id(primary_key=True),
    _account(),
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("scopes", _Json, nullable=False),
    Column("models", _Json),
    Column("requests_per_minute", Integer),
    Column("sync_response", String(8), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    CheckConstraint("requests_per_minute > 0", name="rate_positive"),
    CheckConstraint("sync_response IN ('image', 'json')", name="sync_response_known"),
    Index("ix_api_keys_account", "account_id"),
)

balances = Table(
    "balances",
    metadata,
    Column("account_id", String(64), ForeignKey("accounts.id"), primary_key=True),
    Column("free_micros", BigInteger, nullable=False),
    Column("paid_micros", BigInteger, nullable=False),
    Column("held_free_micros", BigInteger, nullable=False),
    Column("held_paid_micros", BigInteger, nullable=False),
    CheckConstraint("free_micros >= 0", name="free_not_negative"),
    CheckConstraint("paid_micros >= 0", name="paid_not_negative"),
    CheckConstraint("held_free_micros >= 0", name="held_free_not_negative"),
    CheckConstraint("held_paid_micros >= 0", name="held_paid_not_negative"),
)

transfers = Table(
    "ledger_transfers",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _account(),
    Column("kind", String(16), nullable=False),
    Column("job_id", String(64)),  # no foreign key: the books outlive the job's record
    Column("amount_micros", BigInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("note", Text, nullable=False),
    CheckConstraint("kind IN ('payment', 'grant', 'correction', 'hold', 'capture', 'release')", name="kind_known"),
    CheckConstraint("(kind IN ('hold', 'capture', 'release')) = (job_id IS NOT NULL)", name="job_named"),
    CheckConstraint("amount_micros >= 0 OR kind = 'correction'", name="amount_not_negative"),
    _partial("uq_ledger_transfers_hold", "job_id", unique=True, where="kind = 'hold'"),
    _partial("uq_ledger_transfers_settle", "job_id", unique=True, where="kind IN ('capture', 'release')"),
    _partial("ix_ledger_transfers_spend", "account_id", "at", "amount_micros", where="kind = 'capture'"),
    Index("ix_ledger_transfers_account", "account_id", "id"),
)

entries = Table(
    "ledger_entries",
    metadata,
    Column("transfer_id", _Serial, ForeignKey("ledger_transfers.id"), nullable=False),
    Column("book", String(16), nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    PrimaryKeyConstraint("transfer_id", "book"),
    CheckConstraint("amount_micros <> 0", name="amount_not_zero"),
    CheckConstraint(
        "book IN ('free', 'paid', 'held_free', 'held_paid', 'grants', 'payments', 'revenue')", name="book_known"
    ),
)

_UNFINISHED: Final = "state IN ('QUEUED', 'PROCESSING')"

jobs = Table(
    "jobs",
    metadata,
    Column("number", _Serial, primary_key=True, autoincrement=True),
    _id(nullable=False, unique=True),
    _account(),
    Column("key_id", String(64), ForeignKey("api_keys.id")),
    Column("model", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("turn", BigInteger, nullable=False, server_default=text("0")),  # jobs of a lower one are claimed first
    Column("price_micros", BigInteger, nullable=False),
    Column("parameters", _Json, nullable=False),
    Column("input_key", String(500)),
    Column("webhook_url", Text),
    Column("attempt", Integer, nullable=False),  # the fencing number: one higher at each claim
    Column("faults", Integer, nullable=False),  # attempts that failed through our fault
    Column("worker", String(200)),
    Column("lease_until", Instant),
    Column("cancel_requested_at", Instant),
    Column("accepted_at", Instant, nullable=False),
    Column("available_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("files_until", Instant),  # when its outputs leave the store; null: not finished, or gone
    Column("outputs", _Json),
    Column("made", _Json),
    Column("inference_s", Float),
    Column("timings", _Json),
    Column("error_code", String(64)),
    Column("error", Text),
    Column("mask_key", String(500)),
    CheckConstraint("state IN ('QUEUED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')", name="state_known"),
    CheckConstraint("price_micros >= 0", name="price_not_negative"),
    CheckConstraint("faults >= 0 AND faults <= attempt", name="faults_are_attempts"),
    CheckConstraint(f"({_UNFINISHED}) = (finished_at IS NULL)", name="finished_has_time"),
    CheckConstraint("(state = 'PROCESSING') = (lease_until IS NOT NULL)", name="processing_has_lease"),
    CheckConstraint("(state = 'PROCESSING') = (worker IS NOT NULL)", name="processing_has_worker"),
    CheckConstraint("(state = 'COMPLETED') = (outputs IS NOT NULL)", name="completed_has_outputs"),
    CheckConstraint("(state = 'FAILED') = (error IS NOT NULL)", name="failed_has_error"),
    _partial("ix_jobs_queue", "number", where="state = 'QUEUED'"),
    _partial("ix_jobs_turns", "turn", "number", where="state = 'QUEUED'"),
    _partial("ix_jobs_in_flight", "account_id", "state", where=_UNFINISHED),
    _partial("ix_jobs_leases", "lease_until", where="state = 'PROCESSING'"),
    _partial("ix_jobs_finished", "finished_at", where="finished_at IS NOT NULL"),
    _partial("ix_jobs_inputs", "finished_at", where="finished_at IS NOT NULL AND input_key IS NOT NULL"),
    _partial("ix_jobs_files", "files_until", where="files_until IS NOT NULL"),
    Index("ix_jobs_history", "account_id", "number"),
    Index("ix_jobs_key", "key_id"),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("seen_at", Instant, nullable=False),
    Column("devices", _Json, nullable=False),
    Column("edit_s", Float),
    Column("profile", _Json, nullable=False),
    Column("progress", _Json, nullable=False, server_default=text("'{}'")),  # by job, of those that run there
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _account(),
    Column("key", String(255), nullable=False),
    Column("body_digest", String(64), nullable=False),
    # The key is claimed before its job is written, in the same transaction.
    Column(
        "job_id",
        String(64),
        ForeignKey("jobs.id", deferrable=True, initially="DEFERRED", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("account_id", "key"),
    Index("ix_idempotency_keys_age", "created_at"),
    Index("ix_idempotency_keys_job", "job_id"),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    _id(primary_key=True),
    _account(),
    Column("url", Text, nullable=False),
    Column("secret", String(200), nullable=False),
    Column("event_types", _Json, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("ix_webhook_endpoints_account", "account_id"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    _id(primary_key=True),
    _account(),
    Column("endpoint_id", String(64), ForeignKey("webhook_endpoints.id")),  # null: the job's own webhook_url
    Column("job_id", String(64)),  # no foreign key: the log may outlive the job's record
    Column("url", Text, nullable=False),
    Column("event_type", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),  # the fencing number: one higher at each claim
    Column("tries", Integer, nullable=False),  # with an outcome, since it was made or replayed
    Column("created_at", Instant, nullable=False),
    Column("replayed_at", Instant),
    Column("due_at", Instant, nullable=False),
    Column("finished_at", Instant),
    CheckConstraint("state IN ('PENDING', 'DELIVERED', 'DEAD')", name="state_known"),
    CheckConstraint("(state = 'PENDING') = (finished_at IS NULL)", name="finished_has_time"),
    _partial("ix_webhook_deliveries_due", "due_at", where="state = 'PENDING'"),
    _partial("ix_webhook_deliveries_age", "created_at", where="state = 'PENDING'"),
    _partial("ix_webhook_deliveries_turns", "account_id", "due_at", where="state = 'PENDING'"),
    _partial(
        "ix_webhook_deliveries_requested",
        "account_id",
        where="state = 'PENDING' AND (event_type = 'webhook.test' OR replayed_at IS NOT NULL)",
    ),
    Index("ix_webhook_deliveries_account", "account_id", "created_at"),
    Index("ix_webhook_deliveries_endpoint", "endpoint_id", "state"),
    Index("ix_webhook_deliveries_finished", "finished_at"),
)

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("delivery_id", String(64), ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), nullable=False),
    Column("at", Instant, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("status", Integer),
    Column("error", Text),
    Index("ix_webhook_attempts_delivery", "delivery_id"),
)

assets = Table(
    "assets",
    metadata,
    _id(primary_key=True),
    _account(),
    Column("object_key", String(500), nullable=False),
    Column("content_type", String(100), nullable=False),
    Column("file_name", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("object_key"),
    Index("ix_assets_account", "account_id", "created_at"),
    Index("ix_assets_age", "created_at"),
)

loras = Table(
    "loras",
    metadata,
    _id(primary_key=True),
    _account(),
    Column("object_key", String(500), nullable=False),
    Column("name", String(200), nullable=False),
    Column("source", String(500), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("used_at", Instant, nullable=False),
    UniqueConstraint("object_key"),
    Index("ix_loras_account", "account_id", "used_at"),
    Index("ix_loras_age", "used_at"),
)

lora_sources = Table(
    "lora_sources",
    metadata,
    _account(),
    Column("digest", String(64), nullable=False),
    Column("lora_id", String(64), ForeignKey("loras.id", ondelete="CASCADE"), nullable=False),
    Column("tag", String(500), nullable=False),
    Column("seen_at", Instant, nullable=False),
    PrimaryKeyConstraint("account_id", "digest"),
    Index("ix_lora_sources_lora", "lora_id"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("details", _Json, nullable=False),
)

IMMUTABLE: Final = (transfers.name, entries.name, audit_log.name)
"""Tables whose rows are never changed or deleted; triggers made by the first migration see to it."""
