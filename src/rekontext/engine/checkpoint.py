"""Opening a model: find out which published layout it has and build its parts.

| given | layout |
|---|---|
| "mini" | the model inside this package |
| a folder with model_index.json | diffusers (sharded or not) |
| a .safetensors file | the original single file, its tensors perhaps under ComfyUI's prefix, perhaps fp8; beside it |
|  | `ae.safetensors`, and the text encoders in diffusers' folders, which else come from the published model |
| owner/name | a hub repository in diffusers' layout |

A `rekontext.json` beside the weights may carry what no published layout has: see `Facts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import gcd, prod
from pathlib import Path
from types import NoneType
from typing import Any, Final

import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from transformers.utils import logging as transformers_logging

from rekontext.engine.canvas import KONTEXT_AREA, Canvas
from rekontext.engine.layouts import (
    config_from_diffusers,
    config_from_original,
    is_diffusers,
    load_transformer,
    original_part,
)
from rekontext.engine.memory import Placement, Sizes
from rekontext.engine.schedule import Schedule
from rekontext.engine.tensors import CheckpointError, TensorSource, read_json, refuse_pickle
from rekontext.engine.transformer import KontextTransformer, TransformerConfig
from rekontext.models import MINI, is_hub_id, local_path, mini_folder

KONTEXT_HUB_ID: Final = "black-forest-labs/FLUX.1-Kontext-dev"
TEXT_FOLDERS: Final = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
"""Of CLIP, its tokenizer, T5, its tokenizer."""
_NOT_LOADED: Final = ("lm_head.", "decoder.block.", "vision_model.", "visual_projection.", "text_projection.")
"""What lies in the text encoders' published files beside them."""
_FAILURES: Final = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    SafetensorError,
    StrictDataclassError,
)
"""What the libraries raise over a file or a configuration that is wrong."""

_FACTS: Final = (
    ("name", str, "text"),
    ("canvas_area", int, "an integer"),
    ("text_tokens", int, "an integer"),
    ("knows", (list, tuple), "a list"),
    ("axes", (list, tuple, NoneType), "a list"),
    ("autoencoder", dict, "an object"),
    ("cpu_dtype", str, "text"),
)


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
class Parts:
    """An opened model, on its device.

    Attributes:
        placement: in which form and where its parts are held.
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


def open_model(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> Parts:
    """Load every part of `model` in `dtype` onto `device`, or as `placement` says.

    Raises:
        CheckpointError: the model can't be found or isn't complete.
    """
    where, name = _find(model)
    with _quiet():
        if where.is_dir():
            return _open_folder(where, name, device, dtype, placement)
        return _open_file(where, device, dtype, placement)


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
        autoencoder = _stored_parameters(where / "vae")
        text = _text_parameters(where)
    else:
        facts, source = Facts.beside(where.parent), TensorSource([where])
        config = config_from_original(_original(source, where), facts.axes)
        ae = TensorSource([where.parent / "ae.safetensors"])
        autoencoder = sum(prod(ae.shape(name)) for name in ae.names())
        channels = ae.shape("decoder.up.0.block.0.conv1.weight", axes=4)[1]
        text = _text_parameters(where.parent) if _has_text(where.parent) else Sizes().text_encoder_parameters
    return Sizes(
        transformer=config,
        text_encoder_parameters=text,
        autoencoder_parameters=autoencoder,
        full_resolution_channels=channels,
        canvas_area=facts.canvas_area,
        text_tokens=facts.text_tokens,
    )


def offload_encoder(encoder: Any, device: torch.device) -> None:
    """Keep a text encoder on the host; each layer passes through `device` when it is used."""
    cpu_offload(encoder.to("cpu"), execution_device=device)


def _find(model: str) -> tuple[Path, str]:
    """The folder or file, fetched from the hub if it comes from there, and its name."""
    if model == MINI:
        return mini_folder(), MINI
    path = local_path(model)
    refuse_pickle(path)
    if path.is_dir():
        return path, path.resolve().name
    if path.is_file():
        return path, path.stem
    if is_hub_id(model):
        return _download(model), model
    raise CheckpointError(
        f"no model at {model!r}: give a diffusers folder, a .safetensors file, a hub id (owner/name) or {MINI!r}"
    )


def _open_folder(folder: Path, name: str, device: torch.device, dtype: torch.dtype, placement: Placement) -> Parts:
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} has no model_index.json, so it is no diffusers folder: "
            "give that folder, or the .safetensors file itself"
        )
    facts = Facts.beside(folder)
    config, _ = _folder_configs(folder)
    source = TensorSource.of_folder(folder / "transformer", "diffusion_pytorch_model")
    text = _text_parts(folder, device, dtype, placement)
    autoencoder = _pretrained(AutoencoderKL, folder / "vae", torch_dtype=dtype)
    _agree(source, config, text, autoencoder)
    return Parts(
        name=facts.name or name,
        canvas=Canvas(area=facts.canvas_area),
        schedule=_schedule(folder),
        text_tokens=facts.text_tokens,
        knows=tuple(facts.knows),
        transformer=load_transformer(source, config, device=device, dtype=dtype, placement=placement),
        autoencoder=laid_out(autoencoder, device),
        placement=placement,
        **text,
    )


def _folder_configs(folder: Path) -> tuple[TransformerConfig, int]:
    """The transformer's, and the autoencoder's widest layer at full resolution."""
    path = folder / "vae" / "config.json"
    channels = read_json(path).get("block_out_channels", (128, 256))
    if not isinstance(channels, list | tuple) or not channels or not all(isinstance(width, int) for width in channels):
        raise CheckpointError(f"{path}: block_out_channels must be a list of integers, not {channels!r}")
    return config_from_diffusers(folder / "transformer" / "config.json"), max(channels[:2])


def _open_file(path: Path, device: torch.device, dtype: torch.dtype, placement: Placement) -> Parts:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: only .safetensors files can be opened, not {path.suffix or 'this'}")
    folder = path.parent
    facts = Facts.beside(folder)
    original = _original(TensorSource([path]), path)
    config = config_from_original(original, facts.axes)
    # Before the transformer, which takes longest: they may have to be fetched.
    text = _text_parts(_text_home(path), device, dtype, placement)
    autoencoder = _original_autoencoder(folder / "ae.safetensors", facts).to(dtype)
    _agree(original, config, text, autoencoder)
    return Parts(
        name=facts.name or path.stem,
        canvas=Canvas(area=facts.canvas_area),
        schedule=_schedule(folder),
        text_tokens=facts.text_tokens,
        knows=tuple(facts.knows),
        transformer=load_transformer(original, config, device=device, dtype=dtype, placement=placement),
        autoencoder=laid_out(autoencoder, device),
        placement=placement,
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
    if not config.get("use_dynamic_shifting", False):
        raise CheckpointError(f"{path}: use_dynamic_shifting is off, so this is no schedule of FLUX.1 Kontext [dev]")
    return Schedule(
        base_shift=config.get("base_shift", 0.5),
        max_shift=config.get("max_shift", 1.15),
        base_tokens=config.get("base_image_seq_len", 256),
        max_tokens=config.get("max_image_seq_len", 4096),
    )


def _agree(source: TensorSource, config: TransformerConfig, text: dict[str, Any], autoencoder: AutoencoderKL) -> None:
    """Parts of different models open one by one, and fail at the first edit."""
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


def _text_parts(home: Path, device: torch.device, dtype: torch.dtype, placement: Placement) -> dict[str, Any]:
    """CLIP and T5 with their tokenizers, from the four folders in `home`."""
    clip_folder, clip_words, t5_folder, t5_words = _text_folders(home)
    at = torch.device("cpu") if placement.text_on_host else device
    # Shapes that don't match are left to the report: transformers' own error names no tensor.
    options = {"dtype": dtype, "ignore_mismatched_sizes": True}
    clip = _frozen(_pretrained(CLIPTextModel, clip_folder, **options), at)
    t5 = _frozen(_pretrained(T5EncoderModel, t5_folder, **options), at)
    if placement.text_on_host:
        offload_encoder(clip, device)
        offload_encoder(t5, device)
    return {
        "clip": clip,
        "clip_tokenizer": _tokenizer(CLIPTokenizer, clip_words),
        "t5": t5,
        "t5_tokenizer": _tokenizer(T5Tokenizer, t5_words),
    }


def _text_home(file: Path) -> Path:
    """The folder with a single file's text encoders: its own, or the published model's, fetched without the rest."""
    if _has_text(file.parent):
        return file.parent
    try:
        home = Path(snapshot_download(KONTEXT_HUB_ID, allow_patterns=[f"{folder}/*" for folder in TEXT_FOLDERS]))
        # Away from the network, whatever the local cache has of the repository passes for all of it.
        _text_folders(home)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, CheckpointError) as error:
        raise CheckpointError(
            f"the text encoders of {file} are neither beside it nor to be had from {KONTEXT_HUB_ID} "
            f"({type(error).__name__}): accept the licence at https://huggingface.co/{KONTEXT_HUB_ID} and set "
            f"HF_TOKEN, or put that repository's folders {', '.join(TEXT_FOLDERS)} beside the file"
        ) from error
    return home


def _has_text(folder: Path) -> bool:
    """Whether any of the text encoders' folders is there; then all must be."""
    return any((folder / name).is_dir() for name in TEXT_FOLDERS)


def _text_folders(home: Path) -> tuple[Path, ...]:
    """In the order of `TEXT_FOLDERS`."""
    folders = tuple(home / name for name in TEXT_FOLDERS)
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is missing")
    return folders


def _text_parameters(home: Path) -> int:
    clip, _, t5, _ = _text_folders(home)
    return _stored_parameters(clip) + _stored_parameters(t5)


def _stored_parameters(folder: Path) -> int:
    """In the files of a text encoder or the autoencoder."""
    source = _stored(folder)
    return sum(prod(source.shape(name)) for name in source.names() if not name.startswith(_NOT_LOADED))


def _stored(folder: Path) -> TensorSource:
    """What the weight files of a text encoder or the autoencoder hold."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = next((path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".ckpt"}), None)
        if found:
            refuse_pickle(found)
        raise CheckpointError(f"{folder} has no .safetensors file in it")
    return TensorSource(files)


def _pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    # The libraries don't say which file it is that ends too early, and read whatever is stored as if it were weights.
    _stored(folder).refuse_quantised()
    read_json(folder / "config.json")
    try:
        part, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    except _FAILURES as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder}: missing tensors: {', '.join(missing[:5])}")
    for tensor, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{folder}: {tensor} has shape {list(found)}, expected {list(expected)}")
    return part


def _tokenizer(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # tokenizers raises that very class
        raise CheckpointError(f"{folder}: no {kind.__name__} can be read there: {error}") from error


def _original_autoencoder(path: Path, facts: Facts) -> AutoencoderKL:
    """FLUX's `ae.safetensors`, its sizes read off the tensors, its names translated by diffusers."""
    # Private to diffusers, but the one maintained translation of these names.
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    source = TensorSource([path])
    levels = len({name.split(".")[2] for name in source.names() if name.startswith("encoder.down.")})
    blocks = len({name.split(".")[4] for name in source.names() if name.startswith("encoder.down.0.block.")})
    if not levels or not blocks:
        raise CheckpointError(f"{path} holds no FLUX autoencoder: no encoder.down.0.block tensors")
    channels = [source.shape(f"encoder.down.{level}.block.0.conv2.weight", axes=4)[0] for level in range(levels)]
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "latent_channels": source.shape("decoder.conv_in.weight", axes=4)[1],
        "norm_num_groups": gcd(32, *channels),
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        **facts.autoencoder,
    }
    try:
        autoencoder = AutoencoderKL.from_config(config)
    except _FAILURES as error:
        raise CheckpointError(f"{path}, with {facts.autoencoder} of rekontext.json: {error}") from error
    tensors = {name: source.read(name, torch.float32) for name in source.names()}
    try:
        translated = convert_ldm_vae_checkpoint(tensors, config)
    except KeyError as error:
        raise CheckpointError(f"{path}: missing tensor: {error.args[0]}") from error
    translated = {name: tensor for name, tensor in translated.items() if tensor is not None}
    wanted = autoencoder.state_dict()
    for what, names in (("missing", wanted.keys() - translated.keys()), ("unexpected", translated.keys() - wanted)):
        if names:
            raise CheckpointError(f"{path}: {what} tensors (in diffusers' names): {', '.join(sorted(names)[:5])}")
    for name, tensor in translated.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: {name} (in diffusers' names) has shape {list(tensor.shape)}, "
                f"expected {list(wanted[name].shape)}"
            )
    autoencoder.load_state_dict(translated)
    return autoencoder


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries draw a progress bar for every part, and a table of what doesn't fit; whoever opens a model has a
    display of their own, and is told in an error."""
    was_on, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if was_on:
            transformers_logging.enable_progress_bar()


def laid_out(autoencoder: AutoencoderKL, device: torch.device) -> Any:
    """An autoencoder on its device, with channels innermost, as its convolutions read them.

    Not for float32 on a CPU: there that takes other convolutions, whose pixels are off by up to 1e-4.
    """
    if device.type == "cuda" or autoencoder.dtype != torch.float32:
        autoencoder = autoencoder.to(memory_format=torch.channels_last)
    return _frozen(autoencoder, device)


def _frozen(part: Any, device: torch.device) -> Any:
    return part.to(device).requires_grad_(False).eval()


def _download(hub_id: str) -> Path:
    """Fetch a hub repository (or take it from the local cache), safetensors in its folders and configuration only."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*/*.safetensors", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"the model {hub_id!r} is neither a local path nor to be had from the hub ({type(error).__name__}): "
            "check the name, the network, and for gated models that HF_TOKEN is set"
        ) from error
