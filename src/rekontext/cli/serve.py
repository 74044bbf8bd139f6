"""`rekontext serve`: the API, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
import uvicorn
from rich.console import Console
from rich.markup import escape

from rekontext.accounts import FIRST_ACCOUNT
from rekontext.api.http1 import Connection, make_room, server_config
from rekontext.assembly import Service, assemble
from rekontext.cli.failure import ENGINE_MISSING, CommandFailed
from rekontext.cli.settings import keep_private, settings_of
from rekontext.contract import Fleet, ModelCard
from rekontext.database import DatabaseUnavailable
from rekontext.fleet import LocalFleet, Opening, ProcessFleet
from rekontext.logs import configure, printable
from rekontext.models import MINI, is_hub_id, is_lora_on_hub, local_path, lora_and_strength
from rekontext.settings import EVERY_GPU, KEY_VARIABLE, Settings, variable

_log = structlog.get_logger(__name__)
_BACKLOG = 2048
_LASTING = (FileExistsError, NotADirectoryError)  # something else is where a folder should be
_LAST_ANSWERS_S = 5
_STOP_S_MAX: Final = 14
"""How long a stop may take once the time of grace is over. Process managers are told to wait 15 s."""
_OUT, _ERR = 1, 2
_NOT_THERE: Final = "there is no such folder or file, and it is no hub id (owner/name)"
_GPU_DRIVERS: Final = (Path("/proc/driver/nvidia"), Path("/dev/dxg"), Path("/dev/kfd"))
"""Where there is one of these, torch may see a GPU."""


class _Server(uvicorn.Server):
    """uvicorn, telling the service before it waits for open connections to end, and when nobody will wait.

    Args:
        bodies_s: how long bodies may go on to come then.
        stop_s_max: how long all else may take after that.
        give_up: called if it takes longer.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        bodies_s: float,
        on_shutdown: Callable[[], None],
        on_hurry: Callable[[], None],
        stop_s_max: float,
        give_up: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._bodies_s = bodies_s
        self._on_shutdown = on_shutdown
        self._on_hurry = on_hurry
        self._stop_s_max = stop_s_max
        self._give_up = give_up

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let what runs end; at a second signal hand it back. uvicorn itself would then leave all as it is.

        That a terminal is gone is said by its kernel and by its shell, so SIGHUP is no second one.
        """
        if self.should_exit and sig != signal.SIGHUP:
            asyncio.get_running_loop().call_soon_threadsafe(self._hurry)
        super().handle_exit(signal.SIGTERM, frame)

    def _hurry(self) -> None:
        """Hand back what runs; whoever is still sending after the last answers is cut off."""
        self._on_hurry()
        asyncio.get_running_loop().call_later(_LAST_ANSWERS_S, self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _wait_for_no_body(self) -> None:
        for connection in list(self.server_state.connections):
            assert isinstance(connection, Connection), "as `server_config` has it"
            connection.wait_for_no_body()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()
        asyncio.get_running_loop().call_later(self._bodies_s, self._wait_for_no_body)
        last = threading.Timer(self._bodies_s + self._stop_s_max, self._give_up)  # the loop may hang, too
        last.daemon = True
        last.start()
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()


def run_serve(
    *,
    host: str | None,
    port: int | None,
    model: str | None,
    lora: Sequence[str] | None,
    lora_folder: Path | None,
    data_dir: Path | None,
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; running edits then get `shutdown_grace_s` to end, until a second signal.

    Raises:
        CommandFailed: a setting is wrong, the address is taken, or the model or a LoRA isn't there or can't be loaded.
    """
    keep_private()
    settings = settings_of(host=host, port=port, model=model, lora=lora, lora_folder=lora_folder, data_dir=data_dir)
    if settings.has_device:
        _require_model(settings.model)
        _require_loras(settings.lora)
        _require_lora_folder(settings.lora_folder)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    broken: list[Exception] = []
    loaded: list[ModelCard] = []

    def ready(card: ModelCard) -> None:
        loaded.append(card)
        console.print(_ready(card, url, is_here=settings.has_device))

    def stop(fault: Exception) -> None:
        broken.append(fault)
        server.should_exit = True

    # The address before the key: a start that fails must not make a key that nobody gets to see.
    with _listen(settings) as listener:
        configure(level=settings.log_level, log_format=settings.log_format)
        make_room()
        # The port names this process in the database, and 0 would name two alike.
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        url = settings.external_url or _url(listener)
        service = _assemble(settings, ready, stop)
        server = _Server(
            # Edits may go on for the time of grace; then whoever waits for one is told where it will be.
            server_config(
                service.app,
                answers_s=math.ceil(settings.shutdown_grace_s) + _LAST_ANSWERS_S,
                refused=service.metrics.refused,
            ),
            bodies_s=settings.shutdown_grace_s,
            on_shutdown=service.hang_up,
            on_hurry=service.hurry,
            stop_s_max=_STOP_S_MAX,
            give_up=_give_up,
        )
        console.print(_greeting(url, service, settings))
        # uvicorn hands a signal on when all is done: let both kinds end as a Ctrl-C does, with nothing amiss.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _heed_hang_up(server)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        _let_go(_OUT, _ERR)
    if broken:
        why = f"the service broke: {broken[0]!r}" if loaded else _why(broken[0], settings)
        raise CommandFailed(why, exit_code=1) from broken[0]
    # All is closed, but for a model that is still being loaded, which can't be stopped. Taking Python and PyTorch
    # apart takes seconds, and whoever stopped us waits for them.
    for out in (sys.stdout, sys.stderr):
        if out is not None:  # as where it was closed before we were started
            out.flush()
    os._exit(0)


def _give_up() -> None:
    """End now: what is waited for, a database say, doesn't answer. Edits go back when their leases are over."""
    _log.error("stop_given_up")
    os._exit(1)


def _heed_hang_up(server: uvicorn.Server) -> None:
    """End in good order when the terminal goes away, unless that is to be ignored, as under nohup."""

    def hung_up(sig: int, frame: FrameType | None) -> None:
        _let_go(_OUT, _ERR)
        server.handle_exit(sig, frame)

    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hung_up)


def _let_go(*files: int) -> None:
    """Write no more to a terminal or a pipe that is gone."""
    ends = select.poll()
    for file in files:
        ends.register(file, 0)
    for file, _ in ends.poll(0):  # asked for nothing, it tells of those only that are gone
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file)
        os.close(nowhere)


def _assemble(settings: Settings, ready: Callable[[ModelCard], None], stop: Callable[[Exception], None]) -> Service:
    try:
        return assemble(settings, fleet=_fleet(settings), on_ready=ready, on_broken=stop)
    except (DatabaseUnavailable, OSError) as fault:
        raise CommandFailed(str(fault), exit_code=1) from fault
    except ValueError as fault:
        # A setting's, as an unfit secret is: no new start mends it, unless only a disk isn't there yet.
        may_pass = isinstance(fault.__cause__, OSError) and not isinstance(fault.__cause__, _LASTING)
        raise CommandFailed(str(fault), exit_code=1 if may_pass else 2) from fault


def _fleet(settings: Settings) -> Fleet | None:
    """A process for each device, or this one for a CPU alone that never sleeps; None for no device at all.

    A GPU that hangs takes its process along: whoever watches it must be in another.
    """
    if not settings.has_device:
        return None
    devices = _every_gpu() if settings.device == (EVERY_GPU,) else settings.device
    is_cpu = devices == ("cpu",) or not (devices or _has_gpu_driver())
    opening = Opening(
        model=settings.model,
        device=devices[0] if devices else None,
        dtype=settings.dtype,
        cache_folder=settings.data_dir / "engine",
        compiled=settings.compiled,
        batch=settings.batch,
        loras=settings.lora,
        lora_folder=settings.lora_folder,
    )
    if is_cpu and settings.idle_s is None:
        return LocalFleet(opening)
    return ProcessFleet(opening, devices=devices or ("",), idle_s=settings.idle_s, standby=settings.standby)


def _has_gpu_driver() -> bool:
    """Whether the engine may choose a GPU. Only torch would know, and takes long to import."""
    return any(driver.exists() for driver in _GPU_DRIVERS)


def _every_gpu() -> tuple[str, ...]:
    try:
        from rekontext.engine.precision import every_gpu
    except ImportError as fault:
        raise CommandFailed(ENGINE_MISSING.format(fault=fault), exit_code=1) from fault
    if not (found := every_gpu()):
        raise CommandFailed(f"{variable('device')} is {EVERY_GPU}, but torch sees no GPU here", exit_code=1)
    return found


def _require_model(model: str) -> None:
    """Stop at a path that isn't there, before the first start makes a key. All else is the engine's to find out.

    Raises:
        CommandFailed: it is no path that exists, and can't be a hub id.
    """
    if model == MINI or is_hub_id(model) or local_path(model).exists():
        return
    raise CommandFailed(f"the model {model} can't be loaded: {_NOT_THERE}")


def _require_loras(entries: Sequence[str]) -> None:
    """The same for what is merged into it."""
    for entry in entries:
        name, _ = lora_and_strength(entry)
        if not (local_path(name).exists() or is_lora_on_hub(name)):
            raise CommandFailed(f"the LoRA {name} can't be loaded: {_NOT_THERE}")


def _require_lora_folder(folder: Path | None) -> None:
    """Stop where it can't be looked into: nothing would be on offer, and nobody told why."""
    try:
        with os.scandir(folder) if folder is not None else contextlib.nullcontext():
            return
    except OSError as fault:
        raise CommandFailed(f"the folder of LoRAs {folder} can't be read: {fault.strerror}") from fault


def _listen(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as fault:
        why = str(fault.strerror).partition(" (while")[0]  # Python adds the address, which stands before it here
        raise CommandFailed(
            f"can't listen on {settings.host} port {settings.port} ({why}); try another --port or --host",
            exit_code=1,
        ) from fault


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - recognised, not bound
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _greeting(url: str, service: Service, settings: Settings) -> str:
    lines = [
        f"[bold]Rekontext[/] on [bold]{url}[/]: playground at {url}/, console at {url}/console, docs at {url}/docs.",
    ]
    first = service.first_key
    if first is not None:
        lines.append(f"Your API key, shown this once: [bold]{first.secret}[/]")
        lines.append(f"  export {KEY_VARIABLE}={first.secret}")
        lines.append(
            f'It may do everything, on the account "{FIRST_ACCOUNT}" with ${settings.first_credits_usd} of credits.'
        )
        lines.append("It is kept as a hash only; write it down.")
    else:
        another = f"rekontext keys create {shlex.quote(printable(service.oldest_account))}"
        lines.append(f"For another API key: {escape(another)}")
        if not service.is_administered:
            lines.append("There is no admin key: add --scope admin --scope edit --scope read to make one.")
    if settings.has_device:
        lines.append(f"Loading {escape(settings.model)} …")
    else:
        lines.append("No device here: waiting to learn the model from a process with devices on the same database …")
    return "\n".join(lines)


def _ready(card: ModelCard, url: str, *, is_here: bool) -> str:
    where = f"on {card.device}" if is_here else "in other processes"
    size = f"{card.parameters / 1e6:,.1f} M parameters in {card.dtype} {where}"
    return (
        f"[green]Ready[/]: {escape(card.title)}, {size}. Try it in another terminal, with a key in {KEY_VARIABLE}:\n"
        f'  curl --fail-with-body {url}/v1/flux-kontext-dev -H "x-api-key: ${KEY_VARIABLE}" \\\n'
        '    -F input_image=@photo.jpg -F prompt="make it night" -o edited.png'
    )


def _why(fault: Exception, settings: Settings) -> str:
    if isinstance(fault, ImportError):
        return ENGINE_MISSING.format(fault=fault)
    reason = str(fault) if isinstance(fault, ValueError) else f"{type(fault).__name__}: {fault}"
    what = f"the model {settings.model}{' with its LoRAs' if settings.lora else ''}"
    return f"{what} can't be loaded: {reason}"
