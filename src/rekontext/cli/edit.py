"""`rekontext edit`: one photo edited on this machine, with its progress shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from rekontext import AGENT, contract
from rekontext.api.documents import MINI_NOTICE
from rekontext.api.parameters import KontextParameters, parse
from rekontext.api.workbench import numbered
from rekontext.cli.computing import computing, limits_of, open_engine, photo_in
from rekontext.cli.failure import CommandFailed
from rekontext.cli.output import check_writable, format_asked, write
from rekontext.cli.settings import settings_of
from rekontext.dialling import AllowList
from rekontext.masks import MaskRefused
from rekontext.pictures import Fetcher, Photo, PictureRefused, decode, decode_mask, encode, inspect, is_url
from rekontext.settings import Settings
from rekontext.sources import draw_seed

_FLAGS: Final = {"num_inference_steps": "--steps", "input_image": "IN", "prompt": "PROMPT"}


def run_edit(
    *,
    source: str,
    mask: str | None,
    out: Path,
    model: str | None,
    lora: Sequence[str] | None,
    given: Mapping[str, object],
) -> None:
    """Edit `source` and write `out`, and further pictures beside it; on failure all is left as it was.

    Args:
        source, mask: files, or URLs.
        given: the parameters by their names on the wire.

    Raises:
        CommandFailed: the input is bad, or the model can't be used.
    """
    check_writable(out)
    output_format = format_asked(out, given["output_format"])
    parameters = _checked({**given, "output_format": output_format, "input_image": source})
    outs = [out.with_name(stem + out.suffix) for stem in numbered(out.stem, parameters.num_images)]
    for other in outs[1:]:
        check_writable(other)
    settings = settings_of(model=model, lora=lora)
    photo = _picture(source, settings, decode)
    marked = None if mask is None else _picture(mask, settings, _decode_mask)
    seed = draw_seed() if parameters.seed is None else parameters.seed

    console = Console(stderr=True, highlight=False, markup=False)
    with computing():
        with console.status(f"Loading {settings.model} …"):
            engine = open_engine(settings)
        started = time.monotonic()
        with engine, _progress(console, parameters) as on_step:
            pictures = engine.variants(
                photo,
                parameters.prompt,
                pictures=parameters.num_images,
                mask=marked,
                steps=parameters.num_inference_steps,
                guidance=parameters.guidance,
                seed=seed,
                aspect_ratio=parameters.aspect_ratio,
                acceleration=parameters.acceleration,
                on_step=on_step,
            )
    took = f"{time.monotonic() - started:.1f} s" + (f" for {len(outs)}" if len(outs) > 1 else "")
    encoded = [encode(picture, parameters.output_format, parameters.output_quality) for picture in pictures]
    write(dict(zip(outs, encoded, strict=True)))
    for at, (each, picture) in enumerate(zip(outs, pictures, strict=True)):
        typer.echo(f"{each}  {picture.width}x{picture.height}  seed {contract.seed_at(seed, at)}  {took}")
    if engine.card.is_mini:
        console.print(MINI_NOTICE, style="dim")


def _checked(given: Mapping[str, object]) -> KontextParameters:
    parameters, problems = parse(given)
    if parameters is None:
        raise CommandFailed(
            "; ".join(f"{_flag(each.parameter)} {each.reason} (allowed: {each.allowed})" for each in problems)
        )
    return parameters


def _flag(parameter: str) -> str:
    return _FLAGS.get(parameter) or f"--{parameter.replace('_', '-')}"


def _picture(source: str, settings: Settings, read: Callable[[Photo], Image.Image]) -> Image.Image:
    if not is_url(source):
        return photo_in(Path(source), settings, read)
    try:
        return read(inspect(asyncio.run(_fetched(source, settings)), limits_of(settings)))
    except (PictureRefused, MaskRefused) as fault:
        raise CommandFailed(str(fault)) from fault


def _decode_mask(mask: Photo) -> Image.Image:
    return decode_mask(mask, "white")


async def _fetched(url: str, settings: Settings) -> bytes:
    # Whoever types a URL here may reach whatever this machine reaches: no address is out of bounds.
    async with Fetcher(
        timeout_s=settings.fetch_timeout_s,
        redirects_max=settings.fetch_redirects_max,
        agent=AGENT,
        allow=AllowList.everything(),
    ) as fetcher:
        return await fetcher.fetch(url, bytes_max=settings.picture_bytes_max)


@contextmanager
def _progress(console: Console, parameters: KontextParameters) -> Iterator[contract.OnProgress]:
    """A bar with the step count and the remaining time; yields what the engine is to call after each step."""
    what = f" {parameters.num_images} pictures" if parameters.num_images > 1 else ""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        TextColumn("{task.fields[remaining]}", style="cyan"),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(f"Preparing{what}", total=parameters.num_inference_steps, remaining="")
        yield lambda progress: _show(bar, task, progress, what)


def _show(bar: Progress, task: TaskID, progress: contract.Progress | contract.Preview, what: str) -> None:
    if isinstance(progress, contract.Preview):
        return
    is_last = progress.step == progress.steps
    left = "" if progress.remaining_s is None or is_last else f"{progress.remaining_s:.0f} s left"
    description = f"{'Decoding' if is_last else 'Denoising'}{what}"
    bar.update(task, completed=progress.step, remaining=left, description=description)
