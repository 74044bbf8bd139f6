"""The names under which transformer weights are published, and how they become ours. Reads no weights.

Ours are the original's names (black-forest-labs/flux): that layout loads as it is. diffusers splits the fused
matrices and swaps the halves of the final layer's modulation; `diffusers_recipe` puts them together again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from rekontext.engine.tensors import CheckpointError, TensorSource, read_json
from rekontext.engine.transformer import TransformerConfig

ORIGINAL_PREFIXES: Final = ("", "model.diffusion_model.", "diffusion_model.")
_ORIGINAL_MARK: Final = "single_blocks.0.linear1.weight"
_GUIDANCE_MARK: Final = "guidance_in.in_layer.weight"
_DIFFUSERS_MARK: Final = "single_transformer_blocks.0.proj_mlp.weight"


class Recipe(NamedTuple):
    """How one of our tensors is made: the named tensors on top of each other; `swap` exchanges the two halves."""

    sources: tuple[str, ...]
    swap: bool = False


def original_part(source: TensorSource) -> TensorSource | None:
    """The transformer in the original layout, found under any of the prefixes in use; None if it isn't there."""
    for prefix in ORIGINAL_PREFIXES:
        if prefix + _ORIGINAL_MARK in source:
            return source.with_prefix(prefix) if prefix else source
    return None


def is_diffusers(source: TensorSource) -> bool:
    """Whether the transformer's tensors have diffusers' names."""
    return _DIFFUSERS_MARK in source


def config_from_diffusers(path: Path) -> TransformerConfig:
    """From `transformer/config.json`.

    Raises:
        CheckpointError: the file can't be read, or describes something other than a FLUX transformer.
    """
    config = read_json(path)
    if config.get("_class_name") != "FluxTransformer2DModel":
        raise CheckpointError(
            f"{path} describes {config.get('_class_name')!r}: only FluxTransformer2DModel can be opened"
        )
    with _sizes_of(str(path)):
        heads = _size(config, "num_attention_heads", 24)
        return TransformerConfig(
            width=heads * _size(config, "attention_head_dim", 128),
            heads=heads,
            axes=_axes(config.get("axes_dims_rope", (16, 56, 56))),
            double_blocks=_size(config, "num_layers", 19, least=0),
            single_blocks=_size(config, "num_single_layers", 38),
            channels=_size(config, "in_channels", 64),
            text_width=_size(config, "joint_attention_dim", 4096),
            pooled_width=_size(config, "pooled_projection_dim", 768),
            guidance_embedded=bool(config.get("guidance_embeds", False)),
        )


def config_from_original(source: TensorSource, axes: Iterable[int] | None) -> TransformerConfig:
    """Read off the tensors' shapes.

    Args:
        axes: rotary widths, which leave no trace in the weights; None takes FLUX's proportions (1 : 3.5 : 3.5).

    Raises:
        CheckpointError: tensors are missing, their shapes are no transformer's, or guidance isn't embedded: in this
            layout that is another model, which would not heed it.
    """
    if _GUIDANCE_MARK not in source:
        raise CheckpointError(
            f"{source.label} has no {_GUIDANCE_MARK}, so it is not FLUX.1 Kontext [dev]: "
            "FLUX.1 [schnell] and models made from it lack it, and can't be opened"
        )
    with _sizes_of(f"{source.label} with axes {axes} of rekontext.json" if axes else source.label):
        width, channels = source.shape("img_in.weight", axes=2)
        (head_width,) = source.shape("single_blocks.0.norm.query_norm.scale", axes=1)
        if not head_width or width < head_width or width % head_width:
            raise ValueError(f"its width {width} (img_in.weight) is no multiple of the heads' {head_width}")
        stream = head_width // 16 * 2
        plane = (head_width - stream) // 2
        return TransformerConfig(
            width=width,
            heads=width // head_width,
            axes=_axes(axes) if axes else (head_width - 2 * (plane // 2 * 2), plane // 2 * 2, plane // 2 * 2),
            double_blocks=_count(source, "double_blocks."),
            single_blocks=_count(source, "single_blocks."),
            channels=channels,
            text_width=source.shape("txt_in.weight", axes=2)[1],
            pooled_width=source.shape("vector_in.in_layer.weight", axes=2)[1],
        )


def diffusers_recipe(name: str) -> Recipe:
    """Which of diffusers' tensors make up our tensor `name`."""
    module, _, kind = name.rpartition(".")
    head, *rest = module.split(".")
    if head == "double_blocks":
        block, part = f"transformer_blocks.{rest[0]}.", ".".join(rest[1:])
        return Recipe(tuple(f"{block}{target}" for target in _double(part, kind)))
    if head == "single_blocks":
        block, part = f"single_transformer_blocks.{rest[0]}.", ".".join(rest[1:])
        return Recipe(tuple(f"{block}{target}" for target in _single(part, kind)))
    if module == "final_layer.adaLN_modulation.1":
        # diffusers keeps scale before shift here, the original shift before scale.
        return Recipe((f"norm_out.linear.{kind}",), swap=True)
    return Recipe((f"{_TOP[module]}.{kind}",))


_TOP: Final = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    **{
        f"{ours}_in.{layer}_layer": f"time_text_embed.{theirs}_embedder.linear_{number}"
        for ours, theirs in (("time", "timestep"), ("guidance", "guidance"), ("vector", "text"))
        for layer, number in (("in", 1), ("out", 2))
    },
}


def _single(part: str, kind: str) -> tuple[str, ...]:
    match part:
        case "linear1":
            return (*(f"attn.to_{x}.{kind}" for x in "qkv"), f"proj_mlp.{kind}")
        case "linear2":
            return (f"proj_out.{kind}",)
        case "modulation.lin":
            return (f"norm.linear.{kind}",)
        case "norm.query_norm":
            return ("attn.norm_q.weight",)
        case "norm.key_norm":
            return ("attn.norm_k.weight",)
    raise AssertionError(f"no recipe for single_blocks.*.{part}.{kind}")


def _double(part: str, kind: str) -> tuple[str, ...]:
    stream, _, rest = part.partition("_")
    text = stream == "txt"
    match rest:
        case "mod.lin":
            return (f"norm1_context.linear.{kind}" if text else f"norm1.linear.{kind}",)
        case "attn.qkv":
            return tuple(f"attn.add_{x}_proj.{kind}" if text else f"attn.to_{x}.{kind}" for x in "qkv")
        case "attn.norm.query_norm":
            return ("attn.norm_added_q.weight" if text else "attn.norm_q.weight",)
        case "attn.norm.key_norm":
            return ("attn.norm_added_k.weight" if text else "attn.norm_k.weight",)
        case "attn.proj":
            return (f"attn.to_add_out.{kind}" if text else f"attn.to_out.0.{kind}",)
        case "mlp.0":
            return (f"ff_context.net.0.proj.{kind}" if text else f"ff.net.0.proj.{kind}",)
        case "mlp.2":
            return (f"ff_context.net.2.{kind}" if text else f"ff.net.2.{kind}",)
    raise AssertionError(f"no recipe for double_blocks.*.{part}.{kind}")


@contextmanager
def _sizes_of(where: str) -> Iterator[None]:
    """Sizes that make no transformer are the fault of the file that they come from."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{where} describes no FLUX transformer: {error}") from error


def _size(config: dict[str, Any], key: str, default: int, *, least: int = 1) -> int:
    size = config.get(key, default)
    if not isinstance(size, int) or size < least:
        raise ValueError(f"{key} is {size!r}, expected an integer of at least {least}")
    return size


def _axes(values: object) -> tuple[int, int, int]:
    match values:
        case [int(stream), int(row), int(column)]:
            return stream, row, column
    raise ValueError(f"rotary axes {values!r} must be three integers: stream, row and column")


def _count(source: TensorSource, prefix: str) -> int:
    return len({name.split(".")[1] for name in source.names() if name.startswith(prefix)})
