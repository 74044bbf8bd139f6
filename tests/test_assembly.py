"""Putting the service together, and what a start that fails leaves behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from rekontext import assembly
from rekontext.accounts import Acts
from rekontext.assembly import assemble
from rekontext.database import DatabaseUnavailable
from rekontext.settings import Settings
from tests.api.studio import PillowFleet


@pytest.mark.parametrize(("owner", "name"), [(assembly, "create_app"), (Acts, "open_first")])
def test_a_start_that_fails_closes_the_database(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails once it is open: none of its threads is left."""

    def fail(*_args: object, **_values: object) -> None:
        raise DatabaseUnavailable("gone for a moment")

    before = _database_threads()
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(DatabaseUnavailable, match="gone for a moment"):
        assemble(
            Settings(_env_file=None, data_dir=tmp_path),  # type: ignore[call-arg]
            fleet=PillowFleet(),
            on_ready=lambda _: None,
            on_broken=lambda _: None,
        )
    assert _database_threads() == before


def test_the_disks_that_are_watched_have_loras_on_their_way(tmp_path: Path) -> None:
    """Where all else is kept elsewhere, these still go through the data folder."""

    def watched(**settings: object) -> list[Path]:
        away = {"data_dir": tmp_path, "store_url": "s3://bucket", "database_url": "postgresql://host/name"}
        return assembly._folders(Settings(_env_file=None, **away | settings))  # type: ignore[call-arg,arg-type]

    assert watched() == [tmp_path]
    assert watched(lora_bytes_max=0) == []
    assert watched(database_url=None, lora_bytes_max=0) == [tmp_path]
    assert watched(database_url=None, store_url=None) == [tmp_path, tmp_path / "store"]


def test_a_process_that_keeps_all_elsewhere_has_room(tmp_path: Path) -> None:
    """Its data folder is for LoRAs on their way, and nobody has brought one yet: a front never got ready."""
    data = tmp_path / "data"
    (tmp_path / "shared").mkdir()
    service = assemble(
        Settings(
            _env_file=None,  # type: ignore[call-arg]
            data_dir=data,
            database_url=f"sqlite:///{tmp_path}/shared/rekontext.db",
            store_url=f"file://{tmp_path}/shared/store",
            secret=SecretStr("a secret of thirty-two characters"),
        ),
        fleet=PillowFleet(),
        on_ready=lambda _: None,
        on_broken=lambda _: None,
    )
    try:
        assert asyncio.run(service.parts.disk.has_room())
        assert data.stat().st_mode & 0o777 == 0o700
    finally:
        service.parts.database.close()


def _database_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("database-")}
