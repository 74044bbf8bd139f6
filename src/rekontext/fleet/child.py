"""A process that serves one device, and the pipe to it: how it comes to be, and how it ends, one way or the other."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from rekontext.fleet.messages import Channel

WORKER: Final = (sys.executable, "-P", "-m", "rekontext.fleet.worker")
"""`-P`: the folder that the service was started in may hold files that are named as modules are."""
ENDING_S_MAX: Final = 12.0
"""How long a process may take to end before it is killed; longer than it gives itself."""


class Child:
    """One process, from `spawn` to `end`."""

    def __init__(self, process: Process, channel: Channel) -> None:
        self._process = process
        self.channel = channel

    @classmethod
    async def spawn(cls, command: Sequence[str], name: str, environment: Mapping[str, str]) -> Child:
        """Start the program that serves the socket whose number is added to `command`, and `name` after it.

        Raises:
            OSError, RuntimeError: no process can be made, or no thread to wait for it.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await Channel.over(ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    name,  # for whoever looks at the list of processes
                    stdin=DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,  # a Ctrl-C is the service's
                )
            except BaseException:
                channel.hang_up()
                raise
        return cls(process, channel)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet, as far as is known."""
        return self._process.returncode is None

    def kill(self) -> None:
        """End it at once, unless a driver holds it."""
        with suppress(ProcessLookupError):  # it has just ended by itself
            self._process.kill()

    async def end(self) -> None:
        """Have it end, one way or the other. One that a driver holds can't even be killed: it is left."""
        self.channel.hang_up()
        if await self._ended() is None:
            self.kill()
            await self._ended()

    async def death(self) -> str:
        """What it died of, for the log."""
        code = await self._ended()
        if code is None:
            return "its process closed its connection"
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (is the machine out of memory?)" if name == "SIGKILL" else "")

    async def _ended(self) -> int | None:
        """How the process ended, once it has; None if it takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDING_S_MAX):
                return await self._process.wait()
        return None


def placed(device: str, environment: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """What a process calls its device, and its environment: it sees one GPU, so nothing lands on another's memory."""
    if not device.startswith("cuda"):
        return device or None, dict(environment)
    index = device.partition(":")[2] or "0"
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return "cuda", {**environment, "CUDA_VISIBLE_DEVICES": index}
    visible = [each.strip() for each in environment["CUDA_VISIBLE_DEVICES"].split(",") if each.strip()]
    if int(index) >= len(visible):
        return device, dict(environment)  # which the engine refuses, saying how many there are
    return "cuda", {**environment, "CUDA_VISIBLE_DEVICES": visible[int(index)]}
