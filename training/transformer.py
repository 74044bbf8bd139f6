"""The transformer learns the edits in latents, by flow matching, together with both text encoders.

Knows which pictures, sentences, times and guidances are drawn, and the loss. Does not know how they look inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from rekontext.engine.canvas import Canvas
from training.edits import EDITS, strength
from training.loop import Plan, autocast, train
from training.model import Editor, shifted
from training.muon import optimizers
from training.photos import Pixels, crop
from training.phrasings import phrase
from training.scenes import scene
from training.shapes import change
from training.unrelated import unrelated

NATIVE: Final = Canvas(area=288 * 288).sizes
"""All that the engine draws, and no other: what was learned on one doesn't hold at the borders of the next."""
SMALL: Final = ((64, 96), (96, 64), (96, 96), (80, 112), (112, 80), (128, 96), (96, 128), (128, 128))
TOKENS_PER_BATCH: Final = 4200
TEXT_TOKENS: Final = 48
UNRELATED: Final = 0.15  # share of samples whose sentence asks for nothing the model can do
SHAPES: Final = 0.07  # share of scenes with named things
RESHAPED: Final = 0.15  # share of batches whose target has another shape than the photo
EDITS_PER_PHOTO: Final = 3
NATIVE_TOKENS: Final = 324
NATIVE_SHARE: Final = (0.08, 0.5)
"""Of batches, those with native pictures: in the first half, and at the end."""

Sizes = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
"""The small and the native canvases."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one sample asks: indices into the batch's pictures, and how it is said.

    Attributes:
        reference: the photo as the model gets it.
        still: the photo on the target's canvas: what no edit, or guidance 0, must give.
        edited: the exact edit of `still`.
        edit: one of `EDITS`, or "" where `sentence` already says it all.
    """

    reference: int
    still: int
    edited: int
    edit: str = ""
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the loss needs, on the device: latents (b, 32, h, w), one sentence, time and guidance each."""

    reference: Tensor
    edited: Tensor
    sentences: list[str]
    sigma: Tensor
    guidance: Tensor


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One iteration's pictures, grouped by size, and the cases that use them."""

    iteration: int
    references: list[Pixels]
    targets: list[Pixels]
    cases: list[Case]


def on_canvas(photo: Pixels, height: int, width: int) -> Pixels:
    """The photo on a canvas of another shape: cut at the right and the bottom, or its last row and column carried on.

    The engine gives the model a photo of any shape for any target shape, and both count positions from the top left.
    """
    kept = photo[:height, :width]
    missing = ((0, height - kept.shape[0]), (0, width - kept.shape[1]), (0, 0))
    return np.pad(kept, missing, mode="edge")


def draw(iteration: int, *, seed: int, native: float, sizes: Sizes, tokens: int) -> Lesson:
    """New training pictures: each photo with several of its edits, so that it is encoded once for all of them."""
    rng = np.random.default_rng([seed, 3, iteration])
    chosen = sizes[int(rng.random() < native)]
    height, width = target = chosen[rng.integers(len(chosen))]
    reference = chosen[rng.integers(len(chosen))] if rng.random() < RESHAPED else target
    per_case = height * width / 256 + reference[0] * reference[1] / 256 + TEXT_TOKENS
    count = max(2, round(tokens / per_case))
    names = list(EDITS)
    weights = np.array([EDITS[name].weight for name in names])
    references: list[Pixels] = []
    targets: list[Pixels] = []
    cases: list[Case] = []
    while len(cases) < count:
        at, still = len(references), len(targets)
        if rng.random() < SHAPES * EDITS_PER_PHOTO:
            made = change(rng, height, width)
            references.append(made.before if reference == target else on_canvas(made.before, *reference))
            targets += [made.before, made.after]
            cases.append(Case(reference=at, still=still, edited=still + 1, sentence=made.sentence))
            continue
        photo = crop(rng, *reference) if rng.random() < 0.8 else scene(rng, *reference)
        references.append(photo)
        targets.append(on_canvas(photo, height, width))
        if rng.random() < UNRELATED * EDITS_PER_PHOTO:
            cases.append(Case(reference=at, still=still, edited=still, sentence=unrelated(rng)))
        for name in rng.choice(names, size=EDITS_PER_PHOTO, replace=False, p=weights / weights.sum()):
            cases.append(Case(reference=at, still=still, edited=len(targets), edit=str(name)))
            targets.append(EDITS[name].apply(targets[still], rng))
    return Lesson(iteration=iteration, references=references, targets=targets, cases=cases[:count])


def _guidance(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.03:
        return 0.0
    return float(rng.uniform(0, 2.5) if kind < 0.25 else rng.uniform(2.5, 10))


def said(case: Case, rng: np.random.Generator) -> str:
    """The sentence of one case; an empty one is a request too: for nothing."""
    return phrase(case.edit, rng) if case.edit else case.sentence


def transformer(
    runs: Path,
    editor: Editor,
    vae: AutoencoderKL,
    encoder: nn.Conv2d,
    *,
    plan: Plan,
    device: torch.device,
    sizes: Sizes = (SMALL, NATIVE),
    native: tuple[float, float] = NATIVE_SHARE,
    tokens: int = TOKENS_PER_BATCH,
    on_save: Callable[[int], None] | None = None,
) -> Editor:
    """Train `editor` in place, or load it where `runs` has it finished.

    Small pictures teach most of it cheaply; the share of native ones grows towards the end, so that attention has seen
    as many tokens as it will meet.

    Args:
        native: as `NATIVE_SHARE`.
        encoder: the autoencoder's, as one convolution.
    """
    editor.to(device)
    encoder.to(device)
    shift, scaling = vae.config.shift_factor, vae.config.scaling_factor
    weight = _channel_weights(encoder)

    @torch.no_grad()
    def encode(pictures: list[Pixels]) -> Tensor:
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous() * 2 - 1
        scaled: Tensor = (encoder(pixels.to(device)) - shift) * scaling
        return scaled

    def make_batch(iteration: int) -> Batch:
        late = max(0.0, (iteration / plan.iterations - 0.5) / 0.5)
        share = native[0] + (native[1] - native[0]) * late
        lesson = draw(iteration, seed=plan.seed, native=share, sizes=sizes, tokens=tokens)
        rng = np.random.default_rng([plan.seed, 4, iteration])
        targets, cases = encode(lesson.targets), lesson.cases
        still, edited = targets[[case.still for case in cases]], targets[[case.edited for case in cases]]
        guidance = [_guidance(rng) for _ in cases]
        amount = torch.tensor([strength(g) for g in guidance], device=device)[:, None, None, None]
        # One time per equal slice of [0, 1], so that every batch covers all of them.
        even = torch.from_numpy((rng.permutation(len(cases)) + rng.random(len(cases))) / len(cases))
        return Batch(
            reference=encode(lesson.references)[[case.reference for case in cases]],
            edited=still + (edited - still) * amount,
            sentences=[said(case, rng) for case in cases],
            sigma=shifted(even.float(), NATIVE_TOKENS).to(device),
            guidance=torch.tensor(guidance, device=device),
        )

    def losses_of(batch: Batch) -> dict[str, Tensor]:
        noise = torch.randn(batch.edited.shape, device=device)
        mixed = batch.edited + (noise - batch.edited) * batch.sigma[:, None, None, None]
        with autocast(device):
            text, pooled = editor.read(batch.sentences)
            velocity = editor(mixed, batch.reference, text, pooled, batch.sigma, batch.guidance)
        each = (velocity.float() - (noise - batch.edited)).pow(2).mul(weight).mean(dim=(1, 2, 3))
        # What the guess from nearly pure noise misses: how well the request itself is understood.
        guess = each[batch.sigma > 0.8].mean() if bool((batch.sigma > 0.8).any()) else each.mean()
        return {"loss": each.mean(), "guess": guess.detach()}

    steps = optimizers(editor, plan.rate, plain=("embed", "shared", "transformer.proj_out", "norm_out"))
    train(editor, steps, make_batch, losses_of, plan=plan, runs=runs, name="transformer", on_save=on_save)
    return editor


def _channel_weights(encoder: nn.Conv2d) -> Tensor:
    """What an error in each latent costs in pixels, (channels, 1, 1) with mean 1: light and colour before detail.

    The components' directions are orthonormal, so a latent moves pixels as much as its weights are small.
    """
    reach = 1 / encoder.weight.flatten(1).norm(dim=1)
    weights: Tensor = (reach / reach.mean())[:, None, None]
    return weights


def parameters(module: nn.Module) -> int:
    """How many numbers a module has learned."""
    return sum(weight.numel() for weight in module.parameters())
