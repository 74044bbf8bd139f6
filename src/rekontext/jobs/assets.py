"""Files that accounts upload to use in edits: which there are and whose. Their bytes lie in the object store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, RowMapping, delete, func, insert, select

from rekontext.accounts import registry
from rekontext.database import AccountId
from rekontext.database.tables import assets
from rekontext.jobs.errors import JobRefused

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


class UploadsFull(JobRefused):
    """The account keeps as many bytes of uploads as it may."""

    code = "uploads_full"

    def __init__(self, *, kept: int, most: int, first_goes_at: datetime) -> None:
        super().__init__(
            f"This account's uploads have {kept} bytes and may have {most}. Delete some "
            "(DELETE /console/api/files/{id}), or send the picture as input_image itself; the oldest goes by itself at "
            f"{first_goes_at:%Y-%m-%d %H:%M} UTC."
        )


class AssetUnknown(JobRefused):
    """The account has no such upload, or it is gone."""

    code = "file_unknown"

    def __init__(self, asset: str) -> None:
        super().__init__(f"There is no upload {asset}")


def add(tx: Connection, account: AccountId, new: Sequence[Asset], *, bytes_max: int, kept_s: float) -> None:
    """Write down files of the account whose bytes are stored already: all, or none. Those that are stay as they are.

    Args:
        bytes_max: of all files of the account, these included.
        kept_s: how long files are kept.

    Raises:
        UploadsFull: they would have more. Then the new files' bytes belong to nobody.
        AccountUnknown: there is no such account.
    """
    assert all(asset.account == account for asset in new), "files of another account"
    # The lock makes uploads of one account come one after the other, which makes the sum exact.
    registry.lock(tx, account)
    known = set(tx.execute(select(assets.c.id).where(assets.c.id.in_([asset.id for asset in new]))).scalars())
    new = [asset for asset in new if asset.id not in known]
    if not new:
        return
    kept, oldest = tx.execute(
        select(func.coalesce(func.sum(assets.c.bytes), 0), func.min(assets.c.created_at)).where(
            assets.c.account_id == account
        )
    ).one()
    if kept + sum(asset.bytes for asset in new) > bytes_max:
        first_goes_at = (oldest or new[0].created_at) + timedelta(seconds=kept_s)
        raise UploadsFull(kept=int(kept), most=bytes_max, first_goes_at=first_goes_at)
    rows = [vars(asset) | {"account_id": account} for asset in new]
    tx.execute(insert(assets), [{name: value for name, value in row.items() if name != "account"} for row in rows])


def of_account(tx: Connection, account: AccountId, *, limit: int = 50) -> list[Asset]:
    """The account's files, newest first, at most `PAGE_MAX`."""
    query = (
        select(assets)
        .where(assets.c.account_id == account)
        .order_by(assets.c.created_at.desc(), assets.c.id)
        .limit(min(limit, PAGE_MAX))
    )
    return [_asset(row) for row in tx.execute(query).mappings()]


def get(tx: Connection, asset: str, *, account: AccountId) -> Asset:
    """One of the account's files.

    Raises:
        AssetUnknown: it has no such file.
    """
    row = tx.execute(select(assets).where(assets.c.id == asset, assets.c.account_id == account)).mappings().first()
    if row is None:
        raise AssetUnknown(asset)
    return _asset(row)


def forget(tx: Connection, asset: Asset) -> None:
    """Cross out a file whose bytes are removed already."""
    tx.execute(delete(assets).where(assets.c.id == asset.id))


def kept_bytes(tx: Connection, account: AccountId) -> int:
    """How many bytes the account's uploads have."""
    total = select(func.coalesce(func.sum(assets.c.bytes), 0)).where(assets.c.account_id == account)
    return int(tx.execute(total).scalar_one())


def _asset(row: RowMapping) -> Asset:
    values = dict(row)
    return Asset(account=values.pop("account_id"), **values)
