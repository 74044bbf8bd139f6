"""What a model needs of a GPU's memory, and which way of holding it fits: pure arithmetic on its configuration.

| plan | blocks' weights | text encoders | modulation weights |
|---|---|---|---|
| bf16 | bfloat16 | on the GPU | on the GPU |
| fp8 | e4m3 | on the GPU | on the GPU |
| fp8, text encoders on the host | e4m3 | pass through at each new prompt | on the GPU |
| fp8, text encoders and modulation on the host | e4m3 | pass through at each new prompt | pass through at each edit |

Modulation is a quarter of FLUX's weights and used once per edit, so it is a good thing to leave on the host.
How a plan is carried out is in `placement.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch

from rekontext.contract import STEPS_MAX
from rekontext.engine.canvas import KONTEXT_AREA, PIXELS_PER_TOKEN
from rekontext.engine.fp8 import quantised_names
from rekontext.engine.layers import ModulationLinear
from rekontext.engine.transformer import KontextTransformer, TransformerConfig

STARTED_EDITS_MAX: Final = 8
"""Edits between their first and last step. Each holds its modulation: 105 MB at full size and 50 steps."""
CACHED_PROMPTS_MAX: Final = 64
"""T5-XXL states of one prompt are 4 MiB in bfloat16, so the cache stays under 300 MiB."""

GB: Final = 10**9
_BF16_BYTES: Final = 2
_STEP_TENSORS: Final = 26
"""Values alive at the widest point of a single-stream block, in units of tokens * width: 7 of the fused projection,
3 of Q, K and V, 4 in float32 while they turn (counted double), 5 of the second projection's input, 3 of the stream."""
_DECODE_TENSORS: Final = 5
"""Tensors of full resolution alive in the autoencoder's widest layer there."""
_RESERVE_BYTES: Final = 2**30
"""Workspaces of the libraries, and what the allocator loses between blocks."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """In which form and where the parts are held. The default is all of it on the device, as wide as it computes."""

    fp8: bool = False
    text_on_host: bool = False
    modulation_on_host: bool = False


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What must be known of a model to say what it needs; the defaults are the published one's.

    Attributes:
        text_encoder_parameters: of CLIP's and T5's encoders together.
        full_resolution_channels: of the autoencoder's widest layer at the picture's own resolution.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    text_encoder_parameters: int = 4_885_371_136
    autoencoder_parameters: int = 83_819_683
    full_resolution_channels: int = 256
    canvas_area: int = KONTEXT_AREA
    text_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """One way of holding a model.

    Attributes:
        device_bytes: weights on the GPU, and what edits need beside them.
        host_bytes: weights that stay on the host.
        free_bytes: of the GPU, when the plan was made.
    """

    name: str
    placement: Placement
    device_bytes: int
    host_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.device_bytes <= self.free_bytes

    def __str__(self) -> str:
        host = f", {self.host_bytes / GB:.1f} GB on the host" if self.host_bytes else ""
        return f"{self.name}: {self.device_bytes / GB:.1f} GB on the GPU{host}"


_PLACEMENTS: Final = {
    "bf16": Placement(),
    "fp8": Placement(fp8=True),
    "fp8, text encoders on the host": Placement(fp8=True, text_on_host=True),
    "fp8, text encoders and modulation on the host": Placement(fp8=True, text_on_host=True, modulation_on_host=True),
}


def memory_plans(sizes: Sizes, free_bytes: int, *, has_fp8: bool = True) -> list[MemoryPlan]:
    """Every way of holding a model, the fastest and largest first; whether each fits is its `fits`.

    Args:
        free_bytes: of the GPU's memory, nothing of the model loaded.
        has_fp8: whether the GPU has fp8 matrix units; without them there is only the first plan.
    """
    linears, modulation, others = _transformer_parameters(sizes.transformer)
    work_bytes = _work_bytes(sizes, modulation)
    found = []
    for name, placement in _PLACEMENTS.items():
        device_bytes = work_bytes + linears * (1 if placement.fp8 else _BF16_BYTES)
        device_bytes += _BF16_BYTES * (others + sizes.autoencoder_parameters)
        text, values = _BF16_BYTES * sizes.text_encoder_parameters, _BF16_BYTES * modulation
        device_bytes += (0 if placement.text_on_host else text) + (0 if placement.modulation_on_host else values)
        host_bytes = (text if placement.text_on_host else 0) + (values if placement.modulation_on_host else 0)
        found.append(
            MemoryPlan(
                name=name,
                placement=placement,
                device_bytes=device_bytes,
                host_bytes=host_bytes,
                free_bytes=free_bytes,
            )
        )
    return found if has_fp8 else found[:1]


def _transformer_parameters(config: TransformerConfig) -> tuple[int, int, int]:
    """How many are in the layers that fp8 covers, in the blocks' modulation, and in everything else."""
    with torch.device("meta"):
        transformer = KontextTransformer(config)
    linears = sum(transformer.get_parameter(f"{name}.weight").numel() for name in quantised_names(transformer))
    modulation = sum(
        parameter.numel()
        for layer in transformer.modules()
        if isinstance(layer, ModulationLinear)
        for parameter in layer.parameters()
    )
    return linears, modulation, sum(p.numel() for p in transformer.parameters()) - linears - modulation


def _work_bytes(sizes: Sizes, modulation_parameters: int) -> int:
    """What edits need beside the weights: a step, a decoding beside it, edits under way, caches."""
    config = sizes.transformer
    tokens = sizes.text_tokens + 2 * sizes.canvas_area // PIXELS_PER_TOKEN**2
    step = _STEP_TENSORS * tokens * config.width
    decoding = _DECODE_TENSORS * sizes.canvas_area * sizes.full_resolution_channels
    modulation_values = modulation_parameters // (config.width + 1) + 2 * config.width
    edits = STARTED_EDITS_MAX * STEPS_MAX * modulation_values
    prompts = CACHED_PROMPTS_MAX * sizes.text_tokens * config.text_width
    return _BF16_BYTES * (step + decoding + edits + prompts) + _RESERVE_BYTES
