"""The installation's secret: made once, kept to its owner, and never the same for two purposes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rekontext.secret import FILE_NAME, SecretError, derive, open_secret
from tests.fakes import FakeRandomness


def test_it_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    """The second start finds what the first made."""
    made = open_secret(tmp_path / "kept", randomness=FakeRandomness(seed=1))
    assert open_secret(tmp_path / "kept", randomness=FakeRandomness(seed=2)) == made
    assert len(made) == 64
    assert (tmp_path / "kept" / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff"])
def test_a_damaged_secret_stops_the_start(tmp_path: Path, content: bytes) -> None:
    """A new one would make every key and link worthless without a word."""
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(SecretError, match=FILE_NAME):
        open_secret(tmp_path, randomness=FakeRandomness())


def test_a_folder_that_can_t_be_made_is_said(tmp_path: Path) -> None:
    """By its path."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SecretError, match="file"):
        open_secret(tmp_path / "file" / "data", randomness=FakeRandomness())


def test_purposes_have_nothing_in_common() -> None:
    """One for links tells nothing of the one for keys."""
    secret = os.urandom(32)
    assert derive(secret, "links") == derive(secret, "links") != derive(secret, "api keys")
    assert len(derive(secret, "links")) == 32
