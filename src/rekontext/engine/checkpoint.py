"""Opening a model: find out which published layout it has and build its parts.

| given | layout |
|---|---|
| "mini" | the model inside this package |
| a folder with model_index.json | diffusers (sharded or not) |
| a .safetensors file | the original single file, its tensors perhaps under ComfyUI's prefix, perhaps fp8; its |
|  | autoencoder and text encoders lie beside it or come from the hub: see `pretrained.py` |
| a .gguf file | the same tensors in GGUF's formats, made wide again as they are read |
| owner/name | a hub repository in diffusers' layout |

A `rekontext.json` beside the weights may carry what no published layout has: see `Facts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from types import NoneType
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from rekontext.engine.canvas import KONTEXT_AREA, Canvas
from rekontext.engine.layouts import (
    config_from_diffusers,
    config_from_original,
    is_diffusers,
    original_part,
)
from rekontext.engine.loading import StoredWeights, load_transformer
from rekontext.engine.lora import LoRAs
from rekontext.engine.memory import Placement, Sizes
from rekontext.engine.pretrained import (
    TextFiles,
    find_autoencoder,
    laid_out,
    open_autoencoder,
    open_original_autoencoder,
    open_text,
    quiet,
    stored_parameters,
)
from rekontext.engine.schedule import Schedule
from rekontext.engine.tensors import GGUF_SUFFIX, CheckpointError, TensorSource, read_json, refuse_pickle
from rekontext.engine.transformer import KontextTransformer, TransformerConfig
from rekontext.models import MINI, is_hub_id, local_path, mini_folder

_FACTS: Final = (
    ("name", str, "text"),
    ("canvas_area", int, "an integer"),
    ("text_tokens", int, "an integer"),
    ("knows", (list, tuple), "a list"),
    ("axes", (list, tuple, NoneType), "a list"),
    ("autoencoder", dict, "an object"),
    ("cpu_dtype", str, "text"),
)
_ANCHORS: Final = {
    "base_shift": ("base_shift", 0.5),
    "max_shift": ("max_shift", 1.15),
    "base_tokens": ("base_image_seq_len", 256),
    "max_tokens": ("max_image_seq_len", 4096),
}
"""Our names of a schedule's values, diffusers' names, and diffusers' defaults."""
_FIXED: Final = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "num_train_timesteps": 1000,
    "shift_terminal": None,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
"""What `Schedule` is written for. A scheduler configured otherwise asks for other pictures than ours would be."""

_FILES: Final = (".safetensors", GGUF_SUFFIX)
_READ: Final = [
    "model_index.json",
    "rekontext.json",
    *(f"{name}/*" for name in ("scheduler", "tokenizer", "tokenizer_2")),
    *(f"{name}/*.json" for name in ("transformer", "vae", "text_encoder", "text_encoder_2")),
    *(f"{name}/*.safetensors" for name in ("transformer", "vae", "text_encoder", "text_encoder_2")),
]
"""What is read of a hub repository, which may have much beside it."""
_VARIANTS: Final = ["*/*.*.safetensors"]
"""The same weights once more in another format, as in `model.fp16.safetensors`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """`rekontext.json`: what the weights themselves don't tell.

    Attributes:
        name: how the model calls itself; empty takes the name it was opened by.
        canvas_area: native pixels per picture.
        text_tokens: length to which T5's input is padded.
        knows: instructions that a small model was taught; empty where it wasn't taught by list.
        axes: rotary widths (stream, row, column), for single files with unusual heads.
        autoencoder: configuration of an `ae.safetensors` that differs from FLUX's.
        cpu_dtype: what to compute in on a CPU that multiplies bfloat16, unless told otherwise; "bfloat16" for a model
            that is known to lose nothing by it.
    """

    name: str = ""
    canvas_area: int = KONTEXT_AREA
    text_tokens: int = 512
    knows: tuple[str, ...] = ()
    axes: tuple[int, ...] | None = None
    autoencoder: dict[str, Any] = field(default_factory=dict)
    cpu_dtype: str = "float32"

    def __post_init__(self) -> None:
        for key, kind, what in _FACTS:
            if not isinstance(found := getattr(self, key), kind):
                raise TypeError(f"{key} must be {what}, not {found!r}")
        Canvas(area=self.canvas_area)
        if self.text_tokens < 1:
            raise ValueError(f"text_tokens is {self.text_tokens}: at least 1 is needed")

    @classmethod
    def beside(cls, folder: Path) -> Facts:
        """Read from `folder`; defaults where there is no file.

        Raises:
            CheckpointError: the file has an unknown key, a value of the wrong kind, or no JSON in it.
        """
        path = folder / "rekontext.json"
        if not path.is_file():
            return cls()
        facts = read_json(path)
        try:
            return cls(**{key: value for key, value in facts.items() if not key.startswith("about")})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """An opened model, on its device.

    Attributes:
        placement: in which form and where its parts are held.
        loras: names and strengths of those that were merged into it.
        stored: where the transformer's weights were read from, if they were.
    """

    name: str
    canvas: Canvas
    schedule: Schedule
    text_tokens: int
    knows: tuple[str, ...]
    transformer: KontextTransformer
    autoencoder: AutoencoderKL
    clip: CLIPTextModel
    clip_tokenizer: CLIPTokenizer
    t5: T5EncoderModel
    t5_tokenizer: T5Tokenizer
    placement: Placement = field(default_factory=Placement)
    loras: tuple[str, ...] = ()
    stored: StoredWeights | None = None


def open_model(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    loras: Iterable[str] = (),
) -> OpenedModel:
    """Load every part of `model` in `dtype` onto `device`, or as `placement` says.

    Args:
        loras: what `LoRAs` takes.

    Raises:
        CheckpointError: the model or a LoRA can't be found, isn't complete, or they don't belong together.
    """
    where, name = _find(model)
    with quiet():
        merged = LoRAs(loras)
        if where.is_dir():
            return _open_folder(where, name, device, dtype, placement, merged)
        return _open_file(where, device, dtype, placement, merged)


def facts_of(model: str) -> Facts:
    """What lies beside a model's weights.

    Raises:
        CheckpointError: the model can't be found, or its facts can't be read.
    """
    where, _ = _find(model)
    return Facts.beside(where if where.is_dir() else where.parent)


def model_sizes(model: str) -> Sizes:
    """How large a model's parts are, without reading their weights, and without fetching a single file's text encoders:
    those on the hub are the published ones.

    Raises:
        CheckpointError: the model can't be found or isn't complete.
    """
    where, _ = _find(model)
    if where.is_dir():
        facts, config, channels = Facts.beside(where), *_folder_configs(where)
        autoencoder = stored_parameters(where / "vae")
        text = TextFiles(home=where).parameters()
    else:
        facts, source = Facts.beside(where.parent), TensorSource([where])
        config = config_from_original(_original(source, where), facts.axes)
        ae = TensorSource([find_autoencoder(where)])
        autoencoder = sum(prod(ae.shape(name)) for name in ae.names())
        channels = ae.shape("decoder.up.0.block.0.conv1.weight", axes=4)[1]
        text = TextFiles.beside(where).parameters()
    return Sizes(
        transformer=config,
        text_encoder_parameters=Sizes().text_encoder_parameters if text is None else text,
        autoencoder_parameters=autoencoder,
        full_resolution_channels=channels,
        canvas_area=facts.canvas_area,
        text_tokens=facts.text_tokens,
    )


def require_loras(model: str | None, loras: Iterable[str]) -> None:
    """Look whether LoRAs can be merged into a model's transformer, or without one whether they can be read.

    Raises:
        CheckpointError: they can't.
    """
    merged = LoRAs(loras)
    if model is not None:
        with torch.device("meta"):
            transformer = KontextTransformer(model_sizes(model).transformer)
        merged.of_transformer(dict(transformer.named_parameters()))


def _find(model: str) -> tuple[Path, str]:
    """The folder or file, fetched from the hub if it comes from there, and its name."""
    if model == MINI:
        return mini_folder(), MINI
    path = local_path(model)
    refuse_pickle(path)
    if path.is_dir():
        # A link's own name: what it leads to may be called by a commit.
        return path, (path.resolve() if ".." in path.parts else path.absolute()).name
    if path.is_file():
        if path.suffix not in _FILES:
            raise CheckpointError(
                f"{path}: only {' and '.join(_FILES)} files can be opened, not {path.suffix or 'this'}"
            )
        return path, path.stem
    if is_hub_id(model):
        return _download(model), model
    raise CheckpointError(
        f"no model at {model!r}: give a diffusers folder, a .safetensors or .gguf file, a hub id (owner/name) or "
        f"{MINI!r}"
    )


def _open_folder(
    folder: Path, name: str, device: torch.device, dtype: torch.dtype, placement: Placement, loras: LoRAs
) -> OpenedModel:
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} has no model_index.json, so it is no diffusers folder: "
            "give that folder, or the .safetensors or .gguf file itself"
        )
    facts = Facts.beside(folder)
    config, _ = _folder_configs(folder)
    source = TensorSource.of_folder(folder / "transformer", "diffusion_pytorch_model")
    text = open_text(TextFiles(home=folder), device, dtype, placement, loras)
    autoencoder = open_autoencoder(folder / "vae", dtype)
    _agree(source, config, text, autoencoder)
    stored = StoredWeights(source, config, dtype=dtype, loras=loras)
    return OpenedModel(
        name=facts.name or name,
        canvas=Canvas(area=facts.canvas_area),
        schedule=_schedule(folder),
        text_tokens=facts.text_tokens,
        knows=tuple(facts.knows),
        transformer=load_transformer(stored, device=device, placement=placement),
        autoencoder=laid_out(autoencoder, device),
        placement=placement,
        loras=tuple(loras.names),
        stored=stored,
        **text,
    )


def _folder_configs(folder: Path) -> tuple[TransformerConfig, int]:
    """The transformer's, and the autoencoder's widest layer at full resolution."""
    path = folder / "vae" / "config.json"
    channels = read_json(path).get("block_out_channels", (128, 256))
    if not isinstance(channels, list | tuple) or not channels or not all(isinstance(width, int) for width in channels):
        raise CheckpointError(f"{path}: block_out_channels must be a list of integers, not {channels!r}")
    return config_from_diffusers(folder / "transformer" / "config.json"), max(channels[:2])


def _open_file(path: Path, device: torch.device, dtype: torch.dtype, placement: Placement, loras: LoRAs) -> OpenedModel:
    folder = path.parent
    facts = Facts.beside(folder)
    original = _original(TensorSource([path]), path)
    config = config_from_original(original, facts.axes)
    # Before the transformer, which takes longest: they may have to be fetched.
    text = open_text(TextFiles.beside(path).fetched(path), device, dtype, placement, loras)
    autoencoder = open_original_autoencoder(find_autoencoder(path), facts.autoencoder, dtype)
    _agree(original, config, text, autoencoder)
    stored = StoredWeights(original, config, dtype=dtype, loras=loras)
    return OpenedModel(
        name=facts.name or path.stem,
        canvas=Canvas(area=facts.canvas_area),
        schedule=_schedule(folder),
        text_tokens=facts.text_tokens,
        knows=tuple(facts.knows),
        transformer=load_transformer(stored, device=device, placement=placement),
        autoencoder=laid_out(autoencoder, device),
        placement=placement,
        loras=tuple(loras.names),
        stored=stored,
        **text,
    )


def _original(source: TensorSource, path: Path) -> TensorSource:
    """The transformer in an original single file."""
    if is_diffusers(source):
        raise CheckpointError(
            f"{path} is one part of a diffusers folder: open the folder that has model_index.json in it"
        )
    original = original_part(source)
    if original is None:
        first = ", ".join(sorted(source.names())[:5])
        raise CheckpointError(f"{path} holds no FLUX transformer: its first tensors are {first}")
    return original


def _schedule(folder: Path) -> Schedule:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return Schedule()
    config = read_json(path)
    for key, wanted in _FIXED.items():
        found = config.get(key, None if key == "use_dynamic_shifting" else wanted)
        if found != wanted and (found or wanted):
            raise CheckpointError(
                f"{path}: {key} is {json.dumps(found)}, so this is no schedule of FLUX.1 Kontext [dev]: "
                f"it must be {json.dumps(wanted)}"
            )
    values = {}
    for name, (key, default) in _ANCHORS.items():
        values[name] = value = config.get(key, default)
        if not isinstance(value, int | float) or not isfinite(value):
            raise CheckpointError(f"{path}: {key} is {json.dumps(value)}: it must be a number")
    if values["base_tokens"] == values["max_tokens"]:
        raise CheckpointError(f"{path}: base_image_seq_len and max_image_seq_len must differ")
    return Schedule(**values)


def _agree(source: TensorSource, config: TransformerConfig, text: dict[str, Any], autoencoder: AutoencoderKL) -> None:
    """OpenedModel of different models open one by one, and fail at the first edit."""
    for what, wanted, whose, found in (
        ("text states (joint_attention_dim)", config.text_width, "T5 (text_encoder_2)", text["t5"].config.d_model),
        ("pooled text (pooled_projection_dim)", config.pooled_width, "CLIP", text["clip"].config.hidden_size),
        (
            "tokens (in_channels)",
            config.channels,
            "the autoencoder in 2 x 2",
            4 * autoencoder.config["latent_channels"],
        ),
    ):
        if wanted != found:
            raise CheckpointError(
                f"{source.label}: the transformer reads {what} of width {wanted}, and {whose} gives {found}: "
                "these are parts of different models"
            )

    for whose, words, encoder in (
        ("CLIP", text["clip_tokenizer"], text["clip"]),
        ("T5", text["t5_tokenizer"], text["t5"]),
    ):
        if len(words) > encoder.config.vocab_size:
            raise CheckpointError(
                f"{source.label}: the tokenizer of {whose} has {len(words)} words, and its encoder knows "
                f"{encoder.config.vocab_size}: these are parts of different models"
            )


def _download(hub_id: str) -> Path:
    """Fetch what is read of a hub repository in diffusers' layout, or take it from the local cache."""
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["model_index.json"]))
        if (folder / "model_index.json").is_file():
            return Path(snapshot_download(hub_id, allow_patterns=_READ, ignore_patterns=_VARIANTS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"the model {hub_id!r} is neither a local path nor to be had from the hub ({type(error).__name__}): "
            "check the name, the network, and for gated models that HF_TOKEN is set"
        ) from error
    raise CheckpointError(
        f"{hub_id} has no model_index.json on the hub (where that can't be reached, in the local cache of it), "
        "so it is no diffusers repository: "
        "give one that has, or download the .safetensors file and give its path"
    )
