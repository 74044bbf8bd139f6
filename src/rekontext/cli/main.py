"""The `rekontext` command: its subcommands and their options, and one line for whatever goes wrong.

A command's work is in its own module, imported when the command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from typer.exceptions import TyperException

from rekontext import __version__
from rekontext.cli import operate
from rekontext.cli.cores import share_cores
from rekontext.cli.failure import CommandFailed
from rekontext.contract import GUIDANCE_DEFAULT, STEPS_DEFAULT, STEPS_MAX, STEPS_MIN

EXIT_BAD_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130

app = typer.Typer(
    name="rekontext",
    help="FLUX.1 Kontext \\[dev] as an image-editing API on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(operate.accounts, name="accounts")
app.add_typer(operate.keys, name="keys")
app.add_typer(operate.credits, name="credits")

Model = Annotated[
    str | None,
    typer.Option(help='"mini" (inside this package), a folder, a file or a hub id.', show_default="mini"),
]

Lora = Annotated[
    list[str] | None,
    typer.Option(
        help="A LoRA to merge into the model: FILE or FILE:STRENGTH; may be given often.", show_default="none"
    ),
]


LoraFolder = Annotated[
    Path | None,
    typer.Option(
        help="A folder whose .safetensors files edits may ask for by name, to have them merged.", show_default="none"
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 when it did what was asked, 2 for bad input, 1 for anything else."""
    share_cores()
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except CommandFailed as fault:
        _complain(str(fault))
        code = fault.exit_code
    except TyperException as fault:
        if message := fault.format_message():  # none after `rekontext` alone, which printed the help
            _complain(f"{message} (--help tells how it is used)")
        code = EXIT_BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped")
        code = EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"rekontext {__version__}")
        raise typer.Exit


@app.command()
def edit(
    photo: Annotated[str, typer.Argument(metavar="IN", help="The picture: a jpeg, png, gif or webp file, or a URL.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What to do to it, such as "make it night".')],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the edited picture.")],
    mask: Annotated[
        str | None, typer.Option(help="A picture of IN's shape: white where that may change, black where it stays.")
    ] = None,
    model: Model = None,
    lora: Lora = None,
    num_images: Annotated[
        int, typer.Option(help="1 to 4 pictures, of the seeds that follow: OUT, and beside it OUT-2 and so on.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same picture.", show_default="random")
    ] = None,
    steps: Annotated[int, typer.Option(help="4 to 50; more take longer and add detail.")] = STEPS_DEFAULT,
    guidance: Annotated[float, typer.Option(help="0 to 10; how closely to follow the prompt.")] = GUIDANCE_DEFAULT,
    aspect_ratio: Annotated[str, typer.Option(help="Shape of the answer, such as 16:9.")] = "match_input_image",
    acceleration: Annotated[
        str, typer.Option(help="none (exact), regular or high: leave transformer passes out.")
    ] = "none",
    output_format: Annotated[
        str | None, typer.Option(help="png, jpg or webp.", show_default="from the name of OUT")
    ] = None,
    output_quality: Annotated[int, typer.Option(help="0 to 100, for jpg and webp.")] = 90,
) -> None:
    """Edit a picture on this machine."""
    from rekontext.cli.edit import run_edit

    run_edit(
        source=photo,
        mask=mask,
        out=out,
        model=model,
        lora=lora,
        given={
            "prompt": prompt,
            "num_images": num_images,
            "seed": seed,
            "num_inference_steps": steps,
            "guidance": guidance,
            "aspect_ratio": aspect_ratio,
            "acceleration": acceleration,
            "output_format": output_format,
            "output_quality": output_quality,
        },
    )


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")] = None,
    model: Model = None,
    lora: Lora = None,
    lora_folder: LoraFolder = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for everything that is kept.", show_default="data")
    ] = None,
) -> None:
    """Serve the API. Every other setting is a REKONTEXT_* variable or a line in .env."""
    from rekontext.cli.serve import run_serve

    run_serve(host=host, port=port, model=model, lora=lora, lora_folder=lora_folder, data_dir=data_dir)


@app.command()
def gallery(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the grid: a .png, .jpg or .webp.")],
    photo: Annotated[
        list[Path] | None, typer.Option(help="A row; may be given often.", show_default="two sample photos")
    ] = None,
    instruction: Annotated[
        list[str] | None, typer.Option(help="A column; may be given often.", show_default="what mini does well")
    ] = None,
    model: Model = None,
    lora: Lora = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 42,
    steps: Annotated[int, typer.Option(help="4 to 50.", min=STEPS_MIN, max=STEPS_MAX)] = STEPS_DEFAULT,
) -> None:
    """Draw a grid of photos and instructions with what the model makes of them."""
    from rekontext.cli.gallery import run_gallery

    run_gallery(
        out=out,
        photos=photo or [],
        instructions=instruction or [],
        model=model,
        lora=lora,
        seed=seed,
        steps=steps,
    )


@app.command()
def doctor(
    model: Model = None,
    lora: Lora = None,
    lora_folder: LoraFolder = None,
    data_dir: operate.DataDir = None,
    books: Annotated[bool, typer.Option("--books", help="Add up the whole ledger, too.")] = False,
) -> None:
    """Check whether this machine is ready, and say what to do where it is not."""
    from rekontext.cli.doctor import run_doctor

    run_doctor(model=model, lora=lora, lora_folder=lora_folder, data_dir=data_dir, books=books)


@app.command()
def backup(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the copy: a new file.")],
    data_dir: operate.DataDir = None,
) -> None:
    """Copy the SQLite database into a file, while the service goes on."""
    from rekontext.cli.backup import run_backup

    run_backup(to, data_dir=data_dir)


@app.command()
def restore(
    copy: Annotated[Path, typer.Argument(metavar="FILE", help="What `rekontext backup` wrote.")],
    data_dir: operate.DataDir = None,
) -> None:
    """Make a copy the SQLite database again; stop the service first. What was there is moved aside."""
    from rekontext.cli.backup import run_restore

    run_restore(copy, data_dir=data_dir)


bench = typer.Typer(help="Measure this build.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.callback()
def bench_root() -> None:
    """Measure this build."""


@bench.command("scheduler")
def bench_scheduler(
    seed: Annotated[int, typer.Option(help="Which load to draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    on_engine: Annotated[
        bool, typer.Option("--engine", help="Also run a load on the real engine; takes ten minutes.")
    ] = False,
) -> None:
    """Compare the order in which edits are served with first-come-first-served."""
    from rekontext.cli.bench import run_bench_scheduler

    run_bench_scheduler(seed=seed, as_json=as_json, on_engine=on_engine)


def _complain(sentence: str) -> None:
    """One line on standard error."""
    from rich.console import Console
    from rich.markup import escape

    line = escape(" ".join(sentence.split()))
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {line}")
