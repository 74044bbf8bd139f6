"""What is measured once on a device and remembered beside the step times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from rekontext.contract import EditRefused, ModelCard
from rekontext.engine import attention
from rekontext.engine.costs import CostModel, per_device
from rekontext.engine.fp8 import relative_error
from rekontext.engine.timing import seconds
from rekontext.engine.transformer import KontextTransformer

GeluPlace = Literal["behind", "within"]

GELU_PLACES: Final[tuple[GeluPlace, ...]] = ("behind", "within")
GELU_ERROR_MAX: Final = 0.1
"""Relative L2 between the two ways over a whole pass, above which one of them must be wrong: all blocks round anew."""
GELU_WORTHWHILE: Final = 0.99
"""The way within must need less than this share of the time to be taken: a tie must not change bytes."""
_log = logging.getLogger(__name__)


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


def choose_gelu(
    transformer: KontextTransformer,
    costs: CostModel,
    *,
    tokens: int,
    compiled: bool,
    ready: Callable[[], Callable[[], Tensor]],
) -> GeluPlace:
    """Have a transformer compute GELU behind the products before it, or within them where a pass is faster that way.

    Within, less is written to memory and read again, but the product may be a slower kernel, and a single-stream block
    has two products more. As with attention, times that `costs` knows are believed.

    Args:
        compiled: its blocks are; then what stands behind a product costs less.
        ready: makes a call that does one pass over `tokens`; asked for only where it is needed.
    """
    place: GeluPlace = "behind"
    if transformer.can_have_gelu_within:
        names = {each: f"gelu {each} compiled" if compiled else f"gelu {each}" for each in GELU_PLACES}
        stored = {each: costs.seconds.get(name, {}).get(tokens) for each, name in names.items()}
        known = {each: took_s for each, took_s in stored.items() if took_s is not None}
        if not known:
            known = _try_gelu(transformer, ready)
            for each, took_s in known.items():
                costs.learn(names[each], tokens, took_s)
        if len(known) == len(GELU_PLACES) and known["within"] < GELU_WORTHWHILE * known["behind"]:
            place = "within"
    transformer.use_gelu_within(place == "within")
    return place


@torch.inference_mode()
def _try_gelu(transformer: KontextTransformer, ready: Callable[[], Callable[[], Tensor]]) -> dict[GeluPlace, float]:
    """Seconds of a pass either way, as far as it runs and the second agrees with the first."""
    known: dict[GeluPlace, float] = {}
    try:
        transformer.use_gelu_within(False)
        run = ready()
        expected = run()
        known["behind"] = seconds(run, transformer.device)
        transformer.use_gelu_within(True)
        error = relative_error(run(), expected)
        if error <= GELU_ERROR_MAX:
            known["within"] = seconds(run, transformer.device)
        else:
            _log.warning("GELU within products is out: a pass differs by %.2g", error)
    except Exception as fault:
        # A way that can't run here is none. What can't run at all will say so at the first edit.
        _log.warning("where GELU is faster could not be tried: %s: %s", type(fault).__name__, str(fault)[:200])
    return known


def _fastest(transformer: KontextTransformer, costs: CostModel, names: tuple[str, ...], tokens: int) -> str:
    known = {name: costs.seconds.get(f"attention {name}", {}).get(tokens) for name in names}
    if all(took_s is None for took_s in known.values()):
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
        for name, took_s in known.items():
            if took_s is not None:
                costs.learn(f"attention {name}", tokens, took_s)
    return attention.fastest({name: took_s for name, took_s in known.items() if took_s is not None})


@contextmanager
def best_effort() -> Iterator[None]:
    """What is kept for the next start only spares it time: where that can't be written, this one goes on."""
    try:
        yield
    except OSError as fault:
        _log.warning("what would spare the next start time can't be kept: %s", fault)
