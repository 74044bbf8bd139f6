"""One edit as a value: prepare -> step -> step ... -> finish, each a plain function on an `Edit`.

Axis letters in this file: b batch, p pictures of one edit, n output tokens, e values per token, s steps, w modulation
values of a step.
Between two steps an edit is nothing but its latents and an index, so many can be under way and any can be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rekontext.contract import EditRequest, seed_at
from rekontext.engine.acceleration import Seen, extrapolate
from rekontext.engine.autoencoder import Autoencoder, pack
from rekontext.engine.canvas import PIXELS_PER_TOKEN, Canvas, Size
from rekontext.engine.checkpoint import OpenedModel
from rekontext.engine.inpainting import Kept
from rekontext.engine.plan import Plan, plan_of
from rekontext.engine.prompt import PromptEncoder
from rekontext.engine.rope import picture_positions, rotation_of, text_positions
from rekontext.engine.schedule import Schedule
from rekontext.engine.transformer import Conditioning, KontextTransformer


@dataclass(frozen=True, kw_only=True)
class Model:
    """The parts that an edit passes through."""

    canvas: Canvas
    schedule: Schedule
    prompts: PromptEncoder
    autoencoder: Autoencoder
    transformer: KontextTransformer

    @classmethod
    def of(cls, parts: OpenedModel) -> Model:
        """From an opened checkpoint."""
        return cls(
            canvas=parts.canvas,
            schedule=parts.schedule,
            prompts=PromptEncoder(parts),
            autoencoder=Autoencoder(parts.autoencoder),
            transformer=parts.transformer,
        )


@dataclass(kw_only=True)
class Edit:
    """An edit under way.

    Attributes:
        sigmas: steps + 1 noise levels.
        modulation_sw: all steps' modulation, on the device.
        latents_pne: float32 on the device, whatever the model computes in: rounding must not add up over steps.
        reads_whole_prompt: False where it has more tokens than the model reads.
        kept: what of the photo stays; None where the whole picture may change.
        seen: the last computed velocities, at most two.
        ahead: velocities of its first pictures at the next step, while those of the others are still to be computed.
        step: steps done.
        passes: transformer passes done for each picture.
    """

    request: EditRequest
    plan: Plan
    sigmas: list[float]
    conditioning: Conditioning
    modulation_sw: Tensor
    latents_pne: Tensor
    reads_whole_prompt: bool = True
    kept: Kept | None = None
    seen: tuple[Seen, ...] = ()
    ahead: tuple[Tensor, ...] = ()
    step: int = 0
    passes: int = 0

    @property
    def is_denoised(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.request.steps

    @property
    def runs_next(self) -> bool:
        """Whether the next step runs the transformer."""
        return self.plan.runs[self.step]


def plan(model: Model, request: EditRequest) -> Plan:
    """Sizes and passes of an edit. Cheap: nothing is computed."""
    return plan_of(request, canvas=model.canvas, text_tokens=model.prompts.tokens)


@torch.inference_mode()
def prepare(model: Model, request: EditRequest, plan: Plan) -> Edit:
    """Everything that comes before the first step: encode, draw noise, compute what all steps share.

    The order is a GPU's: copies to it, which wait until it has nothing to do, come before all that it computes. While
    it encodes the photo, which takes it longest, the host queues the prompt's encoding, which takes the host longest.
    """
    transformer = model.transformer
    seeds = (seed_at(request.seed, i) for i in range(plan.pictures))
    latents = torch.cat([pack(noise(seed, plan.size, model.autoencoder.channels)) for seed in seeds])
    latents = latents.to(transformer.device)
    positions = [text_positions(model.prompts.tokens), picture_positions(plan.size, stream=0)]
    if plan.reference_size is not None:
        positions.append(picture_positions(plan.reference_size, stream=1))
    rotation = rotation_of(torch.cat(positions), transformer.config.axes, transformer.device)
    reference = None
    if request.photo is not None:
        assert plan.reference_size is not None, "planned without the photo"
        reference = model.autoencoder.encode(request.photo, plan.reference_size)
    prompt = model.prompts.encode(request.prompt)

    kept = None
    if request.mask is not None:
        assert request.photo is not None, "a mask without a photo"
        assert reference is not None, "a photo without its latents"
        assert plan.size == plan.reference_size, f"{plan.size} of a photo of {plan.reference_size}, with a mask"
        kept = Kept.of(request.photo, request.mask, size=plan.size, photo_1ne=reference, noise_pne=latents)
    sigmas = model.schedule.sigmas(request.steps, plan.output_tokens)
    return Edit(
        request=request,
        plan=plan,
        sigmas=[float(sigma) for sigma in sigmas],
        conditioning=transformer.condition(prompt.states_1tw, reference, rotation),
        modulation_sw=transformer.modulation(torch.from_numpy(sigmas[:-1]), request.guidance, prompt.pooled_1p),
        latents_pne=latents,
        reads_whole_prompt=not prompt.is_cut,
        kept=kept,
    )


@torch.inference_mode()
def velocities(model: Model, edits: Sequence[Edit]) -> list[Tensor]:
    """What the transformer says of each edit at its own step, (1, n, e) in float32.

    Args:
        edits: of one shape, and of one picture each.
    """
    assert all(edit.plan.pictures == 1 for edit in edits), "who makes several pictures shares no pass"
    first = edits[0].conditioning
    rows = [edit.modulation_sw[edit.step : edit.step + 1] for edit in edits]
    if len(edits) == 1:
        return [model.transformer(edits[0].latents_pne, first, rows[0]).float()]
    references = [edit.conditioning.reference_bmd for edit in edits]
    together = Conditioning(
        text_btd=torch.cat([edit.conditioning.text_btd for edit in edits]),
        reference_bmd=torch.cat([r for r in references if r is not None]) if references[0] is not None else None,
        rotation=first.rotation,
    )
    latents = torch.cat([edit.latents_pne for edit in edits])
    return list(model.transformer(latents, together, torch.cat(rows)).float().split(1))


@torch.inference_mode()
def advance(edits: Sequence[Edit], found: Sequence[Tensor | None]) -> None:
    """One Euler step of each edit: x += (sigma_next - sigma) * velocity. If it raises, no edit has advanced.

    Args:
        found: the edits' velocities; None for one at a step that leaves the pass out.
    """
    moved = [_moved(edit, velocity) for edit, velocity in zip(edits, found, strict=True)]
    for edit, velocity, latents_pne in zip(edits, found, moved, strict=True):
        if velocity is not None:
            edit.seen = (*edit.seen[-1:], Seen(edit.sigmas[edit.step], velocity))
            edit.passes += 1
        edit.latents_pne = latents_pne
        edit.step += 1


def _moved(edit: Edit, velocity: Tensor | None) -> Tensor:
    """Its latents after the next step."""
    sigma, sigma_next = edit.sigmas[edit.step : edit.step + 2]
    if velocity is None:
        earlier, later = edit.seen
        velocity = extrapolate(earlier, later, sigma)
    latents_pne = edit.latents_pne + (sigma_next - sigma) * velocity
    return latents_pne if edit.kept is None else edit.kept.put_back(latents_pne, sigma_next)


@torch.inference_mode()
def advance_a_picture(model: Model, edit: Edit) -> None:
    """One pass, for the next of an edit's pictures at a step that runs the transformer; the last one ends the step.

    Not one for all of them: each is to have the bits that it would have alone. If it raises, nothing has changed.
    """
    at = len(edit.ahead)
    row = edit.modulation_sw[edit.step : edit.step + 1]
    found = (*edit.ahead, model.transformer(edit.latents_pne[at : at + 1], edit.conditioning, row).float())
    if len(found) < edit.plan.pictures:
        edit.ahead = found
        return
    advance([edit], [torch.cat(found)])
    edit.ahead = ()


def step(model: Model, edit: Edit) -> None:
    """Run the edit's next step by itself, of all its pictures."""
    if not edit.runs_next:
        advance([edit], [None])
        return
    done = edit.step
    while edit.step == done:
        advance_a_picture(model, edit)


@torch.inference_mode()
def predicted_clean(edit: Edit) -> Tensor:
    """Where the path of its first picture leads from here in a straight line, (1, n, e): what previews show."""
    assert edit.seen, "no step was done yet"
    clean_pne = edit.latents_pne - edit.sigmas[edit.step] * edit.seen[-1].velocity
    return (clean_pne if edit.kept is None else edit.kept.put_back(clean_pne, 0.0))[:1]


@torch.inference_mode()
def finish(model: Model, edit: Edit, picture: int = 0) -> Tensor:
    """Decode the latents of one of its pictures: (3, y, x) in 0..1, float32 on the device."""
    assert edit.is_denoised, f"finished after {edit.step} of {edit.request.steps} steps"
    pixels_3yx = model.autoencoder.decode(edit.latents_pne[picture : picture + 1], edit.plan.size)
    return pixels_3yx if edit.kept is None else edit.kept.lay_over(pixels_3yx)


def noise(seed: int, size: Size, channels: int) -> Tensor:
    """Standard normal latents (1, c, h, w) in float32.

    Drawn on the host on purpose: GPUs have generators of their own, and a seed must give one picture everywhere.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    cells = PIXELS_PER_TOKEN // 2
    return torch.randn(1, channels, size[1] // cells, size[0] // cells, generator=generator)
