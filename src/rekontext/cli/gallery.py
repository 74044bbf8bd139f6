"""`rekontext gallery`: a grid of photos and instructions, so that one look tells what a model does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rekontext.cli.computing import computing, open_engine, photo_in
from rekontext.cli.output import check_writable, format_of, write
from rekontext.cli.settings import settings_of
from rekontext.pictures import encode
from rekontext.samples import sample_photos

INSTRUCTIONS: Final = (
    "make it night",
    "make it black and white",
    "give it a warm sunset look",
    "invert the colors",
    "blur it",
    "pencil sketch",
    "pixelate it",
    "add a vignette",
    "add bokeh lights",
    "add a red frame",
)
"""Edits that the embedded model does well."""

_QUALITY: Final = 80


def run_gallery(
    *,
    out: Path,
    photos: Sequence[Path],
    instructions: Sequence[str],
    model: str | None,
    lora: Sequence[str] | None,
    seed: int,
    steps: int,
) -> None:
    """Draw the grid and write it to `out`.

    Raises:
        CommandFailed: a photo can't be read, `out` can't be written, or the model can't be opened.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rekontext.gallery import draw

    output_format = format_of(out)
    check_writable(out)
    settings = settings_of(model=model, lora=lora)
    pictures = [photo_in(path, settings) for path in photos or sample_photos()]
    console = Console(stderr=True, markup=False)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with computing(), open_engine(settings) as engine, Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("drawing", total=len(pictures) * len(instructions or INSTRUCTIONS))
        sheet = draw(
            engine,
            pictures,
            instructions or INSTRUCTIONS,
            seed=seed,
            steps=steps,
            on_cell=lambda done, _: bar.update(task, completed=done),
        )
    write({out: encode(sheet, output_format, _QUALITY)})
    console.print(f"{out}: {len(pictures)} photos, {len(instructions or INSTRUCTIONS)} instructions", highlight=False)
