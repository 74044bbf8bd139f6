"""Building the transformer: its tensors read from either layout, changed by LoRAs, and held as a placement says."""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor

from rekontext.engine.fp8 import quantise, quantise_rows, quantised_names
from rekontext.engine.layers import on_host
from rekontext.engine.layouts import Recipe, diffusers_recipe, is_diffusers
from rekontext.engine.lora import LoRAs
from rekontext.engine.memory import Placement
from rekontext.engine.tensors import CheckpointError, TensorSource, first_of
from rekontext.engine.transformer import KontextTransformer, TransformerConfig

_MODULATION: Final = re.compile(r"(_mod|\.modulation)\.lin$")


def load_transformer(
    source: TensorSource,
    config: TransformerConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    loras: LoRAs | None = None,
) -> KontextTransformer:
    """Build the transformer on `device` from a source in either layout, with LoRAs merged into it.

    In fp8, weights that the files hold in e4m3 are taken as they are; others are quantised one by one, so that no more
    than one is on the device in its wide form.

    Raises:
        CheckpointError: tensors are missing, left over, or of the wrong shape; the first five are named. Or a LoRA is
            another model's.
    """
    with torch.device("meta"):
        model = KontextTransformer(config)
    parameters = dict(model.named_parameters())
    if is_diffusers(source):
        recipes = {name: diffusers_recipe(name) for name in parameters}
    else:
        recipes = {name: Recipe((name,)) for name in parameters}

    wanted = {name for recipe in recipes.values() for name in recipe.sources}
    names = set(source.names())
    _complain("missing", wanted - names, source)
    _complain("unexpected", names - wanted, source)

    changes = (loras or LoRAs()).of_transformer(parameters)
    covered = set(quantised_names(model)) if placement.fp8 else set()
    if covered:
        quantise(model)
    tensors: dict[str, Tensor] = {}
    for name, recipe in recipes.items():
        module, _, kind = name.rpartition(".")
        is_small = module in covered and kind == "weight"
        stored = source.read_e4m3(name) if is_small and name in source and name not in changes else None
        if stored is not None and stored[0].shape == parameters[name].shape:
            tensors[name], tensors[f"{module}.scale"] = (part.to(device) for part in stored)
            continue
        parts = [source.read(part, torch.float32 if name in changes else dtype) for part in recipe.sources]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if recipe.swap:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if tensor.shape != parameters[name].shape:
            raise CheckpointError(
                f"{source.label}: {' + '.join(recipe.sources)} has shape {list(tensor.shape)}, "
                f"expected {list(parameters[name].shape)}"
            )
        if name in changes:
            tensor = changes.merged(name, tensor.to(device)).to(dtype)
        if is_small:
            tensors[name], tensors[f"{module}.scale"] = quantise_rows(tensor.to(device))
        elif placement.modulation_on_host and _MODULATION.search(module):
            tensors[name] = on_host(tensor)
        else:
            tensors[name] = tensor.to(device)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval()


def _complain(what: str, names: set[str], source: TensorSource) -> None:
    if names:
        raise CheckpointError(f"{source.label}: {what} tensors: {first_of(names)}")
