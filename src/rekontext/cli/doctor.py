"""`rekontext doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rekontext import __version__
from rekontext.cli.failure import CommandFailed, not_permitted
from rekontext.contract import EditRefused
from rekontext.models import MINI, is_hub_id, is_lora_on_hub, local_path, lora_and_strength, offered_loras
from rekontext.settings import EVERY_GPU, Settings, SettingsError, load_settings, variable

if TYPE_CHECKING:
    import torch

    from rekontext.database import Database

Verdict = Literal["ok", "note", "broken"]

_MARKS: Final[dict[Verdict, str]] = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[bold red]broken[/]"}
_ENGINE_PACKAGES: Final = (
    *("torch", "diffusers", "transformers", "safetensors", "tokenizers", "einops"),
    *("accelerate", "huggingface_hub", "numpy"),
)
_GIB: Final = 2**30
_MINI_NEEDS_BYTES: Final = 3 * _GIB // 2
_DISK_NEEDED_BYTES: Final = _GIB
_TRIED_KEY: Final = "doctor/tried"
_FAULTS_SHOWN_MAX: Final = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at, and what to do about it unless it is "ok"."""

    subject: str
    verdict: Verdict
    says: str


def run_doctor(
    *, model: str | None, lora: Sequence[str] | None, lora_folder: Path | None, data_dir: Path | None, books: bool
) -> None:
    """Print what was found; of the books only if asked to.

    Raises:
        CommandFailed: something is broken (exit code 1).
    """
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
        missing = [name for name in _ENGINE_PACKAGES if importlib.util.find_spec(name) is None]
        yield _packages(missing)
        if not missing:
            yield from _devices(settings)
            yield _told("model", _model, settings)
            for entry in settings.lora:
                yield _told("lora", partial(_lora, entry), settings)
            if settings.lora_folder is not None:
                yield from _lora_folder(settings.lora_folder, settings)
    else:
        says = "none here: processes with devices that share the database run the edits"
        yield Finding(subject="device", verdict="ok", says=says)
    yield _told("database", _database, settings)
    if books:
        yield _told("books", _books, settings)
    yield _told("secret", _secret, settings)
    yield _told("store", _store, settings)
    yield _rate_limits(settings)
    yield _safety(settings)
    yield _memory(settings)
    yield _told("disk", _disk, settings)


def _told(subject: str, look: Callable[[Settings], Finding], settings: Settings) -> Finding:
    """What `look` finds. That this user may not look there is a finding, too, and no reason to keep back the others."""
    try:
        return look(settings)
    except PermissionError as fault:
        return Finding(subject=subject, verdict="broken", says=not_permitted(fault))


def _packages(missing: list[str]) -> Finding:
    if missing:
        return Finding(
            subject="engine",
            verdict="broken",
            says=f"{', '.join(missing)} not installed; run: pip install 'rekontext[engine]'",
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _ENGINE_PACKAGES[:3])
    return Finding(subject="engine", verdict="ok", says=versions)


def _devices(settings: Settings) -> Iterator[Finding]:
    """Each device that would be computed on, and how the model would be held there if it is a GPU."""
    import torch

    from rekontext.engine.precision import choose_device, every_gpu

    names = every_gpu() if settings.device == (EVERY_GPU,) else settings.device or (None,)
    if not names:
        says = f"{EVERY_GPU} GPUs were asked for and torch sees none; install a driver or unset {variable('device')}"
        yield Finding(subject="device", verdict="broken", says=says)
    for name in names:
        try:
            device = choose_device(name)
        except EditRefused as fault:
            says = f"{fault}; install a driver, or change {variable('device')}"
            yield Finding(subject="device", verdict="broken", says=says)
            continue
        if device.type == "cuda":
            gpu = torch.cuda.get_device_properties(device)
            yield Finding(subject="device", verdict="ok", says=f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB")
            if settings.dtype != "float32" and not settings.compiled:
                yield _gpu_kernels(device)
            yield _gpu_memory(settings, device)
        else:
            gpu_there = "" if torch.cuda.is_available() else "no GPU; "
            says = f"{gpu_there}{os.cpu_count()} CPU cores, enough for mini only"
            yield Finding(subject="device", verdict="ok" if settings.model == MINI else "note", says=says)
    if not torch.cuda.is_available():
        yield _gpu_memory(settings, None)


def _gpu_kernels(gpu: torch.device) -> Finding:
    """Whether steps are as fast as they can be."""
    from rekontext.engine.tuning import missing_kernels

    why = missing_kernels(gpu)
    says = f"steps take longer than they need to: our own can't run, {why}" if why else "our own run here"
    return Finding(subject="gpu kernels", verdict="note" if why else "ok", says=says)


def _model(settings: Settings) -> Finding:
    """Opens a model that is cheap to open; of a large one only looks whether it is there."""
    if settings.model != MINI:
        return _large_model(settings.model)
    from rekontext.engine import Engine

    try:
        with Engine.open(MINI, device="cpu") as engine:
            card = engine.card
    except ValueError as fault:
        return Finding(subject="model", verdict="broken", says=f"mini: {fault}; install rekontext again")
    return Finding(subject="model", verdict="ok", says=f"mini opens: {card.parameters / 1e6:.1f} M parameters")


def _large_model(name: str) -> Finding:
    path = local_path(name)
    if path.exists():
        from rekontext.engine import CheckpointError
        from rekontext.engine.checkpoint import model_sizes

        try:
            model_sizes(name)
        except CheckpointError as fault:
            return Finding(subject="model", verdict="broken", says=str(fault))
        return Finding(subject="model", verdict="ok", says=f"{path} is there, its weights not read")
    if not is_hub_id(name):
        return Finding(
            subject="model", verdict="broken", says=f"{name} is not there; give a folder, a file or a hub id"
        )
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "model_index.json"), str):
        return Finding(subject="model", verdict="ok", says=f"{name} is in the local hub cache (not opened)")
    return Finding(subject="model", verdict="note", says=f"{name} is not here yet: the first start downloads it")


def _lora(entry: str, settings: Settings) -> Finding:
    name, strength = lora_and_strength(entry)
    if not local_path(name).exists() and is_lora_on_hub(name):
        return Finding(
            subject="lora",
            verdict="note",
            says=f"{name} isn't here, so it is of the hub: the first start downloads it",
        )
    return _fit(entry, settings, called=name, what_for=f"to be merged at strength {strength:g}")


def _lora_folder(folder: Path, settings: Settings) -> Iterator[Finding]:
    """What is on offer, each with whether it fits, and what would be if it were called otherwise."""
    subject = "loras on offer"
    try:
        there = [file for file in sorted(folder.iterdir()) if file.suffix == ".safetensors" and not file.is_dir()]
    except OSError as fault:
        says = f"{folder} can't be read: {fault.strerror}; make it, or change {variable('lora_folder')}"
        yield Finding(subject=subject, verdict="broken", says=says)
        return
    offers = offered_loras(folder)
    if offers:
        yield Finding(subject=subject, verdict="ok", says=f"{len(offers)} in {folder}: {', '.join(offers)}")
    else:
        yield Finding(subject=subject, verdict="note", says=f"none: {folder} has no .safetensors file to be asked for")
    for name, file in offers.items():
        yield _told("lora", partial(_fit, f"{file}:1", called=name, what_for="for edits that ask for it"), settings)
    if nameless := [file.name for file in there if file not in offers.values()]:
        allowed = "allowed are 1 to 100 letters, digits, _, . and -, a letter or a digit first"
        says = f"{', '.join(nameless)} can't be asked for by name: {allowed}; rename what is to be on offer"
        yield Finding(subject=subject, verdict="note", says=says)


def _fit(entry: str, settings: Settings, *, called: str, what_for: str) -> Finding:
    """Whether a LoRA that is here fits the model, as far as that is here too."""
    from rekontext.engine import CheckpointError
    from rekontext.engine.checkpoint import require_loras

    is_here = settings.model == MINI or local_path(settings.model).exists()
    try:
        require_loras(settings.model if is_here else None, [entry])
    except CheckpointError as fault:
        return Finding(subject="lora", verdict="broken", says=str(fault))
    fits = f"fits the transformer of {settings.model}" if is_here else "can be read"
    return Finding(subject="lora", verdict="ok", says=f"{called} {fits}, {what_for}")


def _gpu_memory(settings: Settings, gpu: torch.device | None) -> Finding:
    """The ways of holding the model on a GPU, and which one would be taken on this one; None for a machine without."""
    import torch

    from rekontext.engine import CheckpointError
    from rekontext.engine.checkpoint import model_sizes
    from rekontext.engine.fp8 import missing_units
    from rekontext.engine.memory import Sizes, memory_plans

    subject = "gpu memory"
    path = local_path(settings.model)
    try:
        sizes = model_sizes(settings.model) if path.exists() else Sizes()
    except CheckpointError as fault:
        return Finding(subject=subject, verdict="broken", says=str(fault))
    whose = path.name if path.exists() else "FLUX.1 Kontext [dev]"
    if gpu is None:
        needs = "; ".join(str(plan) for plan in memory_plans(sizes, 0))
        return Finding(subject=subject, verdict="ok", says=f"no GPU here; {whose} needs {needs}")
    free_bytes, _ = torch.cuda.mem_get_info(gpu)
    possible = memory_plans(sizes, free_bytes, has_fp8=not missing_units(gpu))
    fitting = [plan for plan in possible if plan.fits]
    table = "; ".join(f"{plan} ({'fits' if plan.fits else 'does not fit'})" for plan in possible)
    if not fitting and settings.model != MINI:
        return Finding(
            subject=subject, verdict="broken", says=f"{whose} does not fit: {table}; free memory or take a larger GPU"
        )
    says = f"{whose} would be held as {fitting[0].name}: {table}" if fitting else f"{whose} would not fit: {table}"
    return Finding(subject=subject, verdict="ok", says=says)


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    """The database as it is: looking changes no table.

    Raises:
        ValueError: the URL names none.
    """
    from rekontext.database import Database

    database = Database.open(settings.database, connections=1, migrate=False)
    try:
        yield database
    finally:
        database.close()


def _database(settings: Settings) -> Finding:
    from rekontext.database import DatabaseUnavailable
    from rekontext.database.address import sqlite_file
    from rekontext.installation import unmade_database

    subject = "database"
    path = settings.database_file
    file = sqlite_file(settings.database)
    missing = unmade_database(settings)
    for place in () if file is None else (file.parent, file):
        if place.exists() and not os.access(place, os.W_OK):  # reading alone, as below, would go well
            says = f"{place} can't be written; run this as the service's user, which must be able to write there"
            return Finding(subject=subject, verdict="broken", says=says)
    if missing:
        if settings.database_url and not missing.parent.is_dir():  # only the data folder is made by a start
            says = f"there is no folder {missing.parent}; make it, or set {variable('database_url')}"
            return Finding(subject=subject, verdict="broken", says=says)
        return Finding(subject=subject, verdict="ok", says=f"SQLite, {missing} (to be made)")
    try:
        with _opened(settings) as database:
            database.check_sync()
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=f"{fault}; set {variable('database_url')}")
    except DatabaseUnavailable as fault:
        where = str(path) if settings.database_url is None else f"see {variable('database_url')}"
        return Finding(subject=subject, verdict="broken", says=f"{fault} ({where})")
    says = f"SQLite, {path}" if settings.database_url is None else f"{database.dialect} answers"
    return Finding(subject=subject, verdict="ok", says=says)


def _books(settings: Settings) -> Finding:
    """Adds up every entry of the ledger, at one moment of a service that goes on."""
    from sqlalchemy import Connection, func, inspect, select

    from rekontext.accounts import integrity
    from rekontext.database import DatabaseUnavailable, unhurried
    from rekontext.database.tables import balances, transfers
    from rekontext.installation import unmade_database

    def look(tx: Connection) -> tuple[str, list[str]]:
        if not inspect(tx).has_table(transfers.name):
            return "none yet", []
        unhurried(tx)
        accounts, booked = (
            tx.execute(select(func.count()).select_from(table)).scalar_one() for table in (balances, transfers)
        )
        return f"{booked} transfers of {accounts} accounts", integrity.faults(tx)

    subject = "books"
    if unmade_database(settings):
        return Finding(subject=subject, verdict="ok", says="none yet")
    try:
        with _opened(settings) as database:
            read, faults = database.read_sync(look)
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=str(fault))
    except DatabaseUnavailable as fault:
        return Finding(subject=subject, verdict="broken", says=f"not read: {fault}")
    if faults:
        more = len(faults) - _FAULTS_SHOWN_MAX
        shown = "; ".join(faults[:_FAULTS_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")
        says = f"{read}, in micro-dollars: {shown}; no command mends this: put back a backup that is right"
        return Finding(subject=subject, verdict="broken", says=says)
    right = "each adds up to 0, balances are what they say, what is held is what unfinished edits cost"
    return Finding(subject=subject, verdict="ok", says=read if read == "none yet" else f"{read}: {right}")


def _secret(settings: Settings) -> Finding:
    """Whether it is the one under which the database's keys are hashed. Makes none: that is the first start's."""
    from sqlalchemy import Connection, inspect

    from rekontext.accounts import peppers
    from rekontext.database import DatabaseUnavailable
    from rekontext.database.tables import installation
    from rekontext.installation import has_secret, pepper_of, secret_of, unmade_database, where_secret, wrong_secret

    subject, where = "secret", where_secret(settings)
    is_there = has_secret(settings)
    unknown = Finding(subject=subject, verdict="ok", says=where if is_there else f"{where} (to be made)")
    if unmade_database(settings):
        return unknown

    def look(tx: Connection) -> bool | None:
        if not inspect(tx).has_table(installation.name):
            return None
        if mine is None:
            return False if peppers.is_known(tx) else None
        return peppers.fits(tx, mine)

    try:
        mine = pepper_of(secret_of(settings)) if is_there else None
        with _opened(settings) as database:
            fits = database.read_sync(look)
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=str(fault))
    except DatabaseUnavailable:
        return Finding(subject=subject, verdict="note", says=f"{where}; the database can't say whether it fits")
    if fits is None:
        return unknown
    if fits:
        return Finding(subject=subject, verdict="ok", says=f"{where} fits the database")
    return Finding(subject=subject, verdict="broken", says=str(wrong_secret(settings)))


def _rate_limits(settings: Settings) -> Finding:
    from rekontext.accounts import RequestLimiter
    from rekontext.accounts.limits import CountsNotShared
    from rekontext.sources import SystemClock

    async def check() -> None:
        limiter = RequestLimiter(clock=SystemClock(), storage=settings.rate_limits_url)
        try:
            await limiter.check()
        finally:
            await limiter.close()

    subject, name = "rate limits", variable("rate_limits_url")
    try:
        asyncio.run(check())
    except ValueError as fault:
        return Finding(subject=subject, verdict="broken", says=f"{fault}; set {name}")
    except CountsNotShared as fault:
        says = f"{fault}; until it does, each process counts by itself; see {name}"
        return Finding(subject=subject, verdict="note", says=says)
    where = "memory" if settings.rate_limits_url == "memory://" else "Redis"
    return Finding(subject=subject, verdict="ok", says=f"counted in {where}")


def _safety(settings: Settings) -> Finding:
    """Shows the check a gray picture."""
    from PIL import Image

    from rekontext.assembly import safety_of
    from rekontext.pictures import MEDIA_TYPES, encode
    from rekontext.safety import PictureWithheld, SafetyUnavailable

    subject, check = "safety check", safety_of(settings)
    if check is None:
        return Finding(
            subject=subject, verdict="ok", says=f"none: pictures go out as they are; see {variable('safety_url')}"
        )

    async def try_it() -> None:
        gray = encode(Image.new("RGB", (64, 64), (128, 128, 128)), "png")
        async with check:
            await check.clear(gray, content_type=MEDIA_TYPES["png"], prompt="gray", request_id="doctor", pauses_s=())

    try:
        asyncio.run(try_it())
    except PictureWithheld as refusal:
        return Finding(subject=subject, verdict="note", says=f"it answers, but lets no gray picture out: {refusal}")
    except SafetyUnavailable as fault:
        return Finding(
            subject=subject, verdict="broken", says=f"{fault}: no edit would be done; see {variable('safety_url')}"
        )
    return Finding(subject=subject, verdict="ok", says="it answers")


def _store(settings: Settings) -> Finding:
    """Writes a small object and removes it, as the service will."""
    from rekontext.pictures import open_store

    async def try_it() -> None:
        store = open_store(settings.store)
        await store.put(_TRIED_KEY, b"rekontext doctor was here", content_type="text/plain")
        await store.get(_TRIED_KEY)
        await store.delete(_TRIED_KEY)

    subject, folder = "store", settings.data_dir.absolute() / "store"
    if settings.store_url is None and not folder.exists():  # made by the first start; the disk's finding says if it can
        return Finding(subject=subject, verdict="ok", says=f"{folder} (to be made)")
    where = "" if settings.store_url else f"{folder}: "
    try:
        asyncio.run(try_it())
    except Exception as fault:  # each store fails in ways of its own
        why = str(fault).strip().partition("\n")[0] or type(fault).__name__
        if settings.store_url:
            todo = f"see {variable('store_url')} and the store's credentials"
        else:
            todo = "make room there" if os.strerror(errno.ENOSPC) in why else "let this user write there"
        return Finding(subject=subject, verdict="broken", says=f"{where}{why}; {todo}")
    return Finding(subject=subject, verdict="ok", says=f"{where}an object can be written, read and removed")


def _memory(settings: Settings) -> Finding:
    free = _available_memory_bytes()
    if free is None:
        return Finding(subject="memory", verdict="note", says="this system does not tell how much is free")
    if settings.has_device and settings.model == MINI and free < _MINI_NEEDS_BYTES:
        needed = _MINI_NEEDS_BYTES / _GIB
        return Finding(
            subject="memory",
            verdict="broken",
            says=f"{free / _GIB:.1f} GiB free, mini needs {needed:.1f} GiB; close something",
        )
    return Finding(subject="memory", verdict="ok", says=f"{free / _GIB:.1f} GiB free")


def _available_memory_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _disk(settings: Settings) -> Finding:
    place = data_dir = settings.data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Finding(
            subject="disk",
            verdict="broken",
            says=f"{place} can't be written; run this as the service's user, or set REKONTEXT_DATA_DIR",
        )
    if free < _DISK_NEEDED_BYTES:
        return Finding(
            subject="disk",
            verdict="broken",
            says=f"{free / _GIB:.1f} GiB free for {data_dir}; make room or set REKONTEXT_DATA_DIR",
        )
    return Finding(subject="disk", verdict="ok", says=f"{free / _GIB:.1f} GiB free for {data_dir}")
