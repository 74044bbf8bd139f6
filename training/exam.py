"""The exam: held-out sentences on two photos that training never opens, judged by the exact edits.

`python -m training.exam FOLDER` prints the table. Knows how to ask and how to judge; the engine answers. A short form
is in tests/semantic.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from rekontext.engine import Engine
from training.edits import EDITS
from training.photos import Pixels
from training.phrasings import held_out

CANVASES: Final = (
    (288, 288),
    (240, 336),
    (336, 240),
    (240, 352),
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


def exact(photo: Pixels, seed: int = 0) -> Mapping[str, Pixels]:
    """The exact result of every edit of a photo, read-only: those of the photo asked for last are kept."""
    return _exact(photo.tobytes(), photo.shape, seed)


@lru_cache(maxsize=1)
def _exact(values: bytes, shape: tuple[int, ...], seed: int) -> Mapping[str, Pixels]:
    photo = np.frombuffer(values, dtype=np.float32).reshape(shape)
    results = {name: edit.apply(photo, np.random.default_rng(seed)) for name, edit in EDITS.items()}
    for picture in results.values():
        picture.setflags(write=False)
    return MappingProxyType(results)


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


def picture_of(photo: Pixels) -> Image.Image:
    """As an 8-bit picture, which is how the engine gets and gives them."""
    return Image.fromarray(np.round(photo * 255).astype(np.uint8))


def answers_of(engine: Engine, *, steps: int) -> Answer:
    """Answers by the engine, as a caller gets them."""

    def answer(photo: Pixels, sentence: str, seed: int) -> Pixels:
        picture = engine.edit(picture_of(photo), sentence, steps=steps, seed=seed)
        assert (picture.height, picture.width) == photo.shape[:2], "the exam's photos have the canvas' own sizes"
        return np.asarray(picture, dtype=np.float32) / np.float32(255)

    return answer


def autoencoder_alone(folder: Path) -> list[float]:
    """PSNR in dB of each photo's bare round trip through the autoencoder."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    out = []
    for photo in photos():
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] * 2 - 1
        with torch.inference_mode():
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0]
        out.append(psnr(photo, (decoded.permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1)))
    return out


def main(folder: Path, *, steps: int = 35, seeds: tuple[int, ...] = SEEDS, dtype: str | None = None) -> str:
    """Run the whole exam on an exported folder, telling how far it is; the report says under which conditions."""
    alone = autoencoder_alone(folder)
    marks: list[Mark] = []
    with Engine.open(str(folder), device="cpu", dtype=dtype) as engine:
        used = engine.card.dtype
        for mark in sit(answers_of(engine, steps=steps), seeds=seeds):
            marks.append(mark)
            if len(marks) % (len(ASKED) * len(seeds)) == 0:
                print(f"exam: {len(marks)} of {len(photos()) * len(ASKED) * len(seeds)} answers", flush=True)
    foot = f"Autoencoder alone: {sum(alone) / len(alone):.1f} dB ({min(alone):.1f} to {max(alone):.1f})."
    return f"{report(marks)}\n{foot}\n{steps} steps, seeds {', '.join(map(str, seeds))}, {used}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Examine an exported model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    print(main(given.folder, steps=given.steps, seeds=tuple(given.seeds), dtype=given.dtype))
