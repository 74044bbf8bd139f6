"""Can edits run here: packages, devices, the model, LoRAs, the GPU's memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rekontext.cli.cores import usable
from rekontext.cli.doctor.finding import Finding, told
from rekontext.contract import EditRefused
from rekontext.models import MINI, is_hub_id, is_lora_on_hub, local_path, lora_and_strength, offered_loras
from rekontext.settings import EVERY_GPU, Settings, variable

if TYPE_CHECKING:
    import torch

_ENGINE_PACKAGES: Final = (
    *("torch", "diffusers", "transformers", "safetensors", "tokenizers", "einops"),
    *("accelerate", "huggingface_hub", "numpy"),
)
_GIB: Final = 2**30


def missing_packages() -> list[str]:
    """Of those that the engine needs."""
    return [name for name in _ENGINE_PACKAGES if importlib.util.find_spec(name) is None]


def look_at_packages(missing: list[str]) -> Finding:
    if missing:
        return Finding(
            subject="engine",
            verdict="broken",
            says=f"{', '.join(missing)} not installed; run: pip install 'rekontext[engine]'",
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _ENGINE_PACKAGES[:3])
    return Finding(subject="engine", verdict="ok", says=versions)


def look_at_devices(settings: Settings) -> Iterator[Finding]:
    """Each device that would be computed on, and how the model would be held there if it is a GPU."""
    import torch

    from rekontext.engine.precision import choose_device, every_gpu

    names = every_gpu() if settings.device == (EVERY_GPU,) else settings.device or (None,)
    if not names:
        says = f"{EVERY_GPU} GPUs were asked for and torch sees none; install a driver or unset {variable('device')}"
        yield Finding(subject="device", verdict="broken", says=says)
    for name in names:
        try:
            device = choose_device(name)
        except EditRefused as fault:
            says = f"{fault}; install a driver, or change {variable('device')}"
            yield Finding(subject="device", verdict="broken", says=says)
            continue
        if device.type == "cuda":
            gpu = torch.cuda.get_device_properties(device)
            yield Finding(subject="device", verdict="ok", says=f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB")
            if settings.dtype != "float32" and not settings.compiled:
                yield _gpu_kernels(device)
            yield _gpu_memory(settings, device)
        else:
            gpu_there = "" if torch.cuda.is_available() else "no GPU; "
            says = f"{gpu_there}{usable()} CPU cores, enough for mini only"
            yield Finding(subject="device", verdict="ok" if settings.model == MINI else "note", says=says)
    if not torch.cuda.is_available():
        yield _gpu_memory(settings, None)


def _gpu_kernels(gpu: torch.device) -> Finding:
    """Whether steps are as fast as they can be."""
    from rekontext.engine.tuning import missing_kernels

    why = missing_kernels(gpu)
    says = f"steps take longer than they need to: our own can't run, {why}" if why else "our own run here"
    return Finding(subject="gpu kernels", verdict="note" if why else "ok", says=says)


def look_at_model(settings: Settings) -> Finding:
    """Opens a model that is cheap to open; of a large one only looks whether it is there."""
    if settings.model != MINI:
        return _large_model(settings.model)
    from rekontext.engine import Engine

    try:
        with Engine.open(MINI, device="cpu") as engine:
            card = engine.card
    except ValueError as fault:
        return Finding(subject="model", verdict="broken", says=f"mini: {fault}; install rekontext again")
    return Finding(subject="model", verdict="ok", says=f"mini opens: {card.parameters / 1e6:.1f} M parameters")


def _large_model(name: str) -> Finding:
    path = local_path(name)
    if path.exists():
        from rekontext.engine import CheckpointError
        from rekontext.engine.checkpoint import model_sizes

        try:
            model_sizes(name)
        except CheckpointError as fault:
            return Finding(subject="model", verdict="broken", says=str(fault))
        return Finding(subject="model", verdict="ok", says=f"{path} is there, its weights not read")
    if not is_hub_id(name):
        return Finding(
            subject="model", verdict="broken", says=f"{name} is not there; give a folder, a file or a hub id"
        )
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "model_index.json"), str):
        return Finding(subject="model", verdict="ok", says=f"{name} is in the local hub cache (not opened)")
    return Finding(subject="model", verdict="note", says=f"{name} is not here yet: the first start downloads it")


def look_at_lora(entry: str, settings: Settings) -> Finding:
    name, strength = lora_and_strength(entry)
    if not local_path(name).exists() and is_lora_on_hub(name):
        return Finding(
            subject="lora",
            verdict="note",
            says=f"{name} isn't here, so it is of the hub: the first start downloads it",
        )
    return _fit(entry, settings, called=name, what_for=f"to be merged at strength {strength:g}")


def look_at_lora_folder(folder: Path, settings: Settings) -> Iterator[Finding]:
    """What is on offer, each with whether it fits, and what would be if it were called otherwise."""
    subject = "loras on offer"
    try:
        there = [file for file in sorted(folder.iterdir()) if file.suffix == ".safetensors" and not file.is_dir()]
    except OSError as fault:
        says = f"{folder} can't be read: {fault.strerror}; make it, or change {variable('lora_folder')}"
        yield Finding(subject=subject, verdict="broken", says=says)
        return
    offers = offered_loras(folder)
    if offers:
        yield Finding(subject=subject, verdict="ok", says=f"{len(offers)} in {folder}: {', '.join(offers)}")
    else:
        yield Finding(subject=subject, verdict="note", says=f"none: {folder} has no .safetensors file to be asked for")
    for name, file in offers.items():
        yield told("lora", partial(_fit, f"{file}:1", called=name, what_for="for edits that ask for it"), settings)
    if nameless := [file.name for file in there if file not in offers.values()]:
        allowed = "allowed are 1 to 100 letters, digits, _, . and -, a letter or a digit first"
        says = f"{', '.join(nameless)} can't be asked for by name: {allowed}; rename what is to be on offer"
        yield Finding(subject=subject, verdict="note", says=says)


def _fit(entry: str, settings: Settings, *, called: str, what_for: str) -> Finding:
    """Whether a LoRA that is here fits the model, as far as that is here too."""
    from rekontext.engine import CheckpointError
    from rekontext.engine.checkpoint import require_loras

    is_here = settings.model == MINI or local_path(settings.model).exists()
    try:
        require_loras(settings.model if is_here else None, [entry])
    except CheckpointError as fault:
        return Finding(subject="lora", verdict="broken", says=str(fault))
    fits = f"fits the transformer of {settings.model}" if is_here else "can be read"
    return Finding(subject="lora", verdict="ok", says=f"{called} {fits}, {what_for}")


def _gpu_memory(settings: Settings, gpu: torch.device | None) -> Finding:
    """The ways of holding the model on a GPU, and which one would be taken on this one; None for a machine without."""
    import torch

    from rekontext.engine import CheckpointError
    from rekontext.engine.checkpoint import model_sizes
    from rekontext.engine.fp8 import missing_units
    from rekontext.engine.memory import Sizes, memory_plans

    subject = "gpu memory"
    path = local_path(settings.model)
    try:
        sizes = model_sizes(settings.model) if path.exists() else Sizes()
    except CheckpointError as fault:
        return Finding(subject=subject, verdict="broken", says=str(fault))
    whose = path.name if path.exists() else "FLUX.1 Kontext [dev]"
    if gpu is None:
        needs = "; ".join(str(plan) for plan in memory_plans(sizes, 0))
        return Finding(subject=subject, verdict="ok", says=f"no GPU here; {whose} needs {needs}")
    free_bytes, _ = torch.cuda.mem_get_info(gpu)
    possible = memory_plans(sizes, free_bytes, has_fp8=not missing_units(gpu))
    fitting = [plan for plan in possible if plan.fits]
    table = "; ".join(f"{plan} ({'fits' if plan.fits else 'does not fit'})" for plan in possible)
    if not fitting and settings.model != MINI:
        return Finding(
            subject=subject, verdict="broken", says=f"{whose} does not fit: {table}; free memory or take a larger GPU"
        )
    says = f"{whose} would be held as {fitting[0].name}: {table}" if fitting else f"{whose} would not fit: {table}"
    return Finding(subject=subject, verdict="ok", says=says)
