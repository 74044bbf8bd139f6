"""The process that has one device: an engine, driven by messages from the service's process.

    python -m rekontext.fleet.worker FD NAME

It serves until the other end of the socket `FD` closes, however that came about, so it never outlives the service.
Until it is told which model to open it stands by: it imports the engine and touches no device.
NAME is for whoever looks at the list of processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from rekontext.contract import EditRefused, EditResult, EngineFault
from rekontext.fleet.local import LocalFleet
from rekontext.fleet.messages import (
    Broken,
    Cancel,
    Channel,
    Done,
    Logged,
    Looked,
    NotOpened,
    Opened,
    Opening,
    Submit,
    Told,
)

CLOSING_S_MAX: Final = 10.0
"""How long the engine may take to end its step and keep what it has learned."""
_SHOW_EVERY_S: Final = 0.1
_log = logging.getLogger(__name__)


class EngineServer:
    """Serves one fleet over one channel."""

    def __init__(self, channel: Channel, fleet: LocalFleet, prepared: asyncio.Future[None]) -> None:
        self._channel = channel
        self._fleet = fleet
        self._prepared = prepared
        self._edits: dict[int, asyncio.Task[None]] = {}
        self._ids: dict[int, str] = {}
        self._news = asyncio.Event()

    async def serve(self) -> None:
        """Load the model, then run what comes, until the other end closes or the engine breaks."""
        listening = asyncio.create_task(self._listen())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait([listening, working], return_when=asyncio.FIRST_COMPLETED)
            for task in (working, listening):
                if task.done():
                    task.result()
        finally:
            for task in (listening, working, *self._edits.values()):
                task.cancel()

    async def _work(self) -> None:
        try:
            await self._prepared
            began_s = time.monotonic()
            await self._fleet.start()
        except Exception as fault:
            if not isinstance(fault, ValueError | ImportError):  # those say what to do
                _log.exception("the model can't be loaded")
            self._channel.post(NotOpened(fault=_sendable(fault)))
            return
        self._channel.post(Opened(card=self._fleet.card, opening_s=time.monotonic() - began_s))
        showing = asyncio.create_task(self._keep_showing())
        try:
            await self._fleet.watch()
        except EngineFault as fault:
            self._channel.post(Broken(why=str(fault)))
        finally:
            showing.cancel()

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._channel.receive()
            except EOFError:
                return
            match message:
                case Submit():
                    self._ids[message.number] = message.request.id
                    self._edits[message.number] = asyncio.create_task(self._edit(message))
                case Cancel():
                    if task := self._edits.get(message.number):
                        task.cancel()
            del message  # a photo may hang on it

    async def _edit(self, order: Submit) -> None:
        number, request = order.number, order.request
        del order
        outcome: EditResult | EditRefused | EngineFault

        try:
            running = self._fleet.edit(request, on_progress=lambda news: self._tell(Told(number=number, news=news)))
            del request
            outcome = await running
        except EditRefused as refused:
            outcome = refused
        except EngineFault as fault:
            outcome = fault
        except Exception as fault:  # it is ours; whoever waits for the edit must not wait for ever
            _log.exception("an edit failed")
            outcome = EngineFault(f"{type(fault).__name__}: {fault}")
        finally:
            del self._edits[number], self._ids[number]
        self._show()  # first, so that nobody reckons with an edit that is done
        self._channel.post(Done(number=number, outcome=outcome))

    def _tell(self, told: Told) -> None:
        self._channel.post(told)
        self._news.set()

    async def _keep_showing(self) -> None:
        """Send the outlook when there is news, but not for every step of a small model."""
        while True:
            self._show()
            await self._news.wait()
            self._news.clear()
            await asyncio.sleep(_SHOW_EVERY_S)

    def _show(self) -> None:
        with suppress(EngineFault):  # it broke or was closed: that is told by itself
            outlook, keys = self._fleet.outlook()
            named = {number: keys[id] for number, id in self._ids.items() if id in keys}
            self._channel.post(Looked(outlook=outlook, keys=named))


class _ToChannel(logging.Handler):
    """Log lines go where the service's go."""

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel
        self._loop = loop
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = Logged(logger=record.name, level=record.levelno, text=self.format(record))
        except Exception:  # as Python's own handlers do: a library that logs wrongly goes on
            self.handleError(record)
            return
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._channel.post, line)


def _sendable(fault: Exception) -> Exception:
    """The fault as one of Python's own kinds or of the contract's: of another it would bring its module, and torch."""
    if isinstance(fault, ImportError):
        return ImportError(str(fault))
    if isinstance(fault, ValueError):
        return ValueError(str(fault))
    return EngineFault(f"{type(fault).__name__}: {fault}")


async def _main(end: socket.socket, open_fleet: Callable[[Opening], LocalFleet], prepare: Callable[[], None]) -> None:
    channel = await Channel.over(end)
    logging.getLogger().addHandler(_ToChannel(channel, asyncio.get_running_loop()))
    preparing = asyncio.ensure_future(asyncio.to_thread(prepare))
    with suppress(EOFError):
        opening = await channel.receive()
        assert isinstance(opening, Opening), f"the first message is {opening!r}"
        fleet = open_fleet(opening)
        await EngineServer(channel, fleet, preparing).serve()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S_MAX):
                await channel.flush()
                await fleet.close()
    # What is still being imported or loaded, or a device that hangs, isn't waited for.
    os._exit(0)


def _import_engine() -> None:
    import rekontext.engine.engine  # noqa: F401


def main(
    open_fleet: Callable[[Opening], LocalFleet] = LocalFleet, prepare: Callable[[], None] = _import_engine
) -> None:
    """Serve the socket that was handed down."""
    # The service decides when this process ends, also where a signal goes to all of them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as end:
        asyncio.run(_main(end, open_fleet, prepare))


if __name__ == "__main__":
    main()
