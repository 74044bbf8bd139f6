"""The engine: an opened model that edits pictures, one at a time, from any thread.

Knows no users, money or HTTP. What it takes and gives is in `rekontext.contract`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from threading import Lock

from PIL import Image

from rekontext.contract import (
    GUIDANCE_DEFAULT,
    SEED_MAX,
    STEPS_DEFAULT,
    AspectRatio,
    EditRequest,
    EditResult,
    ModelCard,
    OnProgress,
    Progress,
)
from rekontext.engine import edit as stages
from rekontext.engine.autoencoder import to_picture
from rekontext.engine.checkpoint import MINI, Parts, open_model
from rekontext.engine.edit import Model
from rekontext.engine.precision import choose_device, choose_dtype


class EditCancelled(Exception):
    """The edit was stopped between two steps, because its caller asked for that."""


class Engine:
    """An opened model. Make one with `Engine.open`."""

    def __init__(self, parts: Parts, *, is_mini: bool = False) -> None:
        self.model = Model.of(parts)
        self._lock = Lock()
        self.card = ModelCard(
            name=parts.name,
            canvas_area=parts.canvas.area,
            parameters=sum(p.numel() for p in parts.transformer.parameters()),
            device=str(parts.transformer.device),
            dtype=str(parts.transformer.dtype).removeprefix("torch."),
            is_mini=is_mini,
        )

    @classmethod
    def open(cls, model: str = MINI, *, device: str | None = None, dtype: str | None = None) -> Engine:
        """Load a model.

        Args:
            model: "mini" (inside this package), a diffusers folder, a .safetensors file, or a hub id (owner/name).
            device: "cpu", "cuda" or "cuda:N"; None takes the first GPU, else the CPU.
            dtype: "float32" or "bfloat16"; None takes bfloat16 on a GPU and float32 on the CPU.

        Raises:
            CheckpointError: the model can't be found or isn't complete.
            EditRefused: no such device or dtype.
        """
        torch_device = choose_device(device)
        parts = open_model(model, device=torch_device, dtype=choose_dtype(dtype, torch_device))
        return cls(parts, is_mini=model == MINI)

    def edit(
        self,
        photo: Image.Image | None,
        prompt: str,
        *,
        steps: int = STEPS_DEFAULT,
        guidance: float = GUIDANCE_DEFAULT,
        seed: int | None = None,
        aspect_ratio: AspectRatio = "match_input_image",
        on_step: OnProgress | None = None,
    ) -> Image.Image:
        """Edit a picture as the prompt says.

        Args:
            photo: of any size and mode; None makes a picture from the prompt alone.
            steps: 1..50.
            guidance: 0..10.
            seed: the same seed gives the same picture; None draws one.
            aspect_ratio: one of `rekontext.contract.ASPECT_RATIOS`.
            on_step: called after preparing and after every step.

        Returns:
            An RGB picture of one of the model's own sizes.

        Raises:
            EditRefused: a value is out of its range.
        """
        request = EditRequest(
            id="",
            prompt=prompt,
            photo=photo,
            steps=steps,
            guidance=guidance,
            seed=secrets.randbelow(SEED_MAX) if seed is None else seed,
            aspect_ratio=aspect_ratio,
        )
        return self.run(request, on_step=on_step).picture

    def run(
        self,
        request: EditRequest,
        *,
        on_step: OnProgress | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> EditResult:
        """Run one edit to its end. Edits from several threads take turns.

        Args:
            is_cancelled: asked before every step.

        Raises:
            EditCancelled: `is_cancelled` said so.
        """
        with self._lock:
            started = time.perf_counter()
            if is_cancelled():
                raise EditCancelled
            edit = stages.prepare(self.model, request)
            prepared = time.perf_counter()
            _tell(on_step, edit.step, request.steps, None)
            while not edit.is_denoised:
                if is_cancelled():
                    raise EditCancelled
                stages.step(self.model, edit)
                per_step = (time.perf_counter() - prepared) / edit.step
                _tell(on_step, edit.step, request.steps, per_step * (request.steps - edit.step))
            denoised = time.perf_counter()
            picture = to_picture(stages.finish(self.model, edit))
            ended = time.perf_counter()
        return EditResult(
            picture=picture,
            seed=request.seed,
            steps=edit.step,
            inference_s=ended - started,
            timings={"prepare": prepared - started, "denoise": denoised - prepared, "decode": ended - denoised},
        )


def _tell(on_step: OnProgress | None, step: int, steps: int, remaining_s: float | None) -> None:
    if on_step is not None:
        on_step(Progress(step=step, steps=steps, remaining_s=remaining_s))
