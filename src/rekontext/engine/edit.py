"""One edit as a value: prepare -> step -> step ... -> finish, each a plain function on an `Edit`.

Axis letters in this file: b batch, n output tokens, e values per token, s steps, w modulation values of a step.
Between two steps an edit is nothing but its latents and an index, so many can be under way and any can be dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rekontext.contract import EditRequest
from rekontext.engine.autoencoder import Autoencoder, pack
from rekontext.engine.canvas import PIXELS_PER_TOKEN, Canvas, Size
from rekontext.engine.checkpoint import Parts
from rekontext.engine.prompt import PromptEncoder
from rekontext.engine.rope import picture_positions, rotation_table, text_positions
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
    def of(cls, parts: Parts) -> Model:
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
        size: of the picture being made, in pixels.
        sigmas: steps + 1 noise levels.
        modulation_sw: all steps' modulation, on the device.
        latents_1ne: float32 on the device, whatever the model computes in: rounding must not add up over steps.
        step: steps done.
    """

    request: EditRequest
    size: Size
    sigmas: list[float]
    conditioning: Conditioning
    modulation_sw: Tensor
    latents_1ne: Tensor
    step: int = 0

    @property
    def is_denoised(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.request.steps


@torch.inference_mode()
def prepare(model: Model, request: EditRequest) -> Edit:
    """Everything that comes before the first step: encode, draw noise, compute what all steps share."""
    transformer = model.transformer
    photo = request.photo
    size = model.canvas.output(request.aspect_ratio, photo.size if photo else None)
    prompt = model.prompts.encode(request.prompt)
    positions = [text_positions(prompt.states_1tw.shape[1]), picture_positions(size, stream=0)]
    reference = None
    if photo is not None:
        # The reference keeps the photo's own shape even where another ratio is asked for.
        reference_size = model.canvas.nearest(photo.size)
        reference = model.autoencoder.encode(photo, reference_size)
        positions.append(picture_positions(reference_size, stream=1))

    latents = pack(noise(request.seed, size, model.autoencoder.channels)).to(transformer.device)
    sigmas = model.schedule.sigmas(request.steps, latents.shape[1])
    rotation = rotation_table(torch.cat(positions), transformer.config.axes, transformer.device)
    return Edit(
        request=request,
        size=size,
        sigmas=[float(sigma) for sigma in sigmas],
        conditioning=transformer.condition(prompt.states_1tw, reference, rotation),
        modulation_sw=transformer.modulation(torch.from_numpy(sigmas[:-1]), request.guidance, prompt.pooled_1p),
        latents_1ne=latents,
    )


@torch.inference_mode()
def step(model: Model, edit: Edit) -> None:
    """One Euler step: x += (sigma_next - sigma) * velocity."""
    i = edit.step
    velocity = model.transformer(edit.latents_1ne, edit.conditioning, edit.modulation_sw[i : i + 1])
    edit.latents_1ne = edit.latents_1ne + (edit.sigmas[i + 1] - edit.sigmas[i]) * velocity.float()
    edit.step += 1


def finish(model: Model, edit: Edit) -> Tensor:
    """Decode the latents: (3, y, x) in 0..1, float32 on the host."""
    assert edit.is_denoised, f"finished after {edit.step} of {edit.request.steps} steps"
    return model.autoencoder.decode(edit.latents_1ne, edit.size)


def noise(seed: int, size: Size, channels: int) -> Tensor:
    """Standard normal latents (1, c, h, w) in float32.

    Drawn on the host on purpose: GPUs have generators of their own, and a seed must give one picture everywhere.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    cells = PIXELS_PER_TOKEN // 2
    return torch.randn(1, channels, size[1] // cells, size[0] // cells, generator=generator)
