"""`rekontext serve`: the API, until a signal ends it."""

from __future__ import annotations

import contextlib
import math
import shlex
import socket
from pathlib import Path

import uvicorn
from rich.console import Console
from rich.markup import escape

from rekontext.api import KeyFile, KeyFileError
from rekontext.assembly import assemble
from rekontext.cli.failure import ENGINE_MISSING, CommandFailed
from rekontext.contract import ModelCard
from rekontext.fleet import LocalFleet
from rekontext.settings import Settings, SettingsError, load_settings

_BACKLOG = 2048


def run_serve(*, host: str | None, port: int | None, model: str | None, data_dir: Path | None) -> None:
    """Serve until SIGINT or SIGTERM; running edits then get `shutdown_grace_s` to end.

    Raises:
        CommandFailed: a setting is wrong, the address is taken, or the model can't be loaded.
    """
    try:
        settings = load_settings(host=host, port=port, model=model, data_dir=data_dir)
    except SettingsError as fault:
        raise CommandFailed(str(fault)) from fault
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    broken: list[Exception] = []

    def stop(fault: Exception) -> None:
        broken.append(fault)
        server.should_exit = True

    # The address before the key: a start that fails must not make a key that nobody gets to see.
    with _listen(settings) as listener:
        url = _url(listener)
        try:
            service = assemble(
                settings,
                fleet=LocalFleet(model=settings.model, device=settings.device, dtype=settings.dtype),
                on_ready=lambda card: console.print(_ready(card, url, service.key_file.path)),
                on_broken=stop,
            )
        except KeyFileError as fault:
            raise CommandFailed(str(fault)) from fault
        server = uvicorn.Server(
            uvicorn.Config(
                service.app,
                log_level=settings.log_level,
                timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s),
                server_header=False,
            )
        )
        console.print(_greeting(url, service.key_file, settings))
        with contextlib.suppress(KeyboardInterrupt):  # how a served Ctrl-C ends: as asked
            server.run(sockets=[listener])
    if broken:
        raise CommandFailed(_why(broken[0], settings.model), exit_code=1) from broken[0]


def _listen(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as fault:
        raise CommandFailed(
            f"can't listen on {settings.host} port {settings.port} ({fault.strerror}); try another --port or --host",
            exit_code=1,
        ) from fault


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - recognised, not bound
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _greeting(url: str, key_file: KeyFile, settings: Settings) -> str:
    lines = [f"[bold]Rekontext[/] on [bold]{url}[/], docs at {url}/docs. Loading {escape(settings.model)} …"]
    if key_file.is_new:
        lines.append(f"Your API key, shown this once: [bold]{key_file.key}[/]")
        lines.append(f"It is kept in {escape(str(key_file.path))}, which only you can read.")
    return "\n".join(lines)


def _ready(card: ModelCard, url: str, key_path: Path) -> str:
    size = f"{card.parameters / 1e6:,.1f} M parameters in {card.dtype} on {card.device}"
    read_key = escape(f"$(cat {shlex.quote(str(key_path))})")
    return (
        f"[green]Ready[/]: {escape(card.name)}, {size}. Try it:\n"
        f'  curl {url}/v1/flux-kontext-dev -H "x-api-key: {read_key}" \\\n'
        '    -F input_image=@photo.jpg -F prompt="make it night" -o edited.png'
    )


def _why(fault: Exception, model: str) -> str:
    if isinstance(fault, ImportError):
        return ENGINE_MISSING.format(fault=fault)
    reason = str(fault) if isinstance(fault, ValueError) else f"{type(fault).__name__}: {fault}"
    return f"the model {model} can't be loaded: {reason}"
