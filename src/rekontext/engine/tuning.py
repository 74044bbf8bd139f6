"""What is measured once on a device and remembered beside the step times."""

from __future__ import annotations

from pathlib import Path

import torch

from rekontext.contract import EditRefused, ModelCard
from rekontext.engine import attention
from rekontext.engine.costs import CostModel, per_device
from rekontext.engine.transformer import KontextTransformer


def costs_file_of(path: Path, card: ModelCard) -> Path:
    """Where the costs of this model on this device lie, beside those of others."""
    device = torch.device(card.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return per_device(path, card.name, name, card.dtype)


def choose_attention(transformer: KontextTransformer, costs: CostModel, *, tokens: int, name: str | None = None) -> str:
    """Have a transformer attend by the named backend, by the one for its format on a CPU, or by the fastest on a GPU.

    Times that `costs` knows are believed, so that every start takes the same backend, and every picture has the same
    bytes; new ones are put there.

    Returns:
        The backend's name.

    Raises:
        EditRefused: no such backend on this device.
    """
    names = attention.candidates(transformer.device)
    if name is None:
        name = attention.without_trial(transformer.device, transformer.dtype)
    if name is None:
        name = _fastest(transformer, costs, names, tokens)
    if name not in names:
        raise EditRefused(f"attention is {name!r}: on {transformer.device} it must be one of {', '.join(names)}")
    transformer.use_attention(attention.BACKENDS[name])
    return name


def _fastest(transformer: KontextTransformer, costs: CostModel, names: tuple[str, ...], tokens: int) -> str:
    known = {name: costs.seconds.get(f"attention {name}", {}).get(tokens) for name in names}
    if all(seconds is None for seconds in known.values()):
        config = transformer.config
        trials = attention.try_backends(
            names,
            device=transformer.device,
            dtype=transformer.dtype,
            heads=config.heads,
            head_width=config.width // config.heads,
            tokens=tokens,
        )
        known = {name: trial.seconds for name, trial in trials.items()}
        for name, seconds in known.items():
            if seconds is not None:
                costs.learn(f"attention {name}", tokens, seconds)
    return attention.fastest({name: seconds for name, seconds in known.items() if seconds is not None})
