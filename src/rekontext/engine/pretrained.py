"""The parts of a model that other libraries compute: text encoders with their tokenizers, and the autoencoder.

| part | where it is found |
|---|---|
| CLIP, T5 and their tokenizers | diffusers' folders (`TEXT_FOLDERS`); beside a single file, too |
|  | or `clip_l.safetensors` and `t5xxl*.safetensors`, as ComfyUI has them, with tokenizers from those folders |
|  | what a single file has not beside it comes from the published model on the hub |
| autoencoder | diffusers' folder `vae`, or the original's `ae.safetensors` |

Beside a file is: in its folder, and if ComfyUI's folders are around it, in their `text_encoders`, `clip` and `vae`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd, isfinite, prod
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from transformers.utils import logging as transformers_logging

from rekontext.engine.canvas import PIXELS_PER_TOKEN
from rekontext.engine.lora import LoRAs
from rekontext.engine.memory import Placement
from rekontext.engine.tensors import CheckpointError, TensorSource, read_json, refuse_pickle

KONTEXT_HUB_ID: Final = "black-forest-labs/FLUX.1-Kontext-dev"
TEXT_FOLDERS: Final = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
"""Of CLIP, its tokenizer, T5, its tokenizer."""
_VOCABULARIES: Final = {
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_2": (("tokenizer.json",), ("spiece.model",)),
}
"""The files that one of the tokenizers needs, any of these. The library reads a folder without them as one that knows
no word, and every prompt as the same."""
_STEMS: Final = {"vae": "diffusion_pytorch_model"}
"""Under which name the libraries look for a part's weights, if not as `model`."""
_COMFYUI_MODELS: Final = ("diffusion_models", "unet", "checkpoints")
_COMFYUI_TEXT: Final = ("text_encoders", "clip")
_NOT_LOADED: Final = (
    "lm_head.",
    "decoder.block.",
    "vision_model.",
    "visual_projection.",
    "text_projection.",
    "logit_scale",
    "text_model.embeddings.position_ids",
)
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


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Where a model's text encoders lie.

    Attributes:
        home: has the folders in `TEXT_FOLDERS`; None where they would have to be fetched.
        clip, t5: files with the weights, where they aren't in those folders.
    """

    home: Path | None
    clip: Path | None = None
    t5: Path | None = None

    @classmethod
    def beside(cls, file: Path) -> TextFiles:
        """What a single file has near it."""
        home = file.parent if any((file.parent / name).is_dir() for name in TEXT_FOLDERS) else None
        places = _near(file, *_COMFYUI_TEXT)

        def lone(pattern: str, folder: str) -> Path | None:
            if home is not None and any((home / folder).glob("*.safetensors")):
                return None
            found = (path for place in places for path in place.glob(pattern))
            # The one that loses least, where there are several.
            return min(found, key=lambda path: ("fp8" in path.name, path.name), default=None)

        return cls(
            home=home,
            clip=lone("clip_l.safetensors", "text_encoder"),
            t5=lone("t5xxl*.safetensors", "text_encoder_2"),
        )

    def fetched(self, file: Path) -> TextFiles:
        """With a home: what isn't beside `file` is taken from the published model on the hub, without the rest of it.

        Raises:
            CheckpointError: it can't be had.
        """
        if self.home is not None:
            return self
        wanted = [
            f"text_encoder/{'*' if self.clip is None else 'config.json'}",
            "tokenizer/*",
            f"text_encoder_2/{'*' if self.t5 is None else 'config.json'}",
            "tokenizer_2/*",
        ]
        try:
            home = Path(snapshot_download(KONTEXT_HUB_ID, allow_patterns=wanted))
            # Away from the network, whatever the local cache has of the repository passes for all of it.
            _folders(home)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, CheckpointError) as error:
            what = "text encoders" if self.clip is None or self.t5 is None else "tokenizers"
            gguf = next((path.name for place in _near(file, *_COMFYUI_TEXT) for path in place.glob("t5*.gguf")), None)
            unread = f" ({gguf} isn't read: of GGUF only transformers are)" if gguf and self.t5 is None else ""
            raise CheckpointError(
                f"the {what} of {file} are neither beside it{unread} nor to be had from {KONTEXT_HUB_ID} "
                f"({type(error).__name__}): accept the licence at https://huggingface.co/{KONTEXT_HUB_ID} and set "
                f"HF_TOKEN, or put that repository's folders {', '.join(TEXT_FOLDERS)} beside the file"
            ) from error
        return TextFiles(home=home, clip=self.clip, t5=self.t5)

    def parameters(self) -> int | None:
        """Of both encoders, read off the files' headers; None where that isn't known before they are fetched.

        Raises:
            CheckpointError: a file or folder is missing or can't be read.
        """
        count = 0
        for file, name in ((self.clip, "text_encoder"), (self.t5, "text_encoder_2")):
            if file is not None:
                count += _parameters(TensorSource([file]))
            elif self.home is not None:
                count += stored_parameters(self.home / name)
            else:
                return None
        return count


def open_text(
    files: TextFiles, device: torch.device, dtype: torch.dtype, placement: Placement, loras: LoRAs
) -> dict[str, Any]:
    """CLIP and T5 with their tokenizers, as `checkpoint.Parts` names them, with LoRAs merged into them.

    Raises:
        CheckpointError: a file is missing, or isn't what it should be, or a LoRA is another model's.
    """
    assert files.home is not None, "fetched first"
    clip_folder, clip_words, t5_folder, t5_words = _folders(files.home)
    at = torch.device("cpu") if placement.text_on_host else device
    clip = _frozen(_encoder(CLIPTextModel, clip_folder, files.clip, dtype), at)
    t5 = _frozen(_encoder(T5EncoderModel, t5_folder, files.t5, dtype), at)
    loras.of_encoder("clip", clip).merge_into(clip)
    loras.of_encoder("t5", t5).merge_into(t5)
    if placement.text_on_host:
        offload_encoder(clip, device)
        offload_encoder(t5, device)
    return {
        "clip": clip,
        "clip_tokenizer": _tokenizer(CLIPTokenizer, clip_words),
        "t5": t5,
        "t5_tokenizer": _tokenizer(T5Tokenizer, t5_words),
    }


def offload_encoder(encoder: Any, device: torch.device) -> None:
    """Keep a text encoder on the host; each layer passes through `device` when it is used."""
    cpu_offload(encoder.to("cpu"), execution_device=device)


def encoder_weight(encoder: nn.Module, name: str) -> Tensor:
    """One of a text encoder's weights where it is held: also if its layers pass through a device."""
    path, _, last = name.rpartition(".")
    module = encoder.get_submodule(path)
    on_host = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    weight: Tensor = getattr(module, last) if on_host is None else on_host[last]
    return weight


def open_autoencoder(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    """From diffusers' folder, on the host.

    Raises:
        CheckpointError: a file is missing, or isn't what it should be.
    """
    return _fit_for_latents(_read(AutoencoderKL, folder, torch_dtype=dtype), folder)


def find_autoencoder(file: Path) -> Path:
    """The `ae.safetensors` that belongs to a single file; where there is none, where it should be."""
    paths = [place / "ae.safetensors" for place in _near(file, "vae")]
    return next((path for path in paths if path.is_file()), paths[0])


def open_original_autoencoder(path: Path, changes: dict[str, Any], dtype: torch.dtype) -> AutoencoderKL:
    """FLUX's `ae.safetensors` on the host, its sizes read off the tensors, its names translated by diffusers.

    Args:
        changes: configuration that differs from FLUX's and leaves no trace in the tensors.

    Raises:
        CheckpointError: the file is missing, or isn't what it should be.
    """
    # Private to diffusers, but the one maintained translation of these names.
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the autoencoder is read from there, not from the transformer's file")
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
        **changes,
    }
    try:
        autoencoder = AutoencoderKL.from_config(config)
    except _FAILURES as error:
        raise CheckpointError(f"{path}, with {changes} of rekontext.json: {error}") from error
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
    return _fit_for_latents(autoencoder.to(dtype), path)


def _fit_for_latents(autoencoder: AutoencoderKL, where: Path) -> AutoencoderKL:
    """Raise for one that opens, and whose first edit would fail or be nonsense."""
    config = autoencoder.config
    for key in ("scaling_factor", "shift_factor"):
        if not isinstance(found := config[key], int | float) or not isfinite(found):
            raise CheckpointError(f"{where}: {key} is {found!r}: it must be a number, as FLUX's autoencoder has it")
    if not config["scaling_factor"]:
        raise CheckpointError(f"{where}: scaling_factor is 0: latents are divided by it")
    side = 2 ** (len(config["block_out_channels"]) - 1)
    if side != PIXELS_PER_TOKEN // 2:
        raise CheckpointError(f"{where}: a latent stands for {side} x {side} pixels, and in FLUX.1 Kontext for 8 x 8")
    return autoencoder


def laid_out(autoencoder: AutoencoderKL, device: torch.device) -> Any:
    """An autoencoder on its device, with channels innermost, as its convolutions read them.

    Not for float32 on a CPU: there that takes other convolutions, whose pixels are off by up to 1e-4.
    """
    if device.type == "cuda" or autoencoder.dtype != torch.float32:
        autoencoder = autoencoder.to(memory_format=torch.channels_last)
    return _frozen(autoencoder, device)


def stored_parameters(folder: Path) -> int:
    """In the files of a text encoder or the autoencoder.

    Raises:
        CheckpointError: the folder or its files are missing or can't be read.
    """
    return _parameters(_stored(folder))


@contextmanager
def quiet() -> Iterator[None]:
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


def _near(file: Path, *folders: str) -> list[Path]:
    """The file's folder, and if ComfyUI's are around it, those of the given names."""
    around = file.parent.parent if file.parent.name in _COMFYUI_MODELS else None
    return [file.parent, *(around / name for name in folders if around is not None)]


def _folders(home: Path) -> tuple[Path, ...]:
    """In the order of `TEXT_FOLDERS`."""
    folders = tuple(home / name for name in TEXT_FOLDERS)
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is missing")
        any_of = _VOCABULARIES.get(folder.name, ())
        if any_of and not any(all((folder / name).is_file() for name in files) for files in any_of):
            raise CheckpointError(f"{folder} has no {' or '.join(' with '.join(files) for files in any_of)} in it")
    return folders


def _weights(source: TensorSource) -> Iterator[str]:
    return (name for name in source.names() if not name.startswith(_NOT_LOADED))


def _parameters(source: TensorSource) -> int:
    return sum(prod(source.shape(name)) for name in _weights(source))


def _stored(folder: Path) -> TensorSource:
    """What the weight files of a text encoder or the autoencoder hold."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing")
    if not any(folder.glob("*.safetensors")):
        found = next((path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".ckpt"}), None)
        if found:
            refuse_pickle(found)
        raise CheckpointError(f"{folder} has no .safetensors file in it")
    # Others may lie there, the same in another format: they aren't read. Of text encoders' the one file is read before
    # shards are, of the autoencoder's after them.
    if (single := folder / "model.safetensors").is_file():
        return TensorSource([single])
    return TensorSource.of_folder(folder, _STEMS.get(folder.name, "model"))


def _encoder(kind: Any, folder: Path, file: Path | None, dtype: torch.dtype) -> Any:
    """A text encoder as `folder` configures it, its weights from there or from a file of their own."""
    # Shapes that don't match are left to the report: transformers' own error names no tensor.
    options = {"dtype": dtype, "ignore_mismatched_sizes": True}
    if file is None:
        return _read(kind, folder, **options)
    read_json(folder / "config.json")
    try:
        config = kind.config_class.from_pretrained(folder)
    except _FAILURES as error:
        raise CheckpointError(f"{folder}: {error}") from error
    source = TensorSource([file])
    # Read here: the library would take an fp8 file's values without their scales.
    state = {name: source.read(name, dtype) for name in _weights(source)}
    return _complete(kind, None, file, config=config, state_dict=state, **options)


def _read(kind: Any, folder: Path, **options: Any) -> Any:
    """What the library reads from a folder."""
    # It doesn't say which file it is that ends too early, and takes whatever is stored as if it were weights.
    _stored(folder).refuse_quantised()
    read_json(folder / "config.json")
    return _complete(kind, folder, folder, use_safetensors=True, **options)


def _complete(kind: Any, folder: Path | None, where: Path, **options: Any) -> Any:
    """A part as the library makes it, every weight of it read from `where`."""
    try:
        part, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    except _FAILURES as error:
        raise CheckpointError(f"{where}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{where}: missing tensors: {', '.join(missing[:5])}")
    for tensor, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(f"{where}: {tensor} has shape {list(found)}, expected {list(expected)}")
    return part


def _tokenizer(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # tokenizers raises that very class
        raise CheckpointError(f"{folder}: no {kind.__name__} can be read there: {error}") from error


def _frozen(part: Any, device: torch.device) -> Any:
    return part.to(device).requires_grad_(False).eval()
