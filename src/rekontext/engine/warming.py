"""What is chosen, compiled and allocated before an engine's first edit, so that none waits for it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from PIL import Image
from torch import Tensor

from rekontext.contract import GUIDANCE_DEFAULT, EditRequest
from rekontext.engine import edit as stages
from rekontext.engine.canvas import PIXELS_PER_TOKEN
from rekontext.engine.compilation import compile_blocks, keep
from rekontext.engine.core import EngineCore
from rekontext.engine.placement import free_memory, is_out_of_memory
from rekontext.engine.tuning import best_effort, choose_attention, choose_ways


def tune(core: EngineCore, attention: str | None, *, compiled: bool, compile_cache: Path | None) -> None:
    """Choose what must not change any more once edits are served (it would change their bytes), and warm up.

    Args:
        attention, compiled, compile_cache: as of `Engine.open`.
    """
    model = core.model
    tokens = model.prompts.tokens + 2 * model.canvas.area // PIXELS_PER_TOKEN**2
    choose_attention(model.transformer, core.costs, tokens=tokens, name=attention)
    if compiled:
        compile_blocks(model.transformer, cache_file=compile_cache)
    choose_ways(model.transformer, core.costs, tokens=tokens, compiled=compiled, ready=lambda: one_pass(core))
    core.save_costs()
    if not compiled and not core.device.has_second:
        return
    # What these take says what compiling and loading kernels takes, not what an edit does.
    costs, known = core.costs, deepcopy(core.costs.seconds)
    warm_up(core)
    if compiled and core.device.has_second and core.batching.mode != "off":
        _warm_up_together(core)
    if core.costs is costs:
        costs.seconds = known
    else:  # memory ran out, and what another format takes is in another file
        core.load_costs()
    if compiled:
        warm_up(core)
        if compile_cache is not None:
            with best_effort():
                keep(compile_cache)


def warm_up(core: EngineCore) -> None:
    """Run one step of an edit and one of text-to-image."""
    photo = Image.new("RGB", core.model.canvas.output("3:2", None), "gray")
    for picture in (photo, None):
        request = _of_one_step(picture)
        core.submit(request, stages.plan(core.model, request), on_progress=None).result()
    core.forget()


def one_pass(core: EngineCore) -> Callable[[], Tensor]:
    """A call that runs the transformer once, on a square picture and as large a reference."""
    request = _of_one_step(Image.new("RGB", core.model.canvas.output("1:1", None), "gray"))
    edit = stages.prepare(core.model, request, stages.plan(core.model, request))
    core.forget()
    return lambda: stages.velocities(core.model, [edit])[0]


def _warm_up_together(core: EngineCore) -> None:
    """A pass over two edits is compiled apart from that over one. Later it would hold up whoever waits."""
    request = _of_one_step(None)
    plan = stages.plan(core.model, request)
    is_short = False
    try:
        stages.velocities(core.model, [stages.prepare(core.model, request, plan) for _ in range(2)])
        core.device.synchronize()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        is_short = True
    core.forget()
    if is_short:
        # No reason to hold the model in a narrower way: such edits go alone.
        core.batching.forbid(plan.shape, 2)
        free_memory(core.model.transformer.device)


def _of_one_step(photo: Image.Image | None) -> EditRequest:
    return EditRequest(id="", prompt="", photo=photo, steps=1, guidance=GUIDANCE_DEFAULT, seed=0)
