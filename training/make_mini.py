"""The recipe: tokenizers, decoder, reading, transformer, export, exam.

Each stage can be cut off and goes on where it was.

    python -m training.make_mini --out src/rekontext/models/mini --runs runs/mini
    python -m training.make_mini --further src/rekontext/models/mini     # the same model, trained on

The encoder is written down, not learned, so the decoder and the transformer need nothing of each other: with two
machines or spare cores, run `--only decoder` and `--only transformer` at the same time.

Knows the order of the stages and how long each one trains. Progress lines go to the terminal, loss curves to `--runs`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTokenizer, T5Tokenizer

from training.autoencoder import SIDE, WIDTHS, Supervised, autoencoder, decoder
from training.card import write_card
from training.exam import main as exam
from training.export import export, load
from training.glimpse import glimpse
from training.loop import Plan
from training.model import MINI, TINY, Editor, Size
from training.reading import reading
from training.tokenizers import VOCABULARY, clip_tokenizer, sentences, t5_tokenizer
from training.transformer import NATIVE, NATIVE_SHARE, SMALL, TOKENS_PER_BATCH, Sizes, transformer

GLIMPSE_EVERY: Final = 250


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result, apart from rounding.

    Attributes:
        corpus: sentences per edit that the tokenizers are trained on.
        side: of the pictures that the decoder is trained on, in pixels.
        further: how the transformer of a finished model is trained on, e.g. after an edit has changed.
        examined: seeds of the exam; none for no exam.
    """

    seed: int = 0
    corpus: int = 400
    vocabulary: int = VOCABULARY
    widths: tuple[int, ...] = WIDTHS
    side: int = SIDE
    decoder: Plan
    reading: Plan
    size: Size = MINI
    sizes: Sizes = (SMALL, NATIVE)
    tokens: int = TOKENS_PER_BATCH
    transformer: Plan
    further: Plan
    examined: tuple[int, ...] = (1, 2, 3)


FULL: Final = Recipe(
    reading=Plan(iterations=250, rate=2e-3, warmup=20, cooldown=0.5, average=0.98, save_every=50),
    decoder=Plan(iterations=3200, rate=4e-4, cooldown=0.7, average=0.99, save_every=100),
    transformer=Plan(iterations=7000, rate=2e-3, cooldown=0.45, average=0.98, save_every=50),
    further=Plan(seed=2, iterations=700, rate=5e-4, cooldown=1.0, average=0.98, save_every=50),
)
SMOKE: Final = Recipe(
    corpus=4,
    vocabulary=420,
    widths=(16, 48, 48, 80),
    side=32,
    reading=Plan(iterations=1, rate=1e-3, save_every=1),
    decoder=Plan(iterations=2, rate=1e-3, save_every=1),
    size=TINY,
    sizes=(((32, 32),), ((32, 48), (48, 32))),
    tokens=100,
    transformer=Plan(iterations=2, rate=1e-3, save_every=1),
    further=Plan(iterations=1, rate=1e-3, save_every=1),
    examined=(),
)
"""Seconds instead of hours: every stage does two iterations. The result is noise."""


def tokenizers(runs: Path, recipe: Recipe) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Train both tokenizers, or load them where `runs` has them."""
    clip, t5 = runs / "tokenizer", runs / "tokenizer_2"
    if not (clip.exists() and t5.exists()):
        corpus = sentences(recipe.seed, recipe.corpus)
        print(f"tokenizers: {len(corpus)} sentences", flush=True)
        t5_tokenizer(corpus, recipe.vocabulary).save_pretrained(t5)
        clip_tokenizer(corpus, recipe.vocabulary).save_pretrained(clip)
    return CLIPTokenizer.from_pretrained(clip), T5Tokenizer.from_pretrained(t5)


def make(recipe: Recipe, *, out: Path, runs: Path, device: torch.device, only: str = "") -> None:
    """Make the model and write it to `out`; what the stages need to go on lies in `runs`.

    Args:
        only: "decoder" or "transformer" trains just that;
            "snapshot" exports the averaged weights that stages in progress have reached;
            "" does everything.
    """
    runs.mkdir(parents=True, exist_ok=True)
    clip, t5 = tokenizers(runs, recipe)
    vae, encoder = autoencoder(seed=recipe.seed, widths=recipe.widths)
    torch.manual_seed(recipe.seed)
    editor = Editor(recipe.size, clip, t5)
    if only == "snapshot":
        for name, module in (("decoder", Supervised(vae.decoder)), ("transformer", editor)):
            if (runs / f"{name}.pt").exists():
                module.load_state_dict(torch.load(runs / f"{name}.pt", weights_only=True)["averaged"])
    else:
        if only != "transformer":
            decoder(runs, vae, encoder, plan=recipe.decoder, device=device, size=recipe.side)
        if only == "decoder":
            return
        reading(runs, editor, plan=recipe.reading, device=device)
        _teach(editor, vae, encoder, recipe, recipe.transformer, runs=runs, device=device)
        if only == "transformer":
            return
    _finish(editor, vae, () if only == "snapshot" else recipe.examined, out=out)


def further(recipe: Recipe, *, begin: Path, out: Path, runs: Path, device: torch.device) -> None:
    """Train the transformer and the text encoders of the model in `begin` further, and write the whole to `out`.

    What was cut off goes on if it began with the same weights: further from where an earlier one ended is another.
    """
    editor, vae = load(begin)
    runs = runs / "further" / _fingerprint(editor)
    _, encoder = autoencoder(seed=recipe.seed, widths=recipe.widths)
    _teach(editor, vae, encoder, recipe, recipe.further, native=(0.5, 0.5), runs=runs, device=device)
    plan = recipe.further
    history = f"\nThis checkpoint learned for {plan.iterations} iterations more, at a rate falling from {plan.rate:g}."
    _finish(editor, vae, recipe.examined, out=out, history=history)


def _fingerprint(editor: Editor) -> str:
    """Of all its weights."""
    seen = hashlib.sha256()
    for name, tensor in sorted(editor.state_dict().items()):
        seen.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return seen.hexdigest()[:12]


def _teach(
    editor: Editor,
    vae: AutoencoderKL,
    encoder: nn.Conv2d,
    recipe: Recipe,
    plan: Plan,
    *,
    runs: Path,
    device: torch.device,
    native: tuple[float, float] = NATIVE_SHARE,
) -> None:
    def on_save(iteration: int) -> None:
        if iteration % GLIMPSE_EVERY == 0:
            glimpse(runs / "transformer-samples.png", editor, vae, size=recipe.sizes[1][0])

    transformer(
        runs,
        editor,
        vae,
        encoder,
        plan=plan,
        device=device,
        sizes=recipe.sizes,
        native=native,
        tokens=recipe.tokens,
        on_save=on_save,
    )


def _finish(editor: Editor, vae: AutoencoderKL, examined: tuple[int, ...], *, out: Path, history: str = "") -> None:
    export(editor.eval(), vae.eval(), out)
    marks = exam(out, seeds=examined) if examined else ""
    print(marks, flush=True)
    write_card(out, editor, vae, marks, history)


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("src/rekontext/models/mini"))
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument(
        "--only", choices=("decoder", "transformer", "snapshot"), default="", help="train one part, or export now"
    )
    parser.add_argument(
        "--further",
        type=Path,
        metavar="FOLDER",
        help="train the model in FOLDER further instead of beginning with nothing",
    )
    parser.add_argument("--smoke", action="store_true", help="two iterations of everything, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe, device = SMOKE if given.smoke else FULL, torch.device(given.device)
    if given.further is not None:
        further(recipe, begin=given.further, out=given.out, runs=given.runs, device=device)
    else:
        make(recipe, out=given.out, runs=given.runs, device=device, only=given.only)


if __name__ == "__main__":
    main()
