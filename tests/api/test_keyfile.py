"""The one key of an installation without accounts."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rekontext.api import InvalidKey, KeyFileError, SingleKey, open_key_file

pytestmark = pytest.mark.anyio


def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    """The first start makes it, later ones read it, nobody else can."""
    first = open_key_file(tmp_path / "new" / "data")
    again = open_key_file(tmp_path / "new" / "data")
    assert (first.is_new, again.is_new) == (True, False)
    assert first.key == again.key
    assert len(first.key) >= 40
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert open_key_file(tmp_path / "other").key != first.key


def test_a_key_file_that_can_t_be_used_is_said(tmp_path: Path) -> None:
    """An empty file would let an empty key in; a file in the folder's place helps nobody."""
    (tmp_path / "api-key").write_text("\n")
    with pytest.raises(KeyFileError, match="holds no key; remove the file"):
        open_key_file(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="can't be kept"):
        open_key_file(tmp_path / "file")


async def test_only_the_key_itself_is_good() -> None:
    """Neither a part of it nor anything longer."""
    keys = SingleKey("rk_abc")
    assert (await keys.authenticate("rk_abc")).name == "owner"
    for wrong in ("", "rk_ab", "rk_abcd", "RK_ABC", "rk_äbc"):
        with pytest.raises(InvalidKey):
            await keys.authenticate(wrong)
