"""The engine as its callers have it: an opened model that takes edits. How they are run is in `core.py`.

Knows no users, money or HTTP. What it takes and gives is in `rekontext.contract`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from pathlib import Path

from PIL import Image
from torch import Tensor

from rekontext.contract import (
    GUIDANCE_DEFAULT,
    SEED_MAX,
    STEPS_DEFAULT,
    Acceleration,
    AspectRatio,
    BatchMode,
    EditRefused,
    EditRequest,
    Estimate,
    ModelCard,
    OnProgress,
)
from rekontext.engine import edit as stages
from rekontext.engine.canvas import PIXELS_PER_TOKEN
from rekontext.engine.checkpoint import Parts
from rekontext.engine.compilation import compile_blocks, keep
from rekontext.engine.core import EngineCore
from rekontext.engine.costs import CostModel
from rekontext.engine.edit import Model
from rekontext.engine.memory import MemoryPlan
from rekontext.engine.outlook import Outlook
from rekontext.engine.placement import free_memory, is_out_of_memory, open_placed
from rekontext.engine.precision import choose_device
from rekontext.engine.scheduler import Policy, equal_shares
from rekontext.engine.ticket import Ticket
from rekontext.engine.tuning import best_effort, choose_attention, choose_ways
from rekontext.models import MINI
from rekontext.photos import seen


class Engine:
    """An opened model. Make one with `Engine.open`, `close` it when done (or use it in a `with` statement)."""

    def __init__(
        self,
        parts: Parts,
        *,
        is_mini: bool = False,
        policy: Policy | None = None,
        weight: Callable[[str], float] = equal_shares,
        costs_file: Path | None = None,
        batch: BatchMode = "exact",
        plans: Sequence[MemoryPlan] = (),
    ) -> None:
        self._core = EngineCore(
            parts,
            is_mini=is_mini,
            policy=policy or Policy(),
            weight=weight,
            costs_file=costs_file,
            batch=batch,
            plans=plans,
        )

    @classmethod
    def open(
        cls,
        model: str = MINI,
        *,
        device: str | None = None,
        dtype: str | None = None,
        policy: Policy | None = None,
        weight: Callable[[str], float] = equal_shares,
        costs_file: Path | None = None,
        batch: BatchMode = "exact",
        compiled: bool = False,
        compile_cache: Path | None = None,
        attention: str | None = None,
        loras: Sequence[str] = (),
    ) -> Engine:
        """Load a model.

        Args:
            model: "mini" (inside this package), a diffusers folder, a .safetensors or .gguf file, or a hub
                id (owner/name).
            device: "cpu", "cuda" or "cuda:N"; None takes the first GPU, else the CPU.
            dtype: "float32", "bfloat16" or "fp8" (the blocks' weights in e4m3, all else in bfloat16); None takes
                float32 on the CPU (bfloat16 where the CPU multiplies it and the model's facts ask for it, as the
                embedded model's do), and on a GPU the widest way of holding the model that fits into its free memory,
                falling to a narrower one with a warning where memory runs out after all: see `memory.py`.
            policy: in which order edits are served.
            weight: an account's share of the device relative to others'.
            costs_file: where measured step times are kept between runs; model, device and dtype are added to its name.
            batch: whether edits of equal shape may share a pass where that is measured to pay: "exact" only where
                each still gets the bits that it would get alone, "any" where it gets others, "off" never.
            compiled: compile the transformer's blocks before the first edit; seconds to minutes, once. For
                float32 on a GPU: in bfloat16 our own kernels are as fast there, and compiled in seconds.
            compile_cache: where compiled code is kept between runs.
            attention: one of `attention.BACKENDS`; None tries them on a GPU and takes the fastest, and keeps the times
                in `costs_file`, so that the next start takes the same one.
            loras: merged into the weights, so that steps take no longer: each a .safetensors file, a folder with one
                in it or a hub id, and after a colon its strength ("watercolour.safetensors:0.8").

        Raises:
            CheckpointError: the model or a LoRA can't be found, isn't complete or doesn't belong to the other, or the
                model doesn't fit into the GPU's memory.
            ValueError: a LoRA's strength is no number.
            EditRefused: no such device or dtype.
        """
        torch_device = choose_device(device)
        # The compiler reads weights as they were stored.
        parts, plans = open_placed(model, device=torch_device, dtype=dtype, packed=not compiled, loras=loras)
        engine = cls(
            parts, is_mini=model == MINI, policy=policy, weight=weight, costs_file=costs_file, batch=batch, plans=plans
        )
        try:
            engine._tune(attention, compiled=compiled, compile_cache=compile_cache)
        except BaseException:
            engine.close()
            raise
        return engine

    def _tune(self, attention: str | None, *, compiled: bool, compile_cache: Path | None) -> None:
        """What must not change any more once edits are served: it would change their bytes."""
        tokens = self.model.prompts.tokens + 2 * self.model.canvas.area // PIXELS_PER_TOKEN**2
        choose_attention(self.model.transformer, self.costs, tokens=tokens, name=attention)
        if compiled:
            compile_blocks(self.model.transformer, cache_file=compile_cache)
        choose_ways(self.model.transformer, self.costs, tokens=tokens, compiled=compiled, ready=self._one_pass)
        self._core.save_costs()
        if not compiled and not self._core.device.has_second:
            return
        # What these take says what compiling and loading kernels takes, not what an edit does.
        costs, known = self.costs, deepcopy(self.costs.seconds)
        self.warm_up()
        if compiled and self._core.device.has_second and self._core.batching.mode != "off":
            self._warm_up_together()
        if self.costs is costs:
            costs.seconds = known
        else:  # memory ran out, and what another format takes is in another file
            self._core.know_costs()
        if compiled:
            self.warm_up()
            if compile_cache is not None:
                with best_effort():
                    keep(compile_cache)

    @property
    def model(self) -> Model:
        """What edits are made with."""
        return self._core.model

    @property
    def card(self) -> ModelCard:
        """What the model is, and how it is held now."""
        return self._core.card

    @property
    def costs(self) -> CostModel:
        """What the device takes for what."""
        return self._core.costs

    @property
    def broken(self) -> Future[None]:
        """Gets the fault, as an exception, once the engine can't run edits any more."""
        return self._core.broken

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def edit(
        self,
        photo: Image.Image | None,
        prompt: str,
        *,
        steps: int = STEPS_DEFAULT,
        guidance: float = GUIDANCE_DEFAULT,
        seed: int | None = None,
        aspect_ratio: AspectRatio = "match_input_image",
        acceleration: Acceleration = "none",
        on_step: OnProgress | None = None,
    ) -> Image.Image:
        """Edit a picture as the prompt says, and wait for it.

        Args:
            photo: of any size and mode, taken as a viewer shows it (its EXIF, colour profile and transparency heeded);
                None makes a picture from the prompt alone.
            steps: 1..50.
            guidance: 0..10.
            seed: the same seed gives the same picture; None draws one.
            aspect_ratio: one of `rekontext.contract.ASPECT_RATIOS`.
            acceleration: "none" is exact; "regular" and "high" leave out transformer passes.
            on_step: called from the engine's threads after preparing and after every step.

        Returns:
            An RGB picture of one of the model's own sizes.

        Raises:
            EditRefused: a value is of the wrong kind or out of its range, or `photo` is no picture or can't be read.
            RuntimeError, EngineBroken: as `submit`.
        """
        if photo is not None and not isinstance(photo, Image.Image):
            raise EditRefused(
                f"photo is a {type(photo).__name__}: it must be a PIL.Image.Image (PIL.Image.open reads a file) or None"
            )
        request = EditRequest(
            id="",
            prompt=prompt,
            photo=None if photo is None else seen(photo),
            steps=steps,
            guidance=guidance,
            seed=secrets.randbelow(SEED_MAX) if seed is None else seed,
            aspect_ratio=aspect_ratio,
            acceleration=acceleration,
        )
        ticket = self.submit(request, on_progress=on_step)
        try:
            return ticket.result().picture
        except BaseException:  # whoever is interrupted doesn't want it any more
            ticket.cancel()
            raise

    def submit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> Ticket:
        """Queue an edit. Many may be queued: a photo that waits is kept at the size it will be used at, compressed.

        Args:
            on_progress: called from the engine's threads; it must not block.

        Raises:
            DeadlineUnmeetable: the edit can't be done by its `deadline_s`.
            EngineBroken: the device failed at an earlier edit.
            RuntimeError: the engine is closed, or is another process's.
        """
        return self._core.submit(request, stages.plan(self.model, request), on_progress=on_progress)

    def estimate(self, request: EditRequest | Ticket) -> Estimate:
        """When a submitted edit will be done, or when a request would be if it were submitted now."""
        return self._core.estimate(request)

    def outlook(self) -> Outlook:
        """A copy of what is known of submitted edits, which are in it under their tickets' numbers."""
        return self._core.outlook()

    def warm_up(self) -> None:
        """Run one step of an edit and one of text-to-image: whatever is compiled or allocated once, is so now."""
        photo = Image.new("RGB", self.model.canvas.output("3:2", None), "gray")
        for picture in (photo, None):
            self.edit(picture, "", steps=1, seed=0)
        self.forget()

    def _one_pass(self) -> Callable[[], Tensor]:
        """A call that runs the transformer once, on a square picture and as large a reference."""
        photo = Image.new("RGB", self.model.canvas.output("1:1", None), "gray")
        request = EditRequest(id="", prompt="", photo=photo, steps=1, guidance=GUIDANCE_DEFAULT, seed=0)
        edit = stages.prepare(self.model, request, stages.plan(self.model, request))
        self.forget()
        return lambda: stages.velocities(self.model, [edit])[0]

    def _warm_up_together(self) -> None:
        """A pass over two edits is compiled apart from that over one. Later it would hold up whoever waits."""
        request = EditRequest(id="", prompt="", photo=None, steps=1, guidance=GUIDANCE_DEFAULT, seed=0)
        plan = stages.plan(self.model, request)
        is_short = False
        try:
            stages.velocities(self.model, [stages.prepare(self.model, request, plan) for _ in range(2)])
            self._core.device.synchronize()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            is_short = True
        self.forget()
        if is_short:
            # No reason to hold the model in a narrower way: such edits go alone.
            self._core.batching.forbid(plan.shape, 2)
            free_memory(self.model.transformer.device)

    def forget(self) -> None:
        """Empty the caches of prompts and references."""
        self.model.prompts.forget()
        self.model.autoencoder.forget()

    def close(self) -> None:
        """Stop within one step. Edits that aren't done fail with `EditCancelled`. Not from a listener of an edit."""
        self._core.close()
