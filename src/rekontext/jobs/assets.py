"""Files that accounts upload to use in edits: which there are and whose. Their bytes lie in the object store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, RowMapping, insert, select

from rekontext.database import AccountId
from rekontext.database.tables import assets

PAGE_MAX: Final = 200


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One uploaded file. `id` is unguessable and, with `object_key`, drawn by the caller."""

    id: str
    account: AccountId
    object_key: str
    content_type: str
    file_name: str
    bytes: int
    created_at: datetime


def add(tx: Connection, asset: Asset) -> None:
    """Write down a file whose bytes are stored already."""
    values = vars(asset) | {"account_id": asset.account}
    del values["account"]
    tx.execute(insert(assets).values(**values))


def of_account(tx: Connection, account: AccountId, *, limit: int = 50) -> list[Asset]:
    """The account's files, newest first, at most `PAGE_MAX`."""
    query = (
        select(assets)
        .where(assets.c.account_id == account)
        .order_by(assets.c.created_at.desc(), assets.c.id)
        .limit(min(limit, PAGE_MAX))
    )
    return [_asset(row) for row in tx.execute(query).mappings()]


def _asset(row: RowMapping) -> Asset:
    values = dict(row)
    return Asset(account=values.pop("account_id"), **values)
