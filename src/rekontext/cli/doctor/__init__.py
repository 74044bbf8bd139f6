"""`rekontext doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rekontext import __version__
from rekontext.cli.doctor import engine, machine, service
from rekontext.cli.doctor.finding import Finding, Verdict, told
from rekontext.cli.failure import CommandFailed
from rekontext.cli.settings import keep_private
from rekontext.settings import SettingsError, load_settings

__all__ = ["Finding", "Verdict", "examine", "run_doctor"]

_MARKS: Final[dict[Verdict, str]] = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[bold red]broken[/]"}


def run_doctor(
    *, model: str | None, lora: Sequence[str] | None, lora_folder: Path | None, data_dir: Path | None, books: bool
) -> None:
    """Print what was found; of the books only if asked to.

    Raises:
        CommandFailed: something is broken (exit code 1).
    """
    keep_private()
    findings = list(examine(model, data_dir, lora=lora, lora_folder=lora_folder, books=books))
    table = Table(title=f"Rekontext {__version__}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "", "what was found"):
        table.add_column(heading, overflow="fold")
    for each in findings:
        table.add_row(each.subject, _MARKS[each.verdict], escape(each.says))
    Console(highlight=False).print(table)
    broken = [each.subject for each in findings if each.verdict == "broken"]
    if broken:
        raise CommandFailed(f"broken: {', '.join(broken)}; the lines above say what to do", exit_code=1)


def examine(
    model: str | None,
    data_dir: Path | None = None,
    *,
    lora: Sequence[str] | None = None,
    lora_folder: Path | None = None,
    books: bool = False,
) -> Iterator[Finding]:
    """Look at everything; each finding stands by itself."""
    yield Finding(subject="python", verdict="ok", says=f"{platform.python_version()} at {sys.executable}")
    try:
        settings = load_settings(model=model, lora=lora, lora_folder=lora_folder, data_dir=data_dir)
    except SettingsError as fault:
        yield Finding(subject="settings", verdict="broken", says=str(fault))
        return
    yield Finding(subject="settings", verdict="ok", says="all REKONTEXT_* variables are understood")
    if settings.has_device:
        missing = engine.missing_packages()
        yield engine.look_at_packages(missing)
        if not missing:
            yield from engine.look_at_devices(settings)
            yield told("model", engine.look_at_model, settings)
            for entry in settings.lora:
                yield told("lora", partial(engine.look_at_lora, entry), settings)
            if settings.lora_folder is not None:
                yield from engine.look_at_lora_folder(settings.lora_folder, settings)
    else:
        says = "none here: processes with devices that share the database run the edits"
        yield Finding(subject="device", verdict="ok", says=says)
    yield told("database", service.look_at_database, settings)
    if books:
        yield told("books", service.look_at_books, settings)
    yield told("secret", service.look_at_secret, settings)
    yield told("store", service.look_at_store, settings)
    yield service.look_at_rate_limits(settings)
    yield service.look_at_safety(settings)
    yield machine.look_at_memory(settings)
    yield told("disk", machine.look_at_disk, settings)
