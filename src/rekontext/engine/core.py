"""The thread that owns the device, and the edits that are under way on it.

It runs transformer steps, one at a time, of whichever edit the scheduler names (and of others of its shape, where a
shared pass was measured to pay). Everything around the steps (encoding, decoding) runs beside them: see `device.py`.
What callers see of it is in `engine.py`.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
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

from rekontext.contract import (
    BatchMode,
    DeadlineUnmeetable,
    EditRequest,
    EditResult,
    Estimate,
    LoRARefused,
    ModelCard,
    OnProgress,
    Preview,
    Progress,
)
from rekontext.engine import edit as stages
from rekontext.engine.autoencoder import NotFinite, to_picture
from rekontext.engine.batching import Batching
from rekontext.engine.checkpoint import OpenedModel
from rekontext.engine.costs import CostModel
from rekontext.engine.device import Device
from rekontext.engine.edit import Model
from rekontext.engine.hotswap import NONE, Hotswap
from rekontext.engine.memory import STARTED_EDITS_MAX, MemoryPlan
from rekontext.engine.outlook import Outlook
from rekontext.engine.placement import Holding, free_memory, is_out_of_memory
from rekontext.engine.plan import Plan
from rekontext.engine.preview import Previewer
from rekontext.engine.scheduler import Policy, Scheduler
from rekontext.engine.ticket import EditCancelled, Ticket, park, unpark
from rekontext.engine.tuning import best_effort, costs_file_of

_GUESSED_FLOPS: Final = {"cpu": 1e11, "cuda": 7e14}
"""Until the first step was measured. On an H200 it is 7.7e14 in bfloat16, counted as `load_costs` does."""
_SWAPPING_MAX: Final = 0.1
"""Part of the device's time that merging LoRAs may take while edits wait that need no other ones."""
_KEPT_S_MAX: Final = 20.0
"""For how long that may keep others waiting: where merging takes seconds, it takes a larger part."""
_log = logging.getLogger(__name__)


_open: Final[WeakSet[EngineCore]] = WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread that computes while the interpreter ends takes the process down with an abort."""
    for core in list(_open):
        core.close()


class EngineBroken(RuntimeError):
    """The engine can't go on: its device has failed. Only a new process helps."""


class EngineCore:
    """An opened model at work, from its making until `close`.

    Attributes:
        model: what edits are made with.
        device: its thread is this one's.
        card: what the model is, and how it is held now.
        broken: gets the fault, as an exception, once no edit can be run any more.
        batching: which edits share a pass.
    """

    def __init__(
        self,
        parts: OpenedModel,
        *,
        is_mini: bool,
        policy: Policy,
        weight: Callable[[str], float],
        costs_file: Path | None,
        batch: BatchMode,
        plans: Sequence[MemoryPlan],
        lora_folder: Path | None = None,
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
        self._hotswap = Hotswap(parts, lora_folder)
        self._kept_until_s = 0.0
        self.broken: Future[None] = Future()
        self._scheduler = Scheduler(policy=policy, weight=weight)
        self._outlook = Outlook(canvas=parts.canvas, text_tokens=self.model.prompts.tokens, scheduler=self._scheduler)
        self._costs_path = costs_file
        self.load_costs()
        self.batching = Batching(mode=batch)
        self._tickets: dict[int, Ticket] = {}
        self._submitted = 0
        self._previewer: Previewer | None = None
        self._changed = Condition()
        self._is_closing = False
        self._short_of_memory: list[Callable[[], None]] = []
        self.device = Device(transformer.device)
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        _open.add(self)

    @property
    def costs(self) -> CostModel:
        """What the device takes for what."""
        return self._outlook.costs

    def submit(self, request: EditRequest, plan: Plan, *, on_progress: OnProgress | None) -> Ticket:
        """Queue an edit, as `Engine.submit`."""
        if self._process != os.getpid():  # its thread is there, not here: this edit would wait for ever
            raise RuntimeError("this engine was opened before a fork, by the parent: open one in this process")
        adaptation = self._hotswap.find(request.loras, request.lora_files)
        parked = park(request, plan, waits=bool(self._tickets))
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
                request=replace(request, photo=None, mask=None),
                plan=plan,
                adaptation=adaptation,
                parked=parked,
                on_progress=on_progress,
                changed=self._changed,
            )
            self._tickets[number] = ticket
            self._scheduler.add(number, account=request.account, work_s=work_s, now_s=now_s, priority=request.priority)
            self._changed.notify_all()
        return ticket

    def estimate(self, request: EditRequest | Ticket) -> Estimate:
        """As `Engine.estimate`."""
        with self._changed:
            now_s = time.monotonic()
            if isinstance(request, Ticket):
                return self._outlook.estimate_of(request.number, now_s=now_s)
            return self._outlook.estimate(request, now_s=now_s)

    def outlook(self) -> Outlook:
        """As `Engine.outlook`."""
        with self._changed:
            copied = pickle.dumps(self._outlook)
        return cast(Outlook, pickle.loads(copied))  # noqa: S301 - made here

    def forget(self) -> None:
        """Empty the caches of prompts and references."""
        self.model.prompts.forget()
        self.model.autoencoder.forget()

    def close(self) -> None:
        """As `Engine.close`."""
        if self._process != os.getpid():
            return
        if current_thread() is self._thread or self.device.is_second:
            raise RuntimeError("close was called from a thread of the engine's own, which it waits for")
        with self._changed:
            self._is_closing = True
            for ticket in self._tickets.values():
                ticket.is_cancelled = True
            self._changed.notify_all()
        self._thread.join()
        self.device.close()
        self.save_costs()
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
                self._give_way()
            while self.device.between:
                self.device.between.popleft()()
            with self._changed:
                self._drop_cancelled()
                ticket = self._next_step()
                while ticket is None and not self._short_of_memory and not self.device.between:
                    if self._is_closing and not self._tickets:
                        return
                    self._changed.wait()
                    self._drop_cancelled()
                    ticket = self._next_step()
                # What waits between steps may turn out to be shorter than the edit whose turn it would be.
                if ticket is None or self.device.between:
                    continue
                group = self._group(ticket) if self._is_merged(ticket) else []
            if group:
                self._step(group)
            else:
                self._swap(ticket)

    def _group(self, ticket: Ticket) -> list[Ticket]:
        """The edit whose turn it is, and those that share its pass."""
        assert ticket.edit is not None, "only prepared edits are stepped"
        shape, tokens = ticket.plan.shape, ticket.plan.tokens
        if self.batching.mode == "off" or not ticket.edit.runs_next or ticket.plan.pictures > 1:
            return [ticket]
        mates = {
            other.number
            for other in self._tickets.values()
            if other.plan.shape == shape
            and other.edit is not None
            and not other.is_beside
            and other.edit.runs_next
            and self._is_merged(other)
        }
        size = self.batching.wanted(shape, len(mates), tokens=tokens) or self.batching.shared(shape, len(mates))
        order = self._scheduler.order(time.monotonic(), among=mates - {ticket.number})
        return [ticket, *(self._tickets[number] for number in order[: size - 1] if isinstance(number, int))]

    def _next_step(self) -> Ticket | None:
        """The edit whose step is next, or for which other LoRAs must be merged first. On the way, edits that come
        before it but aren't prepared are sent to be."""
        waiting = {number for number, ticket in self._tickets.items() if not ticket.is_beside}
        served = {number for number in waiting if self._is_merged(self._tickets[number])}
        if self._keeps_weights(served):
            # If there is no place for any of them, another of theirs has one and is being finished: there was a place
            # for whom weights were changed, and while they are kept nobody else takes it.
            waiting = served
        while waiting:
            number = self._scheduler.next(time.monotonic(), among=waiting)
            assert isinstance(number, int)
            ticket = self._tickets[number]
            if ticket.edit is not None or self._has_place:
                if not self._is_merged(ticket):
                    return ticket
                if ticket.edit is not None:
                    self._prepare_ahead()
                    return ticket
                self._beside(ticket, self._prepare)
                waiting = {n for n in waiting if self._is_merged(self._tickets[n])}
            # One newcomer at a time: by when it is prepared another may have come that is shorter.
            waiting = {n for n in waiting if self._tickets[n].edit is not None}
        return None

    @property
    def _has_place(self) -> bool:
        return sum(ticket.is_started for ticket in self._tickets.values()) < STARTED_EDITS_MAX

    def _is_merged(self, ticket: Ticket) -> bool:
        """Whether exactly what the edit asks for is merged into the weights."""
        return self._hotswap.merged == ticket.adaptation

    def _keeps_weights(self, served: set[int]) -> bool:
        """Whether it is the turn of those alone that are served as the weights are. While these are read by an edit
        that is being prepared they can't be changed; and as long as it can be helped, merging takes no more than
        `_SWAPPING_MAX` of the device's time."""
        is_read = any(ticket.is_preparing for ticket in self._tickets.values())
        return is_read or (bool(served) and time.monotonic() < self._kept_until_s)

    def _swap(self, ticket: Ticket) -> None:
        """Merge what this edit asks for, and nothing else. Nothing is being prepared."""
        started = time.perf_counter()
        try:
            is_other_text = self._hotswap.merge(ticket.adaptation)
            self.device.synchronize()
        except Exception as error:
            is_short, is_brought = is_out_of_memory(error), bool(ticket.adaptation.brought)
            if not is_short and not isinstance(error, LoRARefused):
                raise  # what weights there are now nobody knows
            with self._changed:
                self._swapped(ticket, time.perf_counter() - started)
                # A caller's file takes no precision away from everybody.
                if is_short and (self._hotswap.has_copies if is_brought else self._can_give_way):
                    self._short_of_memory.append(lambda: None)
                elif is_short and is_brought:
                    self._fail(ticket, LoRARefused(f"there is no memory to merge the LoRA {ticket.adaptation.name}"))
                else:
                    self._fail(ticket, error)
            traceback.clear_frames(error.__traceback__)
            return
        if is_other_text:
            self.model.prompts.forget()
        took_s = time.perf_counter() - started
        kept_s = min(took_s * (1 - _SWAPPING_MAX) / _SWAPPING_MAX, _KEPT_S_MAX)
        self._kept_until_s = time.monotonic() + kept_s
        with self._changed:
            self.costs.learn("swap", 1, took_s)
            self._outlook.merged = ticket.plan.loras
            self._swapped(ticket, took_s)

    def _swapped(self, ticket: Ticket, took_s: float) -> None:
        """Have an edit's account pay for the device's time that merging took; whoever asks for no LoRAs isn't at fault
        that others did."""
        if ticket.plan.loras:
            ticket.took("swap", took_s)
            remaining_s = self._outlook.work_s(ticket.plan, step=None if ticket.edit is None else ticket.edit.step)
            now_s = time.monotonic()
            self._scheduler.served(ticket.number, took_s=took_s, remaining_s=remaining_s, now_s=now_s)

    def _prepare_ahead(self) -> None:
        """On a GPU: prepare who comes after, while steps run; one at a time, and a place stays free for a newcomer."""
        tickets = self._tickets.values()
        if (
            not self.device.has_second
            or any(each.is_preparing for each in tickets)
            or sum(each.is_started for each in tickets) >= STARTED_EDITS_MAX - 1
        ):
            return
        waiting = {number for number, each in self._tickets.items() if not each.is_started and self._is_merged(each)}
        if waiting:
            number = self._scheduler.next(time.monotonic(), among=waiting)
            assert isinstance(number, int)
            self._beside(self._tickets[number], self._prepare)

    def _step(self, group: list[Ticket]) -> None:
        """One step of one edit, or of several that share a pass; of several pictures one's part of it."""
        edits = [ticket.edit for ticket in group if ticket.edit is not None]
        # An edit's first latents are the side stream's, which gives their memory to the next edit as soon as nobody
        # holds them: that must not be before this step, which is only being queued, has read them.
        held = [edit.latents_pne for edit in edits]
        started = time.perf_counter()
        try:
            is_measured = self._pass(edits)
            self.device.synchronize()
            held.clear()
        except Exception as error:
            is_short = is_out_of_memory(error)
            with self._changed:
                if is_short and self._hotswap.has_copies:
                    self._short_of_memory.append(lambda: None)
                elif len(group) > 1:
                    # Nobody knows whose fault it was; nothing has advanced yet, so each tries again among fewer.
                    self.batching.forbid(edits[0].plan.shape, len(group))
                elif is_short and self._can_give_way:
                    self._short_of_memory.append(lambda: None)
                else:
                    self._fail(group[0], error)
                if is_short and not self._short_of_memory:
                    self.device.between.append(lambda: free_memory(self.model.transformer.device))
            # The caller keeps the error, which keeps this frame.
            held.clear()
            edits.clear()
            traceback.clear_frames(error.__traceback__)
            self.device.need(error)
            return
        took_s = (time.perf_counter() - started) / len(group)
        news: list[tuple[Ticket, Progress]] = []
        with self._changed:
            now_s = time.monotonic()
            for ticket, edit in zip(group, edits, strict=True):
                ticket.took("denoise", took_s)
                remaining_s = self._outlook.work_s(edit.plan, step=edit.step, ahead=len(edit.ahead))
                self._scheduler.served(ticket.number, took_s=took_s, remaining_s=remaining_s, now_s=now_s)
            told = [ticket.number for ticket in group if ticket.on_progress] if not edits[0].ahead else []
            estimates = self._scheduler.estimates(now_s, of=told) if told else {}
            for ticket, edit in zip(group, edits, strict=True):
                if ticket.number in told:
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
        if edits[0].plan.pictures > 1:
            stages.advance_a_picture(self.model, edits[0])
            return True
        shape = edits[0].plan.shape
        measuring = len(edits) > self.batching.limit(shape)
        if measuring:
            found = self.batching.learn(
                shape,
                tokens=edits[0].plan.tokens,
                alone=lambda: [stages.velocities(self.model, [edit])[0] for edit in edits],
                together=lambda: stages.velocities(self.model, edits),
                clock=self.device.clock,
            )
        else:
            found = stages.velocities(self.model, edits)
        stages.advance(edits, found)
        return not measuring

    def _prepare(self, ticket: Ticket) -> None:
        started = time.perf_counter()
        assert ticket.parked is not None, "an edit is prepared once"
        edit = stages.prepare(self.model, unpark(ticket.request, ticket.parked), ticket.plan)
        edit.request = ticket.request
        self.device.synchronize()  # so far it was only queued
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
        try:
            first, *others = (to_picture(stages.finish(self.model, edit, i)) for i in range(edit.plan.pictures))
        except NotFinite as error:
            if not ticket.adaptation.key:
                raise
            raise LoRARefused(
                f"with {ticket.adaptation.name} merged, the model's pixels are NaN or infinite: it is damaged, or "
                "changes far too much"
            ) from error
        took_s = time.perf_counter() - started
        ticket.took("decode", took_s)
        with self._changed:
            self.costs.learn("decode", edit.plan.output_tokens, took_s / edit.plan.pictures)
            self._scheduler.done(ticket.number, now_s=time.monotonic())
            del self._tickets[ticket.number]
            # The caller may hold on to the ticket; the device's memory is not his, nor what was read for it.
            ticket.edit, ticket.adaptation = None, NONE
            self._changed.notify_all()
        result = EditResult(
            picture=first,
            others=tuple(others),
            seed=edit.request.seed,
            steps=edit.step,
            passes=edit.passes,
            acceleration=edit.request.acceleration,
            loras=edit.request.loras,
            prompt_tokens=None if edit.reads_whole_prompt else self.model.prompts.tokens,
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
                with self.device.on_stream():
                    work(ticket)
            except Exception as error:
                with self._changed:
                    if is_out_of_memory(error) and self._can_give_way:
                        self._short_of_memory.append(lambda: self._beside(ticket, work))
                        self._changed.notify_all()
                        return
                    self._fail(ticket, error)
                    fault = error
                    self.device.between.append(lambda: self.device.need(fault))
                traceback.clear_frames(error.__traceback__)
            with self._changed:
                ticket.is_beside = False
                self._changed.notify_all()

        self.device.beside(run)

    @property
    def _can_give_way(self) -> bool:
        """Whether there is anything left to do where memory runs out."""
        return self._hotswap.has_copies or self._holding.can_fall

    def _give_way(self) -> None:
        """Memory ran out: give back what can be done without, else hold the model as the next plan says; and do again
        what failed."""
        with self._changed:
            again, self._short_of_memory = self._short_of_memory, []
        self.device.synchronize()
        if self._hotswap.has_copies:
            self._hotswap.release()
            free_memory(self.model.transformer.device)
        else:
            self._fall()
        with self._changed:
            for retry in again:
                retry()

    def _fall(self) -> None:
        # Text encoders are moved by the thread that encodes, so that nothing is encoding meanwhile.
        self._holding.fall(beside=self.device.while_second_waits)
        if self._holding.dtype != self.card.dtype:
            self.save_costs()
            self.card = replace(self.card, dtype=self._holding.dtype)
            self.load_costs()
            # Which passes may be shared was measured on other kernels: neither bits nor times need be as they were.
            self.batching = Batching(mode=self.batching.mode)

    def _drop_cancelled(self) -> None:
        for ticket in [t for t in self._tickets.values() if t.is_cancelled and not t.is_beside]:
            self._fail(ticket, EditCancelled())

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if self._tickets.pop(ticket.number, None):
            self._scheduler.remove(ticket.number)
        ticket.edit = ticket.parked = None
        ticket.adaptation = NONE
        ticket.settle(lambda future: future.set_exception(error))
        self._changed.notify_all()

    def load_costs(self) -> None:
        """Take for known what was measured before, on this device and with the model as it is held now."""
        file = self._costs_file
        costs = CostModel.load(file) if file else CostModel()
        costs.token_s = 2 * self.card.parameters / _GUESSED_FLOPS[self.model.transformer.device.type]
        self._outlook.costs = costs

    def save_costs(self) -> None:
        """Keep what was measured, for the next start; where that can't be written, the log says so."""
        file = self._costs_file
        if file:
            with self._changed:
                costs = deepcopy(self.costs)
            with best_effort():
                costs.save(file)

    @property
    def _costs_file(self) -> Path | None:
        return self._costs_path and costs_file_of(self._costs_path, self.card)
