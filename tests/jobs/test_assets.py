"""Uploaded files are listed to their owner."""

from __future__ import annotations

from rekontext.jobs import assets
from rekontext.jobs.assets import Asset
from rekontext.jobs.objects import asset_key
from tests.jobs.office import ALICE, BOB, Office


def test_files_are_listed(office: Office) -> None:
    """Newest first, and to their own account only."""
    made = []
    for name in ("one", "two"):
        office.clock.advance(1)
        asset = Asset(
            id=name,
            account=ALICE,
            object_key=asset_key(name),
            content_type="image/png",
            file_name=f"{name}.png",
            bytes=3,
            created_at=office.clock.now(),
        )
        office.database.transact_sync(lambda tx, asset=asset: assets.add(tx, asset))  # type: ignore[misc]
        made.append(asset)
    assert office.database.read_sync(lambda tx: assets.of_account(tx, ALICE)) == made[::-1]
    assert office.database.read_sync(lambda tx: assets.of_account(tx, BOB)) == []
