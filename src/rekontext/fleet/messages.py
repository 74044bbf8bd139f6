"""What the service's process and an engine's process say to each other, and the pipe it goes through.

Messages are pickled: both ends are this package, one started by the other, and nobody else has the socket.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rekontext.contract import (
    BatchMode,
    EditRefused,
    EditRequest,
    EditResult,
    EngineFault,
    ModelCard,
    Preview,
    Progress,
)

if TYPE_CHECKING:
    from rekontext.engine.outlook import Outlook

_LENGTH_BYTES: Final = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What an engine is opened with.

    Attributes:
        model, device, dtype, batch, loras, lora_folder: as `rekontext.engine.Engine.open` takes them.
        cache_folder: where measured step times and compiled code are kept between runs.
        compiled: whether to compile the transformer before the first edit.
    """

    model: str = "mini"
    device: str | None = None
    dtype: str | None = None
    cache_folder: Path | None = None
    compiled: bool = False
    batch: BatchMode = "exact"
    loras: tuple[str, ...] = ()
    lora_folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run this edit. Its number is the sender's, who may send one request twice."""

    number: int
    request: EditRequest


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """Stop it within a step; no answer comes."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The model is loaded; it took so long, without the imports."""

    card: ModelCard
    opening_s: float


@dataclass(frozen=True, kw_only=True)
class NotOpened:
    """It can't be; the process ends."""

    fault: Exception


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The engine can't go on; the process ends."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """How far an edit is."""

    number: int
    news: Progress | Preview


@dataclass(frozen=True, kw_only=True)
class Done:
    """An edit's end."""

    number: int
    outcome: EditResult | EditRefused | EngineFault


@dataclass(frozen=True, kw_only=True)
class Looked:
    """The engine's outlook now.

    Attributes:
        keys: of the edits that it has taken in, by number: what they are called in the outlook.
    """

    outlook: Outlook
    keys: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A line for the log."""

    logger: str
    level: int
    text: str


class Channel:
    """One end of the pipe. Messages arrive whole and in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._outgoing: asyncio.Queue[object] = asyncio.Queue()
        self._sending = asyncio.create_task(self._send())

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """On one end of a socket pair, which is closed with it."""
        return cls(*await asyncio.open_connection(sock=end))

    def post(self, message: object) -> None:
        """Send without waiting. What the other end can't take any more is dropped: it knows nothing of us then."""
        self._outgoing.put_nowait(message)

    async def receive(self) -> object:
        """The next message.

        Raises:
            EOFError: the other end has closed, or is gone.
        """
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as end:
            raise EOFError("the other end has closed") from end
        return await asyncio.to_thread(pickle.loads, body)

    async def flush(self) -> None:
        """Wait until what was posted is sent, or can't be."""
        await self._outgoing.join()

    def hang_up(self) -> None:
        """Close this end: the other gets `EOFError`. What wasn't sent yet never is."""
        self._sending.cancel()
        self._writer.transport.abort()  # a close would wait for one that takes nothing any more

    async def _send(self) -> None:
        while True:
            message = await self._outgoing.get()
            try:
                if self._writer.is_closing():
                    continue
                # A picture has megabytes; other coroutines go on meanwhile.
                body = await asyncio.to_thread(pickle.dumps, message, pickle.HIGHEST_PROTOCOL)
                del message
                self._writer.write(len(body).to_bytes(_LENGTH_BYTES))
                self._writer.write(body)
                del body
                await self._writer.drain()
            except ConnectionError:
                pass  # `receive` says so
            except Exception:
                # Whoever waits for it must not wait for ever: the other end gets `EOFError`, and then so do we.
                _log.exception("a message can't be sent")
                self._writer.close()
            finally:
                self._outgoing.task_done()
