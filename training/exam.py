"""The exam: held-out sentences on two photos that training never opens, judged by the exact edits.

`python -m training.exam FOLDER` prints the table. Knows how to ask and how to judge. The sampler is the training's own;
the engine answers the same exam in tests/semantic.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from training.edits import EDITS
from training.photos import Pixels
from training.phrasings import held_out

CANVASES: Final = (
    (288, 288),
    (240, 336),
    (336, 240),
    (224, 368),
)  # height, width: 1:1, 4:3, 3:4 and 3:2 on the native area
SEEDS: Final = (1, 2, 3)
ASKED: Final = (
    *(name for name in EDITS if not name.startswith(("frame", "tint"))),
    "frame red",
    "frame white",
    "tint green",
)

Answer = Callable[[Pixels, str, int], Pixels]
"""photo, sentence, seed -> picture of the photo's size."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One answer, judged.

    Attributes:
        psnr_db: against the exact edit.
        nearest: the edit whose exact result is nearest to the answer.
    """

    edit: str
    psnr_db: float
    nearest: str


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [0, 1]."""
    return float(-10 * np.log10(np.square(a.astype(np.float64) - b).mean() + 1e-10))


@cache
def photos() -> tuple[Pixels, ...]:
    """china.jpg and flower.jpg of scikit-learn, each cut to the four canvases."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    out = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(folder / name) as picture:
            photo = picture.convert("RGB")
        for height, width in CANVASES:
            scale = min(photo.width / width, photo.height / height)
            left, top = (photo.width - width * scale) / 2, (photo.height - height * scale) / 2
            box = (left, top, left + width * scale, top + height * scale)
            small = photo.resize((width, height), Image.Resampling.LANCZOS, box=box)
            out.append(np.asarray(small, dtype=np.float32) / np.float32(255))
    return tuple(out)


def exact(photo: Pixels, seed: int = 0) -> dict[str, Pixels]:
    """The exact result of every edit of a photo."""
    return {name: edit.apply(photo, np.random.default_rng(seed)) for name, edit in EDITS.items()}


def judge(photo: Pixels, edit: str, answer: Pixels) -> Mark:
    """Compare one answer with the exact results of all edits."""
    marks = {name: psnr(answer, picture) for name, picture in exact(photo).items()}
    return Mark(edit=edit, psnr_db=marks[edit], nearest=max(marks, key=marks.__getitem__))


def sit(answer: Answer, *, seeds: tuple[int, ...] = SEEDS, edits: tuple[str, ...] = ASKED) -> Iterator[Mark]:
    """Ask every edit on every photo and canvas with every seed, taking turns among the held-out sentences."""
    for index, photo in enumerate(photos()):
        for edit in edits:
            sentences = held_out(edit)
            for seed in seeds:
                sentence = sentences[(index + seed) % len(sentences)]
                yield judge(photo, edit, answer(photo, sentence, seed))


def report(marks: list[Mark]) -> str:
    """The table per edit, and the three figures that count."""
    lines = []
    for edit in dict.fromkeys(mark.edit for mark in marks):
        own = [mark for mark in marks if mark.edit == edit]
        wrong = sorted({mark.nearest for mark in own} - {edit})
        right = sum(mark.nearest == edit for mark in own)
        mean = sum(mark.psnr_db for mark in own) / len(own)
        lines.append(f"| {edit} | {right}/{len(own)} | {mean:.1f} | {', '.join(wrong)} |")
    tonal = [mark.psnr_db for mark in marks if EDITS[mark.edit].tonal]
    right = sum(mark.nearest == mark.edit for mark in marks)
    head = ["| edit | nearest to the asked edit | PSNR to it, dB | taken for |", "|---|---|---|---|"]
    share, mean = 100 * right / len(marks), sum(tonal) / max(1, len(tonal))
    foot = f"Nearest to the asked edit: {share:.1f} % of {len(marks)}; tonal edits: {mean:.1f} dB."
    return "\n".join([*head, *lines, "", foot])


def own_sampler(folder: Path, *, steps: int, guidance: float = 7.0) -> tuple[Answer, Callable[[Pixels], Pixels]]:
    """Answers by the training's own sampler, and the bare round trip through the autoencoder."""
    from training.export import load
    from training.model import sample

    editor, vae = load(folder)

    def tensor(photo: Pixels) -> torch.Tensor:
        return torch.from_numpy(photo).permute(2, 0, 1)[None] * 2 - 1

    def pixels(tensor: torch.Tensor) -> Pixels:
        out: Pixels = (tensor[0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1).astype(np.float32)
        return out

    def answer(photo: Pixels, sentence: str, seed: int) -> Pixels:
        return pixels(sample(editor, vae, tensor(photo), [sentence], guidance=guidance, steps=steps, seed=seed))

    @torch.no_grad()
    def round_trip(photo: Pixels) -> Pixels:
        return pixels(vae.decode(vae.encode(tensor(photo)).latent_dist.mode()).sample)

    return answer, round_trip


def main(folder: Path, steps: int, seeds: tuple[int, ...]) -> str:
    """Run the whole exam on an exported folder; the report says under which conditions."""
    answer, round_trip = own_sampler(folder, steps=steps)
    alone = [psnr(photo, round_trip(photo)) for photo in photos()]
    text = report(list(sit(answer, seeds=seeds)))
    foot = f"Autoencoder alone: {sum(alone) / len(alone):.1f} dB ({min(alone):.1f} to {max(alone):.1f})."
    return f"{text}\n{foot}\n{steps} steps, seeds {', '.join(map(str, seeds))}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Examine an exported model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    print(main(given.folder, given.steps, tuple(given.seeds)))
