"""The engine as its callers have it: an opened model that takes edits. How they are run is in `core.py`.

Knows no users, money or HTTP. What it takes and gives is in `rekontext.contract`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType

from PIL import Image

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
from rekontext.engine import warming
from rekontext.engine.checkpoint import OpenedModel
from rekontext.engine.core import EngineCore
from rekontext.engine.costs import CostModel
from rekontext.engine.edit import Model
from rekontext.engine.memory import MemoryPlan
from rekontext.engine.outlook import Outlook
from rekontext.engine.placement import open_placed
from rekontext.engine.precision import choose_device
from rekontext.engine.scheduler import Policy, equal_shares
from rekontext.engine.ticket import Ticket
from rekontext.masks import read_white
from rekontext.models import MINI
from rekontext.photos import seen

_log = logging.getLogger(__name__)

AskedLoras = Mapping[str, float] | Mapping[Path, float] | Mapping[str | Path, float]
"""LoRAs by their names or their files, and their strengths."""


class Engine:
    """An opened model. Make one with `Engine.open`, `close` it when done (or use it in a `with` statement)."""

    def __init__(
        self,
        parts: OpenedModel,
        *,
        is_mini: bool = False,
        policy: Policy | None = None,
        weight: Callable[[str], float] = equal_shares,
        costs_file: Path | None = None,
        batch: BatchMode = "exact",
        plans: Sequence[MemoryPlan] = (),
        lora_folder: Path | None = None,
    ) -> None:
        self._core = EngineCore(
            parts,
            is_mini=is_mini,
            policy=policy or Policy(),
            weight=weight,
            costs_file=costs_file,
            batch=batch,
            plans=plans,
            lora_folder=lora_folder,
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
        lora_folder: Path | None = None,
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
            lora_folder: whose .safetensors files edits may ask for by name, to be merged for them alone.

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
            parts,
            is_mini=model == MINI,
            policy=policy,
            weight=weight,
            costs_file=costs_file,
            batch=batch,
            plans=plans,
            lora_folder=lora_folder,
        )
        try:
            warming.tune(engine._core, attention, compiled=compiled, compile_cache=compile_cache)
        except BaseException:
            engine.close()
            raise
        return engine

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
        mask: Image.Image | None = None,
        steps: int = STEPS_DEFAULT,
        guidance: float = GUIDANCE_DEFAULT,
        seed: int | None = None,
        aspect_ratio: AspectRatio = "match_input_image",
        acceleration: Acceleration = "none",
        loras: AskedLoras = MappingProxyType({}),
        on_step: OnProgress | None = None,
    ) -> Image.Image:
        """Edit a picture as the prompt says, and wait for it.

        Args:
            photo: of any size and mode, taken as a viewer shows it (its EXIF, colour profile and transparency heeded);
                None makes a picture from the prompt alone.
            mask: a picture of the photo's shape, white where it may change and black where it stays; None lets all of
                it change.
            steps: 1..50.
            guidance: 0..10.
            seed: the same seed gives the same picture; None draws one.
            aspect_ratio: one of `rekontext.contract.ASPECT_RATIOS`.
            acceleration: "none" is exact; "regular" and "high" leave out transformer passes.
            loras: strengths, by names in the folder that the engine was opened with, or by paths of files.
            on_step: called from the engine's threads after preparing and after every step.

        Returns:
            An RGB picture of one of the model's own sizes.

        Raises:
            EditRefused: a value is of the wrong kind or out of its range; or `photo` or `mask` is no picture, can't be
                read, or doesn't fit the other.
            LoRARefused: as `submit`.
            RuntimeError, EngineBroken: as `submit`.
        """
        (picture,) = self.variants(
            photo,
            prompt,
            pictures=1,
            mask=mask,
            steps=steps,
            guidance=guidance,
            seed=seed,
            aspect_ratio=aspect_ratio,
            acceleration=acceleration,
            loras=loras,
            on_step=on_step,
        )
        return picture

    def variants(
        self,
        photo: Image.Image | None,
        prompt: str,
        *,
        pictures: int = 4,
        mask: Image.Image | None = None,
        steps: int = STEPS_DEFAULT,
        guidance: float = GUIDANCE_DEFAULT,
        seed: int | None = None,
        aspect_ratio: AspectRatio = "match_input_image",
        acceleration: Acceleration = "none",
        loras: AskedLoras = MappingProxyType({}),
        on_step: OnProgress | None = None,
    ) -> list[Image.Image]:
        """Several pictures of one edit, to choose from: what `edit` gives with `seed`, `seed` + 1 and so on.

        Args:
            pictures: 1..4. Each takes as long as one; photo and prompt are read once.
            seed: of the first; None draws it.
            on_step: as for `edit`; a step is over when all pictures have taken it.
            The others: as for `edit`.

        Raises:
            As `edit`.
        """
        for name, picture in (("photo", photo), ("mask", mask)):
            if picture is not None and not isinstance(picture, Image.Image):
                raise EditRefused(
                    f"{name} is a {type(picture).__name__}: it must be a PIL.Image.Image (PIL.Image.open reads a file) "
                    "or None"
                )
        request = EditRequest(
            id="",
            prompt=prompt,
            photo=None if photo is None else seen(photo),
            mask=None if mask is None else read_white(mask),
            steps=steps,
            guidance=guidance,
            seed=secrets.randbelow(SEED_MAX) if seed is None else seed,
            pictures=pictures,
            aspect_ratio=aspect_ratio,
            acceleration=acceleration,
            loras=tuple((lora.stem if isinstance(lora, Path) else lora, by) for lora, by in loras.items()),
            lora_files={lora.stem: lora for lora in loras if isinstance(lora, Path)},
        )
        ticket = self.submit(request, on_progress=on_step)
        try:
            result = ticket.result()
        except BaseException:  # whoever is interrupted doesn't want it any more
            ticket.cancel()
            raise
        if result.prompt_tokens is not None:
            _log.warning(
                "%d tokens of the prompt were read; what it has beyond them was left out", result.prompt_tokens
            )
        return list(result.pictures)

    def submit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> Ticket:
        """Queue an edit. Many may be queued: a photo that waits is kept at the size it will be used at, compressed.

        Args:
            on_progress: called from the engine's threads; it must not block.

        Raises:
            DeadlineUnmeetable: the edit can't be done by its `deadline_s`.
            LoRARefused: one isn't in the folder, can't be read, or was made for another model.
            MaskRefused: it marks so little that nothing of it is left at the picture's size.
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
        warming.warm_up(self._core)

    def forget(self) -> None:
        """Empty the caches of prompts and references."""
        self._core.forget()

    def close(self) -> None:
        """Stop within one step. Edits that aren't done fail with `EditCancelled`. Not from a listener of an edit."""
        self._core.close()
