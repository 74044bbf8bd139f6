"""LoRAs: small files that change a model's weights, merged into them while they are read.

    W' = W + strength * alpha / rank * up @ down        (https://arxiv.org/abs/2106.09685, section 4.1)

In float32, and rounded once: a step then costs what it costs without, in every precision. Trainers write one thing
under many names. Our own modules bear the original's, so that most of them differ from ours by a prefix; diffusers'
parts of a fused matrix become rows of it.

Axis letters: o output, d input, r rank.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from rekontext.engine.layouts import diffusers_recipe
from rekontext.engine.tensors import CheckpointError, TensorSource
from rekontext.models import is_lora_on_hub, local_path, lora_and_strength

Part = Literal["transformer", "clip", "t5"]

_PREFIXES: Final[tuple[tuple[str, Part], ...]] = (
    ("text_encoder.", "clip"),
    ("text_encoders.clip_l.transformer.", "clip"),
    ("lora_te1_", "clip"),
    ("lora_te_", "clip"),
    ("text_encoder_2.", "t5"),
    ("text_encoders.t5xxl.transformer.", "t5"),
    ("lora_te2_", "t5"),
    ("lora_te3_", "t5"),
    ("base_model.model.", "transformer"),
    ("model.diffusion_model.", "transformer"),
    ("diffusion_model.", "transformer"),
    ("transformer.", "transformer"),
    ("lora_unet_", "transformer"),
    ("lora_transformer_", "transformer"),
    ("", "transformer"),
)
"""diffusers', ComfyUI's and kohya's for each part, in the order in which they are tried; PEFT's; and none."""
_OF_MODULES: Final[dict[Part, str]] = {"transformer": "transformer", "clip": "text_encoder", "t5": "text_encoder_2"}
"""How PEFT's settings, which may stand in a file's header, name the parts."""
_KINDS: Final = re.compile(
    r"(?P<module>.+?)\."
    r"(?:(?P<down>lora_A(?:\.default)?\.weight|lora_down\.weight|lora(?:_linear_layer)?\.down\.weight|down\.weight)"
    r"|(?P<up>lora_B(?:\.default)?\.weight|lora_up\.weight|lora(?:_linear_layer)?\.up\.weight|up\.weight)"
    r"|(?P<up_bias>lora_B(?:\.default)?\.bias)|(?P<alpha>alpha)|(?P<diff>diff)|(?P<diff_b>diff_b))"
)
"""What a tensor is to its module: a factor, or a difference of the whole weight or bias."""
_OTHERS: Final = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_w1": "LoKr",
    "lokr_w2": "LoKr",
    "hada_w1_a": "LoHa",
    "hada_w2_a": "LoHa",
    "lora_mid": "LoCon",
    "set_weight": "a control LoRA",
}
"""Words in the names of what can't be merged: their other tensors alone would make another change."""
_SETTINGS: Final = "lora_adapter_metadata"


class _Target(NamedTuple):
    """What a module's name stands for: rows of one of our weights.

    Attributes:
        rows: None for all.
        swap: its two halves are the other way round in ours.
    """

    weight: str
    rows: slice | None = None
    swap: bool = False


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """What one file has for one module: tensors' names by their kind."""

    source: TensorSource
    module: str
    strength: float
    names: Mapping[str, str]

    def shape_of(self, kind: str) -> tuple[int, ...]:
        return self.source.shape(self.names[kind])

    def read(self, kind: str, device: torch.device) -> Tensor:
        return self.source.read(self.names[kind], torch.float32).to(device)

    def scale(self, part: Part) -> float:
        """alpha / rank, times the strength. Without an alpha it is the rank, as diffusers has it."""
        rank = self.shape_of("down")[0]
        if "alpha" in self.names:
            return self.strength * self.source.read(self.names["alpha"], torch.float32).item() / rank
        alpha, divisor = _told(self.source, part, self.module, rank)
        return self.strength * alpha / divisor


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What LoRAs change in one part of a model, by its parameters' names."""

    part: Part
    _layers: Mapping[str, Sequence[tuple[_Layer, _Target, bool]]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def merged(self, name: str, wide: Tensor) -> Tensor:
        """The parameter `name` with every change of it, computed where it is.

        Args:
            wide: as it is without, in float32; it is changed.
        """
        for layer, target, is_bias in self._layers.get(name, ()):
            rows = wide if target.rows is None else wide[target.rows]
            change = self._bias(layer, wide.device) if is_bias else self._weight(layer, wide.device)
            rows += torch.cat(change.chunk(2)[::-1]) if target.swap else change
        return wide

    def merge_into(self, module: nn.Module) -> None:
        """Each changed parameter of an opened part, rounded to its own dtype."""
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name in self._layers:
                parameter = parameters[name]
                parameter.copy_(self.merged(name, parameter.float().clone()))

    def _weight(self, layer: _Layer, device: torch.device) -> Tensor:
        change: Tensor | float = 0.0
        if "diff" in layer.names:
            change = layer.read("diff", device) * layer.strength
        if "down" in layer.names:
            up_or, down_rd = layer.read("up", device), layer.read("down", device)
            change = change + layer.scale(self.part) * (up_or @ down_rd)
        assert isinstance(change, Tensor), f"{layer.module} has no change"
        return change

    def _bias(self, layer: _Layer, device: torch.device) -> Tensor:
        change: Tensor | float = 0.0
        if "diff_b" in layer.names:
            change = layer.read("diff_b", device) * layer.strength
        if "up_bias" in layer.names:
            change = change + layer.scale(self.part) * layer.read("up_bias", device)
        assert isinstance(change, Tensor), f"{layer.module} has no change of its bias"
        return change


class LoRAs:
    """The files that a model is opened with.

    Args:
        entries: each a file, a folder with one in it, or a hub id, and after a colon its strength: see
            `rekontext.models.lora_and_strength`.

    Raises:
        CheckpointError: a file can't be found or read, or holds something other than a LoRA.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self.names: list[str] = []
        self._layers: dict[Part, list[_Layer]] = defaultdict(list)
        for entry in entries:
            name, strength = lora_and_strength(entry)
            path = _find(name)
            self.names.append(path.stem if strength == 1 else f"{path.stem}:{strength:g}")
            for part, layer in _layers_of(TensorSource([path]), strength):
                self._layers[part].append(layer)

    def of_transformer(self, parameters: Mapping[str, Tensor]) -> Changes:
        """What is changed in a transformer.

        Args:
            parameters: by our names; their shapes are enough.

        Raises:
            CheckpointError: a LoRA was made for a transformer of other modules or sizes.
        """
        return self._changes("transformer", parameters, _transformers_names(parameters))

    def of_encoder(self, part: Literal["clip", "t5"], encoder: nn.Module) -> Changes:
        """The same for a text encoder."""
        parameters = dict(encoder.named_parameters())
        return self._changes(part, parameters, _encoders_names(parameters))

    def _changes(self, part: Part, parameters: Mapping[str, Tensor], targets: Mapping[str, _Target]) -> Changes:
        changes: dict[str, list[tuple[_Layer, _Target, bool]]] = defaultdict(list)
        strangers: dict[TensorSource, list[str]] = defaultdict(list)
        for layer in self._layers[part]:
            target = targets.get(_plain(layer.module))
            if target is None:
                strangers[layer.source].append(layer.module)
                continue
            bias = re.sub(r"\.weight$", ".bias", target.weight)
            kinds = layer.names.keys()
            for name, is_bias in ((target.weight, False), (bias, True)):
                if not kinds & ({"up_bias", "diff_b"} if is_bias else {"down", "diff"}):
                    continue
                if name not in parameters or (is_bias and name == target.weight):
                    strangers[layer.source].append(f"{layer.module} (its bias)")
                    continue
                _require_shapes(layer, target, parameters[name], is_bias=is_bias)
                changes[name].append((layer, target, is_bias))
        for source, modules in strangers.items():
            raise CheckpointError(
                f"{source.label} changes what this model's {_OF_MODULES[part]} doesn't have, so it was made for "
                f"another model: {_first(modules)}"
            )
        return Changes(part=part, _layers=changes)


def _find(name: str) -> Path:
    """The file, fetched from the hub if it comes from there."""
    path = local_path(name)
    if not path.exists() and is_lora_on_hub(name):
        owner, repository, *file = name.split("/", 2)
        try:
            path = Path(snapshot_download(f"{owner}/{repository}", allow_patterns=file or ["*.safetensors"]), *file)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise CheckpointError(
                f"the LoRA {name!r} is neither a local path nor to be had from the hub ({type(error).__name__}): "
                "check the name and the network"
            ) from error
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            those = ", ".join(file.name for file in found[:5]) or "none"
            raise CheckpointError(f"{name} has {len(found)} .safetensors files in it ({those}): name the one")
        return found[0]
    if not path.exists():
        raise CheckpointError(f"no LoRA at {name!r}: give a .safetensors file, or owner/name of one on the hub")
    return path


def _layers_of(source: TensorSource, strength: float) -> Iterator[tuple[Part, _Layer]]:
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    strange = []
    for name in source.names():
        for word, kind in _OTHERS.items():
            if f".{word}" in name:
                raise CheckpointError(
                    f"{source.label} is {kind} ({name}), which can't be merged: only LoRAs "
                    "(lora_A and lora_B, or lora_down and lora_up) can"
                )
        match = _KINDS.fullmatch(name)
        if match is None:
            strange.append(name)
            continue
        assert match.lastgroup is not None, "one of the kinds"
        modules[match["module"]][match.lastgroup] = name
    if strange or not modules:
        raise CheckpointError(f"{source.label} holds no LoRA, or more than one: {_first(strange) or 'it is empty'}")
    for module, names in modules.items():
        kinds = names.keys()
        if ("down" in kinds) != ("up" in kinds) or not kinds - {"alpha"} or ("up_bias" in kinds and "up" not in kinds):
            raise CheckpointError(f"{source.label}: {module} lacks a factor: it has only {', '.join(names.values())}")
        prefix, part = next((prefix, part) for prefix, part in _PREFIXES if module.startswith(prefix))
        if part == "clip" and "text_projection" in module:
            continue  # of CLIP's joint space, which FLUX makes no use of
        yield (
            part,
            _Layer(source=source, module=module.removeprefix(prefix), strength=strength, names=names),
        )


def _plain(module: str) -> str:
    """A module's name as kohya writes it, which leaves its dots no meaning of their own."""
    return module.replace(".", "_").removeprefix("text_model_")


def _encoders_names(parameters: Mapping[str, Tensor]) -> dict[str, _Target]:
    return {
        _plain(name.removesuffix(".weight")): _Target(weight=name) for name in parameters if name.endswith(".weight")
    }


def _transformers_names(parameters: Mapping[str, Tensor]) -> dict[str, _Target]:
    """The original's names, diffusers' and, where they are others, XLabs'."""
    width = len(parameters["img_in.weight"])
    names: dict[str, _Target] = {}
    for name, parameter in parameters.items():
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            continue
        names[_plain(module)] = whole = _Target(weight=name)
        recipe = diffusers_recipe(name)
        first = 0
        for i, theirs in enumerate(recipe.sources):
            # The parts of a fused matrix are q, k, v, each as wide as the model, and the rest.
            end = len(parameter) if i + 1 == len(recipe.sources) else first + width
            rows = None if len(recipe.sources) == 1 else slice(first, end)
            names[_plain(theirs.rpartition(".")[0])] = _Target(weight=name, rows=rows, swap=recipe.swap)
            first = end
        for ours, theirs, rows in (
            ("img_attn.qkv", "processor.qkv_lora1", None),
            ("img_attn.proj", "processor.proj_lora1", None),
            ("txt_attn.qkv", "processor.qkv_lora2", None),
            ("txt_attn.proj", "processor.proj_lora2", None),
            ("linear1", "processor.qkv_lora", slice(0, 3 * width)),
            ("linear2", "processor.proj_lora", None),
        ):
            if module.endswith(f".{ours}"):
                names[_plain(module.removesuffix(ours) + theirs)] = whole._replace(rows=rows)
    return names


def _require_shapes(layer: _Layer, target: _Target, parameter: Tensor, *, is_bias: bool) -> None:
    shape = list(parameter.shape)
    if target.rows is not None:
        shape[0] = target.rows.stop - target.rows.start
    if is_bias:
        wanted = {"up_bias": shape, "diff_b": shape}
    else:
        wanted = {"diff": shape}
        if "down" in layer.names:
            rank = layer.shape_of("down")[:1]
            wanted |= {"down": [*rank, *shape[1:]], "up": [shape[0], *rank]}
            if len(shape) != 2 or not all(rank):
                raise CheckpointError(f"{layer.source.label}: {layer.names['down']} changes no matrix, or is empty")
    for kind, expected in wanted.items():
        if kind in layer.names and list(found := layer.shape_of(kind)) != expected:
            raise CheckpointError(
                f"{layer.source.label}: {layer.names[kind]} has shape {list(found)}, and for this model it would be "
                f"{expected}: it was made for another"
            )
    if "alpha" in layer.names and math.prod(layer.shape_of("alpha")) != 1:
        raise CheckpointError(f"{layer.source.label}: {layer.names['alpha']} must be one number")


def _told(source: TensorSource, part: Part, module: str, rank: int) -> tuple[float, float]:
    """alpha and what it is divided by, from PEFT's settings as diffusers writes them into a file's header."""
    text = source.metadata.get(_SETTINGS)
    try:
        settings: dict[str, Any] = json.loads(text) if text else {}
        prefix = f"{_OF_MODULES[part]}."
        told = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
        if not told:
            return rank, rank
        alpha = told.get("lora_alpha", 8)  # PEFT's own default
        for pattern, other in (told.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = other
                break
        return float(alpha), math.sqrt(rank) if told.get("use_rslora") else rank
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise CheckpointError(f"{source.label}: its header's {_SETTINGS} can't be read: {error}") from error


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(sorted(names)[:5]) + more
