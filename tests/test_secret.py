"""The installation's secret: made once, kept to its owner, and never the same for two purposes."""

from __future__ import annotations

import errno
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


class OvertakenRandomness:
    """While it is asked, another process makes the secret, from its start to its end or up to where it is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: bytes | None = None

    def __call__(self, count: int) -> bytes:
        if self.made is None:
            self.made = open_secret(self._folder, randomness=FakeRandomness(seed=1))
        return FakeRandomness(seed=2)(count)


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_processes_that_start_together_one_makes_it_and_both_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """It appears whole: neither is told that it is empty. On file systems without hard links too."""
    if not has_links:
        monkeypatch.setattr("os.link", _not_supported)
    other = OvertakenRandomness(tmp_path)
    assert open_secret(tmp_path, randomness=other) == other.made
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def _not_supported(*_paths: object, **_options: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


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
