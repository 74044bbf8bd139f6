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
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from rekontext.contract import with_strength
from rekontext.engine.layouts import diffusers_recipe
from rekontext.engine.tensors import CheckpointError, TensorSource, first_of
from rekontext.models import is_lora_on_hub, local_path, lora_and_strength
from rekontext.models.lora_files import SETTINGS

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
    ("transformer.", "transformer"),
    ("model.diffusion_model.", "transformer"),
    ("diffusion_model.", "transformer"),
    ("lora_transformer_", "transformer"),
    ("lora_unet_", "transformer"),
    ("lycoris_", "transformer"),
    ("", "transformer"),
)
"""diffusers', ComfyUI's, kohya's and LyCORIS' for each part, and none. Where a file has one change under two of them,
it is taken from the first, as diffusers does."""
_PEFT: Final = "base_model.model."
"""Before or behind these, where PEFT wrapped the model or its part."""
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
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".lora_mid": "LoCon",
    ".set_weight": "a control LoRA",
}
"""In the names of what can't be merged: their other tensors alone would make another change."""
_SAVED_BY_PEFT: Final = "adapter_model.safetensors"
_ITS_SETTINGS: Final = "adapter_config.json"
_NAMELESS: Final = frozenset({"pytorch_lora_weights", "adapter_model", "lora", "model"})
"""As tools call any file of theirs."""


class _Target(NamedTuple):
    """What a module's name stands for: rows of one of our weights.

    Attributes:
        rows: None for all.
        swap: its two halves are the other way round in ours.
    """

    weight: str
    rows: slice | None = None
    swap: bool = False

    def overlaps(self, other: _Target) -> bool:
        if self.rows is None or other.rows is None:
            return True
        return bool(self.rows.start < other.rows.stop and other.rows.start < self.rows.stop)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """What one file has for one module.

    Attributes:
        prefix: before the module's name.
        names: of its tensors, by their kind.
        strength: by which differences are multiplied.
        scale: by which products are: strength * alpha / rank.
    """

    source: TensorSource
    prefix: str
    module: str
    names: Mapping[str, str]
    strength: float
    scale: float

    @property
    def changes_weight(self) -> bool:
        return not self.names.keys().isdisjoint({"down", "diff"})

    @property
    def changes_bias(self) -> bool:
        return not self.names.keys().isdisjoint({"up_bias", "diff_b"})

    def shape_of(self, kind: str) -> tuple[int, ...]:
        return self.source.shape(self.names[kind])

    def change(self, *, is_bias: bool, device: torch.device) -> Tensor:
        """What is added to the weight or the bias, in float32."""
        whole, factor = ("diff_b", "up_bias") if is_bias else ("diff", "down")
        terms = []
        if whole in self.names:
            terms.append(self.strength * self._read(whole, device))
        if factor in self.names:
            product = self._read(factor, device) if is_bias else self._read("up", device) @ self._read("down", device)
            terms.append(self.scale * product)
        change = sum(terms[1:], terms[0])
        if not change.isfinite().all():
            raise CheckpointError(
                f"{self.source.label}: what it adds to {self.module} is NaN or infinite: the file is damaged, or its "
                "training went astray"
            )
        return change

    def _read(self, kind: str, device: torch.device) -> Tensor:
        return self.source.read(self.names[kind], torch.float32, device)


@dataclass(frozen=True)
class Changes:
    """What LoRAs change in one part of a model, by its parameters' names."""

    _layers: Mapping[str, Sequence[tuple[_Layer, _Target, bool]]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def merged(self, name: str, wide: Tensor) -> Tensor:
        """The parameter `name` with every change of it, computed where it is.

        Args:
            wide: as it is without, in float32; it is changed.

        Raises:
            CheckpointError: a change isn't finite.
        """
        for layer, target, is_bias in self._layers.get(name, ()):
            change = layer.change(is_bias=is_bias, device=wide.device)
            rows = wide if target.rows is None else wide[target.rows]
            rows += torch.cat(change.chunk(2)[::-1]) if target.swap else change
        return wide

    def merge_into(self, module: nn.Module) -> None:
        """Each changed parameter of an opened part, rounded to its own dtype. Raises as `merged`."""
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name in self._layers:
                parameter = parameters[name]
                parameter.copy_(self.merged(name, parameter.float().clone()))


class LoRAs:
    """The files that a model is opened with.

    Args:
        entries: each a file, a folder with one in it, or a hub id, and after a colon its strength: see
            `rekontext.models.lora_and_strength`.

    Attributes:
        names: as answers tell them, with their strengths where those aren't 1.

    Raises:
        CheckpointError: a file can't be found or read, or holds something other than a LoRA.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self.names: list[str] = []
        self._layers: dict[Part, list[_Layer]] = defaultdict(list)
        for entry in entries:
            given, strength = lora_and_strength(entry)
            path, name = _find(given)
            self.add(TensorSource([path]), name, strength)

    def add(self, source: TensorSource, name: str, strength: float) -> None:
        """One more. Raises as the class does for a file that can be read."""
        self.names.append(with_strength(name, strength))
        for part, layer in _layers_of(source, strength):
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
            bias = target.weight.removesuffix(".weight") + ".bias"
            if layer.changes_bias and bias not in parameters:
                strangers[layer.source].append(f"{layer.module} (a bias)")
                continue
            for name, is_bias, is_changed in (
                (target.weight, False, layer.changes_weight),
                (bias, True, layer.changes_bias),
            ):
                if is_changed and not _is_there(layer, target, changes[name]):
                    _require_shapes(layer, target, parameters[name], is_bias=is_bias)
                    changes[name].append((layer, target, is_bias))
        for source, modules in strangers.items():
            raise CheckpointError(
                f"{source.label} changes what this model's {_OF_MODULES[part]} doesn't have, so it was made for "
                f"another model: {first_of(modules)}"
            )
        return Changes({name: layers for name, layers in changes.items() if layers})


def _is_there(layer: _Layer, target: _Target, before: Sequence[tuple[_Layer, _Target, bool]]) -> bool:
    """Whether the same file has this change under a prefix that comes first."""
    for other, where, _ in before:
        if other.source is layer.source and where.overlaps(target):
            if other.prefix == layer.prefix:
                raise CheckpointError(f"{layer.source.label} changes {layer.module} twice: as {other.module}, too")
            return True
    return False


def _find(given: str) -> tuple[Path, str]:
    """The file, fetched from the hub if it comes from there, and what it is called."""
    path = local_path(given)
    if not path.exists() and is_lora_on_hub(given):
        return _fetched(given)
    if path.is_dir():
        return path / _the_one(given, [file.name for file in path.glob("*.safetensors")]), path.absolute().name
    if not path.is_file():
        raise CheckpointError(f"no LoRA at {given!r}: give a .safetensors file, or owner/name of one on the hub")
    return path, path.absolute().parent.name if path.stem in _NAMELESS else path.stem


def _fetched(given: str) -> tuple[Path, str]:
    owner, name, *rest = given.split("/", 2)
    repository = f"{owner}/{name}"
    try:
        file = rest[0] if rest else _the_one(given, _files_of(repository))
        path = Path(hf_hub_download(repository, file))
        if path.name == _SAVED_BY_PEFT:
            with suppress(EntryNotFoundError):
                hf_hub_download(repository, Path(file).with_name(_ITS_SETTINGS).as_posix())
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"the LoRA {given!r} is neither a local path nor in the hub's local cache, and the hub doesn't answer: "
            "check the name and the network"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"the hub's repository {repository} has no file for {given!r}: {error}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"the LoRA {given!r} is neither a local path nor to be had from the hub ({type(error).__name__}): "
            "check the name, the network, and for gated ones that HF_TOKEN is set"
        ) from error
    return path, given.removesuffix(".safetensors")


def _files_of(repository: str) -> list[str]:
    """In the repository's own folder: below may lie whole models."""
    try:
        names = HfApi().list_repo_files(repository)
    except HfHubHTTPError:
        raise
    except Exception:  # an HTTP library's own: away from the network what was fetched before is good
        names = [path.name for path in Path(snapshot_download(repository, local_files_only=True)).iterdir()]
    return [name for name in names if "/" not in name and name.endswith(".safetensors")]


def _the_one(given: str, files: Sequence[str]) -> str:
    if len(files) != 1:
        raise CheckpointError(
            f"{given} has {len(files)} .safetensors files in it ({first_of(files) or 'none'}): name the one"
        )
    return files[0]


def _layers_of(source: TensorSource, strength: float) -> Iterator[tuple[Part, _Layer]]:
    """In the order of `_PREFIXES`."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    strange = []
    for name in source.names():
        for mark, kind in _OTHERS.items():
            if mark in name:
                raise CheckpointError(
                    f"{source.label} is {kind} ({name}), which can't be merged: only LoRAs "
                    "(lora_A and lora_B, or lora_down and lora_up) can"
                )
        match = _KINDS.fullmatch(name)
        if match is None:
            strange.append(name)
            continue
        assert match.lastgroup is not None, "one of the kinds"
        names = modules[match["module"]]
        if (twice := names.get(match.lastgroup)) is not None:
            raise CheckpointError(f"{source.label} has {match['module']} twice: {twice} and {name}")
        source.require_opened(name)
        names[match.lastgroup] = name
    if strange or not modules:
        what = "holds more than a LoRA, as control LoRAs do" if modules else "holds no LoRA"
        raise CheckpointError(f"{source.label} {what}: {first_of(strange) or 'it is empty'}")
    parted = sorted(((*_parted(module), names) for module, names in modules.items()), key=lambda each: each[0])
    for order, module, names in parted:
        prefix, part = _PREFIXES[order]
        if part == "clip" and "text_projection" in module:
            continue  # of CLIP's joint space, which FLUX makes no use of
        _require_factors(source, module, names)
        yield (
            part,
            _Layer(
                source=source,
                prefix=prefix,
                module=module,
                names=names,
                strength=strength,
                scale=strength * _alpha_by_rank(source, part, module, names),
            ),
        )


def _parted(module: str) -> tuple[int, str]:
    """Which of `_PREFIXES` a name begins with, and what is left of it."""
    module = module.removeprefix(_PEFT)
    order = next(i for i, (prefix, _) in enumerate(_PREFIXES) if module.startswith(prefix))
    return order, module.removeprefix(_PREFIXES[order][0]).removeprefix(_PEFT)


def _require_factors(source: TensorSource, module: str, names: Mapping[str, str]) -> None:
    kinds = names.keys()
    if ("down" in kinds) != ("up" in kinds) or not kinds - {"alpha"} or ("up_bias" in kinds and "up" not in kinds):
        raise CheckpointError(f"{source.label}: {module} lacks a factor: it has only {', '.join(names.values())}")


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
            if rank and rank[0] > max(shape):
                raise CheckpointError(
                    f"{layer.source.label}: {layer.names['down']} has rank {rank[0]}, more than the {max(shape)} rows "
                    "or columns of what it changes"
                )
            wanted |= {"down": [*rank, *shape[1:]], "up": [shape[0], *rank]}
            if len(shape) != 2:
                raise CheckpointError(f"{layer.source.label}: {layer.names['down']} changes no matrix")
    for kind, expected in wanted.items():
        if kind in layer.names and list(found := layer.shape_of(kind)) != expected:
            raise CheckpointError(
                f"{layer.source.label}: {layer.names[kind]} has shape {list(found)}, and for this model it would be "
                f"{expected}: it was made for another"
            )


def _alpha_by_rank(source: TensorSource, part: Part, module: str, names: Mapping[str, str]) -> float:
    """alpha / rank. Without an alpha it is the rank, as diffusers has it; 1 also where there are no factors."""
    if "down" not in names:
        return 1.0
    rank = next(iter(source.shape(names["down"])), 0)
    if not rank:
        raise CheckpointError(f"{source.label}: {names['down']} is empty")
    if "alpha" in names:
        alpha, divisor = source.number(names["alpha"]), float(rank)
    else:
        alpha, divisor = _told(source, part, module, rank)
    if not math.isfinite(alpha / divisor):
        raise CheckpointError(f"{source.label}: the alpha of {module} is {alpha}")
    return alpha / divisor


def _told(source: TensorSource, part: Part, module: str, rank: int) -> tuple[float, float]:
    """alpha and what it is divided by, from PEFT's settings: in the file's header, where diffusers puts them, or beside
    a file that PEFT itself saved."""
    beside = source.paths[0].with_name(_ITS_SETTINGS)
    is_pefts = source.paths[0].name == _SAVED_BY_PEFT and beside.is_file()
    where = str(beside) if is_pefts else f"{source.label}: its header's {SETTINGS}"
    try:
        if is_pefts:
            told, patterns = _settings(beside.read_text())
        else:
            told, patterns = _settings(source.metadata.get(SETTINGS, "{}"), prefix=f"{_OF_MODULES[part]}.")
        if not told:
            return rank, rank
        if told.get("use_dora"):
            raise CheckpointError(f"{where} says that it is DoRA, which can't be merged")
        alpha = told.get("lora_alpha", 8)  # PEFT's own default
        alpha = next((other for pattern, other in patterns if pattern.fullmatch(module)), alpha)
        return float(alpha), math.sqrt(rank) if told.get("use_rslora") else rank
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, re.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} can't be read: {error}") from error


@lru_cache(maxsize=8)  # asked for each module of a file
def _settings(text: str, *, prefix: str = "") -> tuple[Mapping[str, Any], Sequence[tuple[re.Pattern[str], Any]]]:
    """PEFT's settings, of those whose names begin so, and which modules have another alpha."""
    found: dict[str, Any] = json.loads(text)
    told = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    others = (told.get("alpha_pattern") or {}).items()
    return told, [(re.compile(rf"(.*\.)?({pattern})"), alpha) for pattern, alpha in others]
