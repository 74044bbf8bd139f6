"""What is measured once on a device and remembered beside the step times."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from typing import Final, Literal, TypeVar

import torch
from torch import Tensor

from rekontext.contract import EditRefused, ModelCard
from rekontext.engine import attention
from rekontext.engine.costs import CostModel, per_device
from rekontext.engine.fp8 import missing_units, relative_error
from rekontext.engine.timing import seconds
from rekontext.engine.transformer import KontextTransformer

GeluPlace = Literal["behind", "within"]
PassBy = Literal["blocks", "compiled blocks", "kernels"]
Way = TypeVar("Way", bound=str)

ERROR_MAX: Final = 0.2
"""Relative L2 between two ways over a whole pass, above which one of them must be wrong: all blocks round anew.

In float32, which promises more, there is only one way.
"""
WORTHWHILE: Final = 0.99
"""The second way must need less than this share of the time to be taken: a tie must not change bytes."""
_OF_PASSES: Final = ("pass by ", "gelu ")
"""So the names begin under which `CostModel` keeps what a pass took by each way."""
_log = logging.getLogger(__name__)


def costs_file_of(path: Path, card: ModelCard) -> Path:
    """Where the costs of this model on this device lie, beside those of others."""
    device = torch.device(card.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return per_device(path, card.name, name, card.dtype)


def choose_attention(transformer: KontextTransformer, costs: CostModel, *, tokens: int, name: str | None = None) -> str:
    """Have a transformer attend by the named backend, by the one for its format on a CPU, or by the fastest on a GPU.

    Times that `costs` knows of this PyTorch and these backends are believed, so that every start takes the same one,
    and every picture has the same bytes; new ones are put there. One that can't run any more gives way to the next.

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


def choose_ways(
    transformer: KontextTransformer,
    costs: CostModel,
    *,
    tokens: int,
    compiled: bool,
    ready: Callable[[], Callable[[], Tensor]],
) -> None:
    """Have a transformer's passes computed in the ways that are fastest, and know from their trial what a step takes.

    Args:
        compiled: its blocks are, and compute it.
        ready: as for `choose_pass`.
    """
    by: PassBy = "compiled blocks" if compiled else choose_pass(transformer, costs, tokens=tokens, ready=ready)
    choose_gelu(transformer, costs, tokens=tokens, by=by, ready=ready)
    tried = (known.get(tokens) for name, known in costs.seconds.items() if name.startswith(_OF_PASSES))
    pass_s = min((took_s for took_s in tried if took_s is not None), default=None)
    if pass_s is not None and "step" not in costs.seconds:
        costs.learn("step", tokens, pass_s)


def choose_pass(
    transformer: KontextTransformer, costs: CostModel, *, tokens: int, ready: Callable[[], Callable[[], Tensor]]
) -> PassBy:
    """Have a GPU's passes computed by our own kernels (`fused.py`) where those run, and are faster than its blocks.

    As with attention, times that `costs` knows are believed.

    Args:
        ready: makes a call that does one pass over `tokens`; asked for only where it is needed.
    """
    if not has_kernels_for(transformer):
        return "blocks"
    why = missing_kernels(transformer.device)
    if why:
        _log.warning("steps take longer than they need to: our own kernels can't run, %s", why)
        return "blocks"
    from rekontext.engine.fused import FusedPass

    own = FusedPass(transformer)
    ways: dict[PassBy, Callable[[], None]] = {
        "blocks": lambda: transformer.use_pass(None),
        "kernels": lambda: transformer.use_pass(own),
    }
    return _faster(transformer, costs, ways, name=lambda by: f"pass by {by}", tokens=tokens, ready=ready)


def has_kernels_for(transformer: KontextTransformer) -> bool:
    """Whether our own kernels are meant for a transformer: one on a GPU, in bfloat16 or fp8."""
    return transformer.device.type == "cuda" and transformer.dtype == torch.bfloat16


def missing_kernels(device: torch.device) -> str:
    """Why our own kernels can't run on a device; empty if they can. Tried: Triton compiles them as they are called."""
    is_gpu = device.type == "cuda"
    try:
        from triton import knobs

        from rekontext.engine.kernels import activated

        if is_gpu and knobs.runtime.interpret:
            return "Triton interprets them, which takes minutes: TRITON_INTERPRET is set"
        # Kernels run where the present device is.
        with torch.cuda.device(device) if is_gpu else nullcontext():
            for e4m3 in (False, True) if is_gpu and not missing_units(device) else (False,):
                activated(torch.zeros(1, 16, dtype=torch.bfloat16, device=device), None, e4m3=e4m3)
            if is_gpu:
                torch.cuda.synchronize()
    except Exception as fault:  # compilers fail in ways of their own
        first_line = next(iter(str(fault).splitlines()), "")[:200]
        is_of_compiler = isinstance(fault, CalledProcessError) or "compiler" in first_line
        needs = "; Triton needs gcc and Python's headers (python3-dev)" if is_of_compiler else ""
        return f"{type(fault).__name__}: {first_line}{needs}"
    return ""


def choose_gelu(
    transformer: KontextTransformer,
    costs: CostModel,
    *,
    tokens: int,
    by: PassBy,
    ready: Callable[[], Callable[[], Tensor]],
) -> GeluPlace:
    """Have a transformer compute GELU behind the products before it, or within them where a pass is faster that way.

    Within, less is written to memory and read again, but the product may be a slower kernel, and a single-stream block
    has a product more. As with attention, times that `costs` knows are believed.

    Args:
        by: what its passes are computed by; by compiled blocks or kernels, what stands behind a product costs less.
        ready: as for `choose_pass`.
    """
    ways: dict[GeluPlace, Callable[[], None]] = {
        "behind": lambda: transformer.use_gelu_within(False),
        "within": lambda: transformer.use_gelu_within(True),
    }
    if not transformer.can_have_gelu_within:
        ways["behind"]()
        return "behind"
    return _faster(transformer, costs, ways, name=lambda place: f"gelu {place}, {by}", tokens=tokens, ready=ready)


def _faster(
    transformer: KontextTransformer,
    costs: CostModel,
    ways: dict[Way, Callable[[], None]],
    *,
    name: Callable[[Way], str],
    tokens: int,
    ready: Callable[[], Callable[[], Tensor]],
) -> Way:
    """Take the second of two ways of computing a pass if it was, or is now, faster than the first.

    What fails is remembered nowhere: the reason may be gone at the next start.
    """
    first, second = ways
    stored = {way: costs.seconds.get(name(way), {}).get(tokens) for way in ways}
    known = {way: took_s for way, took_s in stored.items() if took_s is not None}
    if len(known) < len(ways):
        known = _try_ways(transformer, ways, ready)
        for way, took_s in known.items() if len(known) == len(ways) else ():
            costs.learn(name(way), tokens, took_s)
    taken = second if known.get(second, math.inf) < WORTHWHILE * known.get(first, math.inf) else first
    ways[taken]()
    return taken


@torch.inference_mode()
def _try_ways(
    transformer: KontextTransformer, ways: dict[Way, Callable[[], None]], ready: Callable[[], Callable[[], Tensor]]
) -> dict[Way, float]:
    """Seconds of a pass by each way that runs, and agrees with those before it."""
    known: dict[Way, float] = {}
    expected = None
    for way, take in ways.items():
        try:
            take()
            run = ready()
            found = run()
            error = 0.0 if expected is None else relative_error(found, expected)
            if error <= ERROR_MAX:
                known[way] = seconds(run, transformer.device)
                expected = found
            else:
                _log.warning("passes by %r are out: they differ by %.2g from those before", way, error)
        except Exception as fault:
            # A way that can't run here is none. What can't run at all will say so at the first edit.
            _log.warning("passes by %r could not be tried: %s: %s", way, type(fault).__name__, str(fault)[:200])
            if transformer.device.type == "cuda":
                torch.cuda.empty_cache()  # the next way may need what this one held
    return known


def _fastest(transformer: KontextTransformer, costs: CostModel, names: tuple[str, ...], tokens: int) -> str:
    tried = partial(
        attention.try_backends,
        device=transformer.device,
        dtype=transformer.dtype,
        heads=transformer.config.heads,
        head_width=transformer.config.width // transformer.config.heads,
        tokens=tokens,
    )
    # Among others, or with another PyTorch, another one may be the fastest.
    stages = {name: f"attention {name}, PyTorch {torch.__version__}, of {' '.join(names)}" for name in names}
    stored = {name: costs.seconds.get(stage, {}).get(tokens) for name, stage in stages.items()}
    known = {name: took_s for name, took_s in stored.items() if took_s is not None}
    while known:
        name = attention.fastest(known)
        now = tried((name,))[name]
        if now.seconds is not None:
            return name
        # As when a library was replaced. Its time stays: the reason may be gone at the next start.
        _log.warning("attention %r, the fastest as it was measured, can't be taken: %s", name, now.reason)
        del known[name]
    known = {name: trial.seconds for name, trial in tried(names).items() if trial.seconds is not None}
    for name, took_s in known.items():
        costs.learn(stages[name], tokens, took_s)
    return attention.fastest(known)


@contextmanager
def best_effort() -> Iterator[None]:
    """What is kept for the next start only spares it time: where that can't be written, this one goes on."""
    try:
        yield
    except OSError as fault:
        _log.warning("what would spare the next start time can't be kept: %s", fault)
