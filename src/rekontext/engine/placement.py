"""Carrying out a memory plan: open a model as the first plan that works says, and step down when memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch

from rekontext.engine.checkpoint import OpenedModel, facts_of, model_sizes, open_model
from rekontext.engine.fp8 import missing_units, quantise
from rekontext.engine.layers import ModulationLinear
from rekontext.engine.memory import GB, MemoryPlan, Placement, memory_plans
from rekontext.engine.packed import can_pack
from rekontext.engine.precision import choose_dtype, keep_float32, multiplies_bfloat16
from rekontext.engine.pretrained import offload_encoder
from rekontext.engine.tensors import CheckpointError

FP8: Final = "fp8"
_SHORT_OF_MEMORY: Final = ("out of memory", "STATUS_ALLOC_FAILED", "not enough memory")
"""How libraries and drivers say it; PyTorch has a class of its own for what its own allocator refuses."""
_log = logging.getLogger(__name__)

Open = Callable[[Placement], OpenedModel]


def open_placed(
    model: str, *, device: torch.device, dtype: str | None, packed: bool = True, loras: Sequence[str] = ()
) -> tuple[OpenedModel, tuple[MemoryPlan, ...]]:
    """Open a model in the given dtype. Where none is given: on a GPU by memory plan, on a CPU as its facts ask for.

    Args:
        packed: on a CPU, have the transformer's weights packed where that works: see `packed.py`.
        loras: merged into the model: see `lora.py`.

    Returns:
        The model, and the plans: the one in force, then those that may be fallen to. None where a dtype was asked for.

    Raises:
        CheckpointError: the model or a LoRA can't be found or isn't complete, or no plan fits.
        EditRefused: no such dtype here.
    """

    def opened(placement: Placement) -> OpenedModel:
        if choose_dtype(dtype, device) is torch.float32:
            keep_float32(device)
        parts = open_model(model, device=device, dtype=choose_dtype(dtype, device), placement=placement, loras=loras)
        if device.type == "cpu" and packed and not placement.fp8 and can_pack(parts.transformer.dtype):
            parts.transformer.pack()
        return parts

    if dtype is None and device.type == "cpu" and multiplies_bfloat16():
        dtype = facts_of(model).cpu_dtype
    if device.type == "cpu":
        # On a thread that ends with it. Every thread that ever computes on the CPU keeps helpers, one per core; as soon
        # as there are more of them than cores, OpenMP lets all sleep between kernels: an edit takes half as long again.
        with ThreadPoolExecutor(1) as opener:
            return opener.submit(opened, Placement(fp8=dtype == FP8)).result(), ()
    if dtype is not None:
        try:
            return opened(Placement(fp8=dtype == FP8)), ()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{device} ran out of memory opening the model in {dtype}: name no dtype, and one that fits is taken"
            ) from error
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return open_first(opened, memory_plans(model_sizes(model), free_bytes, has_fp8=not missing_units(device)), device)


def open_first(
    opened: Open, choices: list[MemoryPlan], device: torch.device
) -> tuple[OpenedModel, tuple[MemoryPlan, ...]]:
    """Open by the first plan that fits and doesn't run out of memory after all."""
    fitting = [plan for plan in choices if plan.fits]
    if not fitting:
        least = choices[-1]
        raise CheckpointError(
            f"the model needs {least.device_bytes / GB:.1f} GB of free memory on {device} even with {least.name}, and "
            f"{least.free_bytes / GB:.1f} GB are free: close what else runs there, or choose another device"
        )
    for i, plan in enumerate(fitting):
        try:
            parts = opened(plan.placement)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if i + 1 == len(fitting):
                raise CheckpointError(f"{device} ran out of memory with {plan}") from error
            _warn_of_fall(plan, fitting[i + 1])
        else:
            _log.info("opened with %s", plan)
            return parts, tuple(fitting[i:])
        # Outside the except clause: while the error is at hand it holds what was loaded so far.
        free_memory(device)
    raise AssertionError("the last plan either returns or raises")


class Holding:
    """How an opened model is held, and what is left to fall to.

    Args:
        plans: the one in force, then those that may be fallen to; none where the operator chose.
    """

    def __init__(self, parts: OpenedModel, plans: Sequence[MemoryPlan]) -> None:
        self._parts = parts
        self._placement = parts.placement
        self._plans = list(plans)

    @property
    def dtype(self) -> str:
        """In which format the model computes, as `Engine.open` names it."""
        return FP8 if self._placement.fp8 else str(self._parts.transformer.dtype).removeprefix("torch.")

    @property
    def can_fall(self) -> bool:
        """Whether there is a narrower way left."""
        return len(self._plans) > 1

    def fall(self, *, beside: Callable[[Callable[[], None]], None]) -> None:
        """Hold the model as the next plan says. No step may be running; without a next plan, only tidy up.

        Args:
            beside: runs a function where nothing is being encoded meanwhile.
        """
        device = self._parts.transformer.device
        free_memory(device)
        if not self.can_fall:
            return
        above, below = self._plans[:2]
        _warn_of_fall(above, below)
        try:
            if below.placement.fp8 and not self._placement.fp8:
                quantise(self._parts.transformer)
            beside(lambda: self._move_to_host(below.placement))
        except Exception:
            # Layers that were converted already work beside those that were not: what failed will fail by itself.
            _log.exception("could not fall to %s", below)
            self._plans = self._plans[:1]
            return
        self._placement = below.placement
        self._plans.pop(0)
        free_memory(device)

    def _move_to_host(self, wanted: Placement) -> None:
        transformer = self._parts.transformer
        if wanted.text_on_host and not self._placement.text_on_host:
            for encoder in (self._parts.clip, self._parts.t5):
                offload_encoder(encoder, transformer.device)
        if wanted.modulation_on_host and not self._placement.modulation_on_host:
            for layer in transformer.modules():
                if isinstance(layer, ModulationLinear):
                    layer.to_host()


def _warn_of_fall(above: MemoryPlan, below: MemoryPlan) -> None:
    _log.warning("out of memory with %s; going on with %s: pictures will differ in their last digits", above, below)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had too little memory, whoever asked for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _SHORT_OF_MEMORY)


def free_memory(device: torch.device) -> None:
    """Give back to the driver what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
