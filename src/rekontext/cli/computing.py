"""What commands share that compute on this machine: photos from files, and the engine's faults told in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from rekontext.cli.failure import ENGINE_MISSING, CommandFailed
from rekontext.masks import MaskRefused
from rekontext.pictures import Photo, PictureLimits, PictureRefused, decode, inspect
from rekontext.settings import Settings

if TYPE_CHECKING:
    from rekontext.engine import Engine


@contextmanager
def computing() -> Iterator[None]:
    """What is in the block uses the engine.

    Raises:
        CommandFailed: instead of whatever fails in it.
    """
    try:
        yield
    except ImportError as fault:
        raise CommandFailed(ENGINE_MISSING.format(fault=fault), exit_code=1) from fault
    except ValueError as fault:  # what it was given is wrong, and the engine says what
        raise CommandFailed(str(fault)) from fault
    except (RuntimeError, MemoryError) as fault:  # out of memory, or the device's own
        why = str(fault).partition("\n")[0]
        raise CommandFailed(f"the engine failed: {type(fault).__name__}: {why}", exit_code=1) from fault


def open_engine(settings: Settings) -> Engine:
    """The engine for the settings' model and LoRAs, to be used in `computing`."""
    from rekontext.engine import Engine

    return Engine.open(settings.model, device=settings.first_device, dtype=settings.dtype, loras=settings.lora)


def photo_in(path: Path, settings: Settings, read: Callable[[Photo], Image.Image] = decode) -> Image.Image:
    """The picture in a file, as the service would take it.

    Args:
        read: what makes pixels of it.

    Raises:
        CommandFailed: there is none, or it can't be used.
    """
    limits = limits_of(settings)
    try:
        with path.open("rb") as file:
            data = file.read(limits.bytes_max + 1)  # one more is enough for `inspect` to refuse it
    except FileNotFoundError:
        raise CommandFailed(f"there is no file {path}") from None
    except OSError as fault:
        raise CommandFailed(f"{path} can't be read: {fault.strerror}") from fault
    try:
        return read(inspect(data, limits))
    except PictureRefused as fault:
        raise CommandFailed(f"{path}: {fault}") from fault
    except MaskRefused as fault:
        raise CommandFailed(f"{path} {fault.reason}") from fault


def limits_of(settings: Settings) -> PictureLimits:
    """What pictures may have."""
    return PictureLimits(bytes_max=settings.picture_bytes_max, pixels_max=settings.picture_pixels_max)
