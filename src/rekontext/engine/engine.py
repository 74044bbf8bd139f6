"""The engine: an opened model, the thread that owns its device, and the edits that are under way on it.

One thread runs transformer steps, one at a time, of whichever edit the scheduler names (and of others of its shape,
where a shared pass was measured to pay). Everything around the steps (encoding, decoding) runs beside them: see
`device.py`.

Knows no users, money or HTTP. What it takes and gives is in `rekontext.contract`.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from threading import Condition, Thread, current_thread
from typing import Final, cast
from weakref import WeakSet

from PIL import Image
from torch import Tensor

from rekontext.contract import (
    GUIDANCE_DEFAULT,
    SEED_MAX,
    STEPS_DEFAULT,
    Acceleration,
    AspectRatio,
    BatchMode,
    DeadlineUnmeetable,
    EditRefused,
    EditRequest,
    EditResult,
    Estimate,
    ModelCard,
    OnProgress,
    Preview,
    Progress,
)
from rekontext.engine import edit as stages
from rekontext.engine.autoencoder import to_picture
from rekontext.engine.batching import Batching
from rekontext.engine.canvas import PIXELS_PER_TOKEN
from rekontext.engine.checkpoint import Parts
from rekontext.engine.compilation import compile_blocks, keep
from rekontext.engine.costs import CostModel
from rekontext.engine.device import Device
from rekontext.engine.edit import Model
from rekontext.engine.memory import STARTED_EDITS_MAX, MemoryPlan
from rekontext.engine.outlook import Outlook
from rekontext.engine.placement import Holding, free_memory, is_out_of_memory, open_placed
from rekontext.engine.precision import choose_device
from rekontext.engine.preview import Previewer
from rekontext.engine.scheduler import Policy, Scheduler, equal_shares
from rekontext.engine.ticket import EditCancelled, Ticket, park, unpark
from rekontext.engine.tuning import best_effort, choose_attention, choose_ways, costs_file_of
from rekontext.models import MINI
from rekontext.photos import seen

_GUESSED_FLOPS: Final = {"cpu": 1e11, "cuda": 7e14}
"""Until the first step was measured. On an H200 it is 7.7e14 in bfloat16, counted as `_know_costs` does."""
_log = logging.getLogger(__name__)


_open: Final[WeakSet[Engine]] = WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread that computes while the interpreter ends takes the process down with an abort."""
    for engine in list(_open):
        engine.close()


class EngineBroken(RuntimeError):
    """The engine can't go on: its device has failed. Only a new process helps."""


class Engine:
    """An opened model. Make one with `Engine.open`, `close` it when done (or use it in a `with` statement).

    Attributes:
        broken: gets the fault, as an exception, once the engine can't run edits any more.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        is_mini: bool = False,
        policy: Policy | None = None,
        weight: Callable[[str], float] = equal_shares,
        costs_file: Path | None = None,
        batch: BatchMode = "exact",
        plans: Sequence[MemoryPlan] = (),
    ) -> None:
        self.model = Model.of(parts)
        self._holding = Holding(parts, plans)
        transformer = parts.transformer
        self.card = ModelCard(
            name=parts.name,
            canvas_area=parts.canvas.area,
            parameters=sum(p.numel() for p in transformer.parameters()),
            device=str(transformer.device),
            dtype=self._holding.dtype,
            is_mini=is_mini,
            knows=parts.knows,
            loras=parts.loras,
        )
        self.broken: Future[None] = Future()
        self._scheduler = Scheduler(policy=policy or Policy(), weight=weight)
        self._outlook = Outlook(canvas=parts.canvas, text_tokens=self.model.prompts.tokens, scheduler=self._scheduler)
        self._costs_path = costs_file
        self._know_costs()
        self._batching = Batching(mode=batch)
        self._tickets: dict[int, Ticket] = {}
        self._submitted = 0
        self._previewer: Previewer | None = None
        self._changed = Condition()
        self._is_closing = False
        self._short_of_memory: list[Callable[[], None]] = []
        self._device = Device(transformer.device)
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        _open.add(self)

    @classmethod
    def open(
        cls,
        model: str = MINI,
        *,
        device: str | None = None,
        dtype: str | None = None,
        policy: Policy | None = None,
        weight: Callable[[str], float] = equal_shares,
        costs_file: Path | None = None,
        batch: BatchMode = "exact",
        compiled: bool = False,
        compile_cache: Path | None = None,
        attention: str | None = None,
        loras: Sequence[str] = (),
    ) -> Engine:
        """Load a model.

        Args:
            model: "mini" (inside this package), a diffusers folder, a .safetensors or .gguf file, or a hub
                id (owner/name).
            device: "cpu", "cuda" or "cuda:N"; None takes the first GPU, else the CPU.
            dtype: "float32", "bfloat16" or "fp8" (the blocks' weights in e4m3, all else in bfloat16); None takes
                float32 on the CPU (bfloat16 where the CPU multiplies it and the model's facts ask for it, as the
                embedded model's do), and on a GPU the widest way of holding the model that fits into its free memory,
                falling to a narrower one with a warning where memory runs out after all: see `memory.py`.
            policy: in which order edits are served.
            weight: an account's share of the device relative to others'.
            costs_file: where measured step times are kept between runs; model, device and dtype are added to its name.
            batch: whether edits of equal shape may share a pass where that is measured to pay: "exact" only where
                each still gets the bits that it would get alone, "any" where it gets others, "off" never.
            compiled: compile the transformer's blocks before the first edit; seconds to minutes, once. For
                float32 on a GPU: in bfloat16 our own kernels are as fast there, and compiled in seconds.
            compile_cache: where compiled code is kept between runs.
            attention: one of `attention.BACKENDS`; None tries them on a GPU and takes the fastest, and keeps the times
                in `costs_file`, so that the next start takes the same one.
            loras: merged into the weights, so that steps take no longer: each a .safetensors file, a folder with one
                in it or a hub id, and after a colon its strength ("watercolour.safetensors:0.8").

        Raises:
            CheckpointError: the model or a LoRA can't be found, isn't complete or doesn't belong to the other, or the
                model doesn't fit into the GPU's memory.
            ValueError: a LoRA's strength is no number.
            EditRefused: no such device or dtype.
        """
        torch_device = choose_device(device)
        # The compiler reads weights as they were stored.
        parts, plans = open_placed(model, device=torch_device, dtype=dtype, packed=not compiled, loras=loras)
        engine = cls(
            parts, is_mini=model == MINI, policy=policy, weight=weight, costs_file=costs_file, batch=batch, plans=plans
        )
        try:
            engine._tune(attention, compiled=compiled, compile_cache=compile_cache)
        except BaseException:
            engine.close()
            raise
        return engine

    def _tune(self, attention: str | None, *, compiled: bool, compile_cache: Path | None) -> None:
        """What must not change any more once edits are served: it would change their bytes."""
        tokens = self.model.prompts.tokens + 2 * self.model.canvas.area // PIXELS_PER_TOKEN**2
        choose_attention(self.model.transformer, self.costs, tokens=tokens, name=attention)
        if compiled:
            compile_blocks(self.model.transformer, cache_file=compile_cache)
        choose_ways(self.model.transformer, self.costs, tokens=tokens, compiled=compiled, ready=self._one_pass)
        self._save_costs()
        if not compiled and not self._device.has_second:
            return
        # What these take says what compiling and loading kernels takes, not what an edit does.
        costs, known = self.costs, deepcopy(self.costs.seconds)
        self.warm_up()
        if compiled and self._device.has_second and self._batching.mode != "off":
            self._warm_up_together()
        if self.costs is costs:
            costs.seconds = known
        else:  # memory ran out, and what another format takes is in another file
            self._know_costs()
        if compiled:
            self.warm_up()
            if compile_cache is not None:
                with best_effort():
                    keep(compile_cache)

    @property
    def costs(self) -> CostModel:
        """What the device takes for what."""
        return self._outlook.costs

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def edit(
        self,
        photo: Image.Image | None,
        prompt: str,
        *,
        steps: int = STEPS_DEFAULT,
        guidance: float = GUIDANCE_DEFAULT,
        seed: int | None = None,
        aspect_ratio: AspectRatio = "match_input_image",
        acceleration: Acceleration = "none",
        on_step: OnProgress | None = None,
    ) -> Image.Image:
        """Edit a picture as the prompt says, and wait for it.

        Args:
            photo: of any size and mode, taken as a viewer shows it (its EXIF, colour profile and transparency heeded);
                None makes a picture from the prompt alone.
            steps: 1..50.
            guidance: 0..10.
            seed: the same seed gives the same picture; None draws one.
            aspect_ratio: one of `rekontext.contract.ASPECT_RATIOS`.
            acceleration: "none" is exact; "regular" and "high" leave out transformer passes.
            on_step: called from the engine's threads after preparing and after every step.

        Returns:
            An RGB picture of one of the model's own sizes.

        Raises:
            EditRefused: a value is of the wrong kind or out of its range, or `photo` is no picture or can't be read.
            RuntimeError, EngineBroken: as `submit`.
        """
        if photo is not None and not isinstance(photo, Image.Image):
            raise EditRefused(
                f"photo is a {type(photo).__name__}: it must be a PIL.Image.Image (PIL.Image.open reads a file) or None"
            )
        request = EditRequest(
            id="",
            prompt=prompt,
            photo=None if photo is None else seen(photo),
            steps=steps,
            guidance=guidance,
            seed=secrets.randbelow(SEED_MAX) if seed is None else seed,
            aspect_ratio=aspect_ratio,
            acceleration=acceleration,
        )
        ticket = self.submit(request, on_progress=on_step)
        try:
            return ticket.result().picture
        except BaseException:  # whoever is interrupted doesn't want it any more
            ticket.cancel()
            raise

    def submit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> Ticket:
        """Queue an edit. Many may be queued: a photo that waits is kept at the size it will be used at, compressed.

        Args:
            on_progress: called from the engine's threads; it must not block.

        Raises:
            DeadlineUnmeetable: the edit can't be done by its `deadline_s`.
            EngineBroken: the device failed at an earlier edit.
            RuntimeError: the engine is closed, or is another process's.
        """
        if self._process != os.getpid():  # its thread is there, not here: this edit would wait for ever
            raise RuntimeError("this engine was opened before a fork, by the parent: open one in this process")
        plan = stages.plan(self.model, request)
        parked = park(request.photo, plan, waits=bool(self._tickets))
        with self._changed:
            if self._is_closing:
                raise RuntimeError("the engine is closed")
            if self.broken.done():
                raise EngineBroken("the engine broke at an earlier edit") from self.broken.exception()
            now_s, work_s = time.monotonic(), self._outlook.work_s(plan)
            if request.deadline_s is not None:
                finish_s = self._scheduler.estimate(
                    account=request.account, work_s=work_s, now_s=now_s, priority=request.priority
                ).finish_s
                if finish_s > request.deadline_s:
                    raise DeadlineUnmeetable(deadline_s=request.deadline_s, finish_s=finish_s)
            number = self._submitted
            self._submitted += 1
            ticket = Ticket(
                number=number,
                request=replace(request, photo=None),
                plan=plan,
                parked=parked,
                on_progress=on_progress,
                changed=self._changed,
            )
            self._tickets[number] = ticket
            self._scheduler.add(number, account=request.account, work_s=work_s, now_s=now_s, priority=request.priority)
            self._changed.notify_all()
        return ticket

    def estimate(self, request: EditRequest | Ticket) -> Estimate:
        """When a submitted edit will be done, or when a request would be if it were submitted now."""
        with self._changed:
            now_s = time.monotonic()
            if isinstance(request, Ticket):
                return self._outlook.estimate_of(request.number, now_s=now_s)
            return self._outlook.estimate(request, now_s=now_s)

    def outlook(self) -> Outlook:
        """A copy of what is known of submitted edits, which are in it under their tickets' numbers."""
        with self._changed:
            copied = pickle.dumps(self._outlook)
        return cast(Outlook, pickle.loads(copied))  # noqa: S301 - made here

    def warm_up(self) -> None:
        """Run one step of an edit and one of text-to-image: whatever is compiled or allocated once, is so now."""
        photo = Image.new("RGB", self.model.canvas.output("3:2", None), "gray")
        for picture in (photo, None):
            self.edit(picture, "", steps=1, seed=0)
        self.forget()

    def _one_pass(self) -> Callable[[], Tensor]:
        """A call that runs the transformer once, on a square picture and as large a reference."""
        photo = Image.new("RGB", self.model.canvas.output("1:1", None), "gray")
        request = EditRequest(id="", prompt="", photo=photo, steps=1, guidance=GUIDANCE_DEFAULT, seed=0)
        edit = stages.prepare(self.model, request, stages.plan(self.model, request))
        self.forget()
        return lambda: stages.velocities(self.model, [edit])[0]

    def _warm_up_together(self) -> None:
        """A pass over two edits is compiled apart from that over one. Later it would hold up whoever waits."""
        request = EditRequest(id="", prompt="", photo=None, steps=1, guidance=GUIDANCE_DEFAULT, seed=0)
        plan = stages.plan(self.model, request)
        is_short = False
        try:
            stages.velocities(self.model, [stages.prepare(self.model, request, plan) for _ in range(2)])
            self._device.synchronize()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            is_short = True
        self.forget()
        if is_short:
            # No reason to hold the model in a narrower way: such edits go alone.
            self._batching.forbid(plan.shape, 2)
            free_memory(self.model.transformer.device)

    def forget(self) -> None:
        """Empty the caches of prompts and references."""
        self.model.prompts.forget()
        self.model.autoencoder.forget()

    def close(self) -> None:
        """Stop within one step. Edits that aren't done fail with `EditCancelled`. Not from a listener of an edit."""
        if self._process != os.getpid():
            return
        if current_thread() is self._thread or self._device.is_second:
            raise RuntimeError("close was called from a thread of the engine's own, which it waits for")
        with self._changed:
            self._is_closing = True
            for ticket in self._tickets.values():
                ticket.is_cancelled = True
            self._changed.notify_all()
        self._thread.join()
        self._device.close()
        self._save_costs()
        _open.discard(self)

    def _run(self) -> None:
        """The device's thread, up to its end. A fault that no edit can be blamed for ends them all."""
        try:
            self._loop()
        except BaseException as fault:
            _log.exception("the engine broke")
            with self._changed:
                for ticket in list(self._tickets.values()):
                    self._fail(ticket, EngineBroken(f"the engine broke: {type(fault).__name__}: {fault}"))
                self.broken.set_exception(fault)

    def _loop(self) -> None:
        """The thread's work: drop what was cancelled, start what is due, run one step, again."""
        while True:
            if self._short_of_memory:
                self._fall()
            while self._device.between:
                self._device.between.popleft()()
            with self._changed:
                self._drop_cancelled()
                ticket = self._next_step()
                while ticket is None and not self._short_of_memory and not self._device.between:
                    if self._is_closing and not self._tickets:
                        return
                    self._changed.wait()
                    self._drop_cancelled()
                    ticket = self._next_step()
                # What waits between steps may turn out to be shorter than the edit whose turn it would be.
                group = [] if ticket is None or self._device.between else self._group(ticket)
            if group:
                self._step(group)

    def _group(self, ticket: Ticket) -> list[Ticket]:
        """The edit whose turn it is, and those that share its pass."""
        assert ticket.edit is not None, "only prepared edits are stepped"
        shape, tokens = ticket.plan.shape, ticket.plan.tokens
        if self._batching.mode == "off" or not ticket.edit.runs_next:
            return [ticket]
        mates = {
            other.number
            for other in self._tickets.values()
            if other.plan.shape == shape and other.edit is not None and not other.is_beside and other.edit.runs_next
        }
        size = self._batching.wanted(shape, len(mates), tokens=tokens) or self._batching.shared(shape, len(mates))
        order = self._scheduler.order(time.monotonic(), among=mates - {ticket.number})
        return [ticket, *(self._tickets[number] for number in order[: size - 1] if isinstance(number, int))]

    def _next_step(self) -> Ticket | None:
        """The edit whose step is next. On the way, edits that come before it but aren't prepared are sent to be."""
        waiting = {number for number, ticket in self._tickets.items() if not ticket.is_beside}
        while waiting:
            number = self._scheduler.next(time.monotonic(), among=waiting)
            assert isinstance(number, int)
            ticket = self._tickets[number]
            if ticket.edit is not None:
                self._prepare_ahead()
                return ticket
            if sum(other.is_started for other in self._tickets.values()) < STARTED_EDITS_MAX:
                self._beside(ticket, self._prepare)
            # One newcomer at a time: by when it is prepared another may have come that is shorter.
            waiting = {n for n in waiting if self._tickets[n].edit is not None}
        return None

    def _prepare_ahead(self) -> None:
        """On a GPU: prepare who comes after, while steps run; one at a time, and a place stays free for a newcomer."""
        tickets = self._tickets.values()
        if (
            not self._device.has_second
            or any(each.is_beside and each.edit is None for each in tickets)
            or sum(each.is_started for each in tickets) >= STARTED_EDITS_MAX - 1
        ):
            return
        waiting = {number for number, each in self._tickets.items() if not each.is_started}
        if waiting:
            number = self._scheduler.next(time.monotonic(), among=waiting)
            assert isinstance(number, int)
            self._beside(self._tickets[number], self._prepare)

    def _step(self, group: list[Ticket]) -> None:
        """One step of one edit, or of several that share a pass."""
        edits = [ticket.edit for ticket in group if ticket.edit is not None]
        # An edit's first latents are the side stream's, which gives their memory to the next edit as soon as nobody
        # holds them: that must not be before this step, which is only being queued, has read them.
        held = [edit.latents_1ne for edit in edits]
        started = time.perf_counter()
        try:
            is_measured = self._pass(edits)
            self._device.synchronize()
            held.clear()
        except Exception as error:
            is_short = is_out_of_memory(error)
            with self._changed:
                if len(group) > 1:
                    # Nobody knows whose fault it was; nothing has advanced yet, so each tries again among fewer.
                    self._batching.forbid(edits[0].plan.shape, len(group))
                elif is_short and self._holding.can_fall:
                    self._short_of_memory.append(lambda: None)
                else:
                    self._fail(group[0], error)
                if is_short and not self._short_of_memory:
                    self._device.between.append(lambda: free_memory(self.model.transformer.device))
            # The caller keeps the error, which keeps this frame.
            held.clear()
            edits.clear()
            traceback.clear_frames(error.__traceback__)
            self._device.need(error)
            return
        took_s = (time.perf_counter() - started) / len(group)
        news: list[tuple[Ticket, Progress]] = []
        with self._changed:
            now_s = time.monotonic()
            for ticket, edit in zip(group, edits, strict=True):
                ticket.took("denoise", took_s)
                remaining_s = self._outlook.work_s(edit.plan, step=edit.step)
                self._scheduler.served(ticket.number, took_s=took_s, remaining_s=remaining_s, now_s=now_s)
            told = [ticket.number for ticket in group if ticket.on_progress]
            estimates = self._scheduler.estimates(now_s, of=told) if told else {}
            for ticket, edit in zip(group, edits, strict=True):
                if ticket.on_progress:
                    finish_s = estimates[ticket.number].finish_s
                    news.append((ticket, Progress(step=edit.step, steps=edit.request.steps, remaining_s=finish_s)))
                if edit.is_denoised:
                    self._beside(ticket, self._finish)
        for ticket, progress in news:
            ticket.tell(progress)
            self._preview(ticket)
        if is_measured:
            with self._changed:
                # With all that is done around the pass: whoever waits for the next one waits for that too.
                self.costs.learn("step", edits[0].plan.tokens, (time.perf_counter() - started) / len(group))

    def _pass(self, edits: list[stages.Edit]) -> bool:
        """Advance the edits by a step. Returns whether its time says what such a pass costs."""
        if not edits[0].runs_next:
            stages.advance(edits, [None])
            return False
        shape = edits[0].plan.shape
        measuring = len(edits) > self._batching.limit(shape)
        if measuring:
            found = self._batching.learn(
                shape,
                tokens=edits[0].plan.tokens,
                alone=lambda: [stages.velocities(self.model, [edit])[0] for edit in edits],
                together=lambda: stages.velocities(self.model, edits),
                clock=self._device.clock,
            )
        else:
            found = stages.velocities(self.model, edits)
        stages.advance(edits, found)
        return not measuring

    def _prepare(self, ticket: Ticket) -> None:
        started = time.perf_counter()
        request = replace(ticket.request, photo=unpark(ticket.parked))
        edit = stages.prepare(self.model, request, ticket.plan)
        edit.request = ticket.request
        self._device.synchronize()  # so far it was only queued
        took_s = time.perf_counter() - started
        ticket.took("prepare", took_s)
        with self._changed:
            self.costs.learn("prepare", ticket.plan.tokens, took_s)
            ticket.edit = edit
            ticket.parked = None
            self._scheduler.served(
                ticket.number,
                took_s=took_s,
                remaining_s=self._outlook.work_s(ticket.plan, step=0),
                now_s=time.monotonic(),
            )
        ticket.tell(Progress(step=0, steps=ticket.request.steps, remaining_s=None))

    def _finish(self, ticket: Ticket) -> None:
        edit = ticket.edit
        assert edit is not None, "only denoised edits are finished"
        started = time.perf_counter()
        picture = to_picture(stages.finish(self.model, edit))
        took_s = time.perf_counter() - started
        ticket.took("decode", took_s)
        with self._changed:
            self.costs.learn("decode", edit.plan.output_tokens, took_s)
            self._scheduler.done(ticket.number, now_s=time.monotonic())
            del self._tickets[ticket.number]
            # The caller may hold on to the ticket; the device's memory is not his.
            ticket.edit = None
            self._changed.notify_all()
        result = EditResult(
            picture=picture,
            seed=edit.request.seed,
            steps=edit.step,
            passes=edit.passes,
            acceleration=edit.request.acceleration,
            inference_s=sum(ticket.timings.values()),
            timings=dict(ticket.timings),
        )
        ticket.settle(lambda future: future.set_result(result))

    def _preview(self, ticket: Ticket) -> None:
        edit, every = ticket.edit, ticket.request.preview_every
        if every is None or edit is None or edit.step % every or edit.is_denoised:
            return
        try:
            if self._previewer is None:
                self._previewer = Previewer(self.model.autoencoder)
            picture = self._previewer.draw(stages.predicted_clean(edit), edit.plan.size)
        except Exception as error:
            # A preview is the least of what an edit is for: this one is left out.
            _log.warning("a preview was left out: %s: %s", type(error).__name__, error)
            return
        ticket.tell(Preview(step=edit.step, steps=edit.request.steps, picture=picture))

    def _beside(self, ticket: Ticket, work: Callable[[Ticket], None]) -> None:
        """Run `work` on the second thread, or between steps; until it is done no step of the edit runs."""
        ticket.is_beside = True

        def run() -> None:
            try:
                with self._device.on_stream():
                    work(ticket)
            except Exception as error:
                with self._changed:
                    if is_out_of_memory(error) and self._holding.can_fall:
                        self._short_of_memory.append(lambda: self._beside(ticket, work))
                        self._changed.notify_all()
                        return
                    self._fail(ticket, error)
                    fault = error
                    self._device.between.append(lambda: self._device.need(fault))
                traceback.clear_frames(error.__traceback__)
            with self._changed:
                ticket.is_beside = False
                self._changed.notify_all()

        self._device.beside(run)

    def _fall(self) -> None:
        """Memory ran out: hold the model as the next plan says, and do again what failed."""
        with self._changed:
            again, self._short_of_memory = self._short_of_memory, []
        self._device.synchronize()
        # Text encoders are moved by the thread that encodes, so that nothing is encoding meanwhile.
        self._holding.fall(beside=self._device.while_second_waits)
        if self._holding.dtype != self.card.dtype:
            self._save_costs()
            self.card = replace(self.card, dtype=self._holding.dtype)
            self._know_costs()
            # Which passes may be shared was measured on other kernels: neither bits nor times need be as they were.
            self._batching = Batching(mode=self._batching.mode)
        with self._changed:
            for retry in again:
                retry()

    def _drop_cancelled(self) -> None:
        for ticket in [t for t in self._tickets.values() if t.is_cancelled and not t.is_beside]:
            self._fail(ticket, EditCancelled())

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if self._tickets.pop(ticket.number, None):
            self._scheduler.remove(ticket.number)
        ticket.edit = ticket.parked = None
        ticket.settle(lambda future: future.set_exception(error))
        self._changed.notify_all()

    def _know_costs(self) -> None:
        """What was measured before, on this device and with the model as it is held now."""
        file = self._costs_file
        costs = CostModel.load(file) if file else CostModel()
        costs.token_s = 2 * self.card.parameters / _GUESSED_FLOPS[self.model.transformer.device.type]
        self._outlook.costs = costs

    def _save_costs(self) -> None:
        file = self._costs_file
        if file:
            with self._changed:
                costs = deepcopy(self.costs)
            with best_effort():
                costs.save(file)

    @property
    def _costs_file(self) -> Path | None:
        return self._costs_path and costs_file_of(self._costs_path, self.card)
