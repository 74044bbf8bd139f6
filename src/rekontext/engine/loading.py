"""The transformer's weights: read from either layout, changed by LoRAs, and held as a placement says."""

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
from rekontext.engine.tensors import HOST, CheckpointError, TensorSource, first_of
from rekontext.engine.transformer import KontextTransformer, TransformerConfig

_MODULATION: Final = re.compile(r"(_mod|\.modulation)\.lin$")


class StoredWeights:
    """A transformer's weights where they are stored, under our names, to be read whenever they are wanted.

    Args:
        source: in either layout.
        dtype: in which they are wanted.
        loras: merged into whatever is read.

    Attributes:
        parameters: all of them, on the meta device.

    Raises:
        CheckpointError: tensors are missing or left over; the first five are named. Or a LoRA is another model's.
    """

    def __init__(
        self, source: TensorSource, config: TransformerConfig, *, dtype: torch.dtype, loras: LoRAs | None = None
    ) -> None:
        self.config = config
        with torch.device("meta"):
            self.parameters: dict[str, Tensor] = dict(KontextTransformer(config).named_parameters())
        self._source = source
        self._dtype = dtype
        names = self.parameters
        self._recipes = {name: diffusers_recipe(name) if is_diffusers(source) else Recipe((name,)) for name in names}
        wanted = {name for recipe in self._recipes.values() for name in recipe.sources}
        found = set(source.names())
        _complain("missing", wanted - found, source)
        _complain("unexpected", found - wanted, source)
        self._changes = (loras or LoRAs()).of_transformer(self.parameters)

    def is_exact(self, name: str) -> bool:
        """Whether what is read is what is stored, bit for bit."""
        recipe = self._recipes[name]
        return name not in self._changes and all(
            self._source.is_stored_in(part, self._dtype) for part in recipe.sources
        )

    def wide(self, name: str, *, device: torch.device) -> Tensor:
        """A parameter with what is merged into it, in float32 and on `device`, the caller's own. Raises as `read`."""
        # What is read may be the file's own memory.
        return self._changes.merged(name, self._whole(name, torch.float32, device).clone())

    def read(self, name: str, *, device: torch.device) -> Tensor:
        """A parameter in its dtype: on the host, or on `device` if something is merged into it.

        Raises:
            CheckpointError: its shape or format is wrong, or what is merged into it isn't finite.
        """
        if name in self._changes:
            return self.wide(name, device=device).to(self._dtype)
        return self._whole(name, self._dtype, HOST)

    def read_e4m3(self, name: str, *, device: torch.device) -> tuple[Tensor, Tensor]:
        """A matrix in e4m3, and its scales: as they are stored, or as `quantise_rows` makes them. Raises as `read`."""
        if name in self._source and name not in self._changes:
            stored = self._source.read_e4m3(name)
            if stored is not None and stored[0].shape == self.parameters[name].shape:
                return stored[0].to(device), stored[1].to(device)
        return quantise_rows(self.read(name, device=device).to(device))

    def _whole(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        recipe, source = self._recipes[name], self._source
        parts = [source.read(part, dtype, device) for part in recipe.sources]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if recipe.swap:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if tensor.shape != self.parameters[name].shape:
            raise CheckpointError(
                f"{source.label}: {' + '.join(recipe.sources)} has shape {list(tensor.shape)}, "
                f"expected {list(self.parameters[name].shape)}"
            )
        return tensor


def load_transformer(
    stored: StoredWeights,
    *,
    device: torch.device,
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> KontextTransformer:
    """Build the transformer on `device`.

    In fp8, weights that the files hold in e4m3 are taken as they are; others are quantised one by one, so that no more
    than one is on the device in its wide form.

    Raises:
        CheckpointError: a tensor has the wrong shape or format.
    """
    with torch.device("meta"):
        model = KontextTransformer(stored.config)
    covered = set(quantised_names(model)) if placement.fp8 else set()
    if covered:
        quantise(model)
    tensors: dict[str, Tensor] = {}
    for name in stored.parameters:
        module, _, kind = name.rpartition(".")
        if module in covered and kind == "weight":
            tensors[name], tensors[f"{module}.scale"] = stored.read_e4m3(name, device=device)
        elif placement.modulation_on_host and _MODULATION.search(module):
            tensors[name] = on_host(stored.read(name, device=device))
        else:
            tensors[name] = stored.read(name, device=device).to(device)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval()


def _complain(what: str, names: set[str], source: TensorSource) -> None:
    if names:
        raise CheckpointError(f"{source.label}: {what} tensors: {first_of(names)}")
