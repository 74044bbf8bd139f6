"""Tables, migrations and transactions, on SQLite (embedded) or PostgreSQL. Knows no rules of the service."""

from rekontext.database.tables import AccountId, DeliveryId, EndpointId, JobId, KeyId
from rekontext.database.transactions import Database, DatabaseUnavailable, Synchronous, unhurried

__all__ = [
    "AccountId",
    "Database",
    "DatabaseUnavailable",
    "DeliveryId",
    "EndpointId",
    "JobId",
    "KeyId",
    "Synchronous",
    "unhurried",
]
