"""Uploaded files are listed to their owner."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rekontext.database import AccountId
from rekontext.jobs import assets
from rekontext.jobs.assets import Asset, AssetUnknown, UploadsFull
from rekontext.jobs.objects import asset_key
from tests.jobs.office import ALICE, BOB, Office


def upload(office: Office, name: str, *, account: AccountId = ALICE, size: int = 3, bytes_max: int = 6) -> Asset:
    asset = Asset(
        id=name,
        account=account,
        object_key=asset_key(name),
        content_type="image/png",
        file_name=f"{name}.png",
        bytes=size,
        created_at=office.clock.now(),
    )
    office.database.transact_sync(lambda tx: assets.add(tx, asset.account, [asset], bytes_max=bytes_max, kept_s=3600))
    return asset


def test_files_are_listed(office: Office) -> None:
    """Newest first, and to their own account only."""
    made = []
    for name in ("one", "two"):
        office.clock.advance(1)
        made.append(upload(office, name))
    assert office.database.read_sync(lambda tx: assets.of_account(tx, ALICE)) == made[::-1]
    assert office.database.read_sync(lambda tx: assets.of_account(tx, BOB)) == []


def test_an_account_keeps_so_many_bytes_and_no_more(office: Office) -> None:
    """Uploads cost nothing: one account could fill the disk with them, and nobody's edits would be accepted."""
    office.open_account(BOB)
    upload(office, "one")
    gone_at = office.clock.now() + timedelta(hours=1)
    office.clock.advance(60)
    upload(office, "two")
    with pytest.raises(
        UploadsFull, match=f"have 6 bytes and may have 6. .* the oldest goes by itself at {gone_at:%Y-%m-%d %H:%M} UTC"
    ):
        upload(office, "three", size=1)
    upload(office, "another's", account=BOB)
    assert [asset.id for asset in office.database.read_sync(lambda tx: assets.of_account(tx, ALICE))] == ["two", "one"]


def test_what_is_removed_makes_room(office: Office) -> None:
    """And is nobody's any more; others never find it."""
    one = upload(office, "one")
    upload(office, "two")

    def get(account: AccountId) -> Asset:
        return office.database.read_sync(lambda tx: assets.get(tx, "one", account=account))

    with pytest.raises(AssetUnknown):
        get(BOB)
    assert get(ALICE) == one
    assert office.database.read_sync(lambda tx: assets.kept_bytes(tx, ALICE)) == 6
    for _ in range(2):
        office.database.transact_sync(lambda tx: assets.forget(tx, one))
    assert office.database.read_sync(lambda tx: assets.kept_bytes(tx, ALICE)) == 3
    assert office.database.read_sync(lambda tx: assets.kept_bytes(tx, BOB)) == 0
    with pytest.raises(AssetUnknown, match="no upload one"):
        get(ALICE)
    upload(office, "three")
