"""The process that has one device, and the pipe between it and the service's."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
from pathlib import Path

import pytest

from rekontext.contract import EditRefused
from rekontext.fleet.child import WORKER
from rekontext.fleet.messages import Cancel, Channel, Logged
from rekontext.fleet.worker import _sendable, _ToChannel

SOON_S = 30.0


def test_a_worker_that_is_not_wanted_any_more_ends_without_a_word() -> None:
    """A service may be told to stop while its processes are still being made."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [*WORKER, str(theirs.fileno()), "a"]
        worker = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    ours.close()
    assert worker.communicate(timeout=SOON_S)[1] == ""
    assert worker.returncode == 0


def test_a_worker_takes_no_modules_from_where_the_service_was_started(tmp_path: Path) -> None:
    """That folder may be anybody's."""
    (tmp_path / "logging.py").write_text("raise SystemExit('taken from here')")
    ours, theirs = socket.socketpair()
    with theirs:
        command = [*WORKER, str(theirs.fileno()), "a"]
        worker = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    ours.close()
    assert "taken from here" not in worker.communicate(timeout=SOON_S)[1]


@pytest.mark.anyio
async def test_what_nobody_hears_any_more_is_dropped_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """A warning about it would be sent as well, and make the next one."""
    ours, theirs = socket.socketpair()
    channel = await Channel.over(ours)
    theirs.close()
    for number in range(20):
        channel.post(Cancel(number=number))
    async with asyncio.timeout(SOON_S):
        await channel.flush()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    channel.hang_up()


@pytest.mark.anyio
async def test_a_library_that_logs_wrongly_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """What it wanted to say is told with where it said it, and the next line arrives."""
    ours, theirs = socket.socketpair()
    channel, other = await Channel.over(ours), await Channel.over(theirs)
    handler = _ToChannel(channel, asyncio.get_running_loop())
    logger = logging.Logger("some.library")
    logger.addHandler(handler)
    logger.warning("this is deprecated", FutureWarning)
    logger.warning("all is %s", "well")
    async with asyncio.timeout(SOON_S):
        assert await other.receive() == Logged(logger="some.library", level=logging.WARNING, text="all is well")
    assert "Message: 'this is deprecated'" in capsys.readouterr().err
    for each in (channel, other):
        each.hang_up()


def test_why_a_model_can_not_be_loaded_is_told_in_pythons_own_kinds() -> None:
    """A kind of the engine's would have the service load torch."""
    assert repr(_sendable(EditRefused("no such device"))) == "ValueError('no such device')"
    assert repr(_sendable(ModuleNotFoundError("no torch"))) == "ImportError('no torch')"
    assert repr(_sendable(OSError("no room"))) == "EngineFault('OSError: no room')"
