"""Alembic's entry: runs the migrations on the connection it is given. Not imported by the service itself."""

from __future__ import annotations

from alembic import context

from rekontext.database.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
