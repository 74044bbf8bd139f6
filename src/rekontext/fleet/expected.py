"""The edits of one device: those that its process has, those that wait for it, and when each is expected to be done.

The process tells of its outlook now and then; until it has told of an edit, we reckon with that one ourselves.
An edit that is suspect, since an earlier attempt at it failed, is in the process alone: what kills that takes along
whoever is in it, and again with each new try. All go in in the order in which they came, so it gets its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Final

from rekontext.contract import EditRequest, EditResult, EngineFault, Estimate, OnProgress

if TYPE_CHECKING:
    from rekontext.engine.outlook import Outlook

_WORTH_MOVING: Final = 0.1
"""An edit that waits for less than this share of its own length stays: elsewhere it is prepared anew."""


@dataclass(kw_only=True, eq=False)
class ExpectedEdit:
    """An edit that the process has, or that waits for it.

    Attributes:
        number: what it is called between us and the process; those that come later have greater ones.
        request: with its photo's size only.
        work_s: device seconds that it was expected to need.
        step_s: the same of one step.
        ended: its end, whatever it is.
        key: what the outlook calls it.
        is_handed_over: whether it was sent.
        is_taken_in: whether an outlook of the process's own had it.
        is_stepped: whether the device has run a step of it.
    """

    number: int
    request: EditRequest
    on_progress: OnProgress | None
    work_s: float
    step_s: float
    ended: asyncio.Future[EditResult]
    is_handed_over: bool = False
    is_taken_in: bool = False
    is_stepped: bool = False

    def __post_init__(self) -> None:
        self.key: Hashable = self

    @property
    def may_move(self) -> bool:
        """Whether another device may have it: not what was begun, nor a suspect one, which may kill that process too.

        Of one that was sent and isn't taken in yet it isn't known how far it is.
        """
        is_known = self.is_taken_in or not self.is_handed_over
        return is_known and not self.is_stepped and not self.request.is_suspect and not self.ended.done()


class ExpectedEdits:
    """All edits of one device, in the order in which they came.

    Attributes:
        outlook: what is known of them; None before any device was ready.
    """

    def __init__(self) -> None:
        self.outlook: Outlook | None = None
        self._edits: dict[int, ExpectedEdit] = {}
        self._added = 0
        self._barred_from: float = inf

    def __len__(self) -> int:
        return len(self._edits)

    def __iter__(self) -> Iterator[ExpectedEdit]:
        return iter(self._edits.values())

    @property
    def load_s(self) -> float:
        """Device seconds that they were expected to need."""
        return sum(edit.work_s for edit in self)

    def get(self, number: int) -> ExpectedEdit | None:
        """The edit of that number, if it is still here."""
        return self._edits.get(number)

    def find(self, id: str) -> ExpectedEdit | None:
        """The edit of that request, if it is here."""
        return next((edit for edit in self if edit.request.id == id), None) if id else None

    def admits(self, edit: ExpectedEdit) -> bool:
        """Whether the edit may be in the process, beside those that came before it and are still here."""
        return edit.number < self._barred_from

    def estimate(self, request: EditRequest) -> Estimate:
        """When this edit will be done, or would be if it came now, where the process is ready.

        Raises:
            EngineFault: no device was ready yet.
        """
        if self.outlook is None:
            raise EngineFault("the model isn't loaded")
        edit = self.find(request.id)
        if edit is not None:
            return self._estimates_of([edit])[edit]
        if any(request.is_suspect or each.request.is_suspect for each in self):
            wait_s = self._admitted_end_s() + sum(each.work_s for each in self if not self.admits(each))
            work_s = self.outlook.work_s(self.outlook.plan(request))
            return Estimate(position=len(self), wait_s=wait_s, finish_s=wait_s + work_s)
        return self.outlook.estimate(request, now_s=time.monotonic())

    def add(self, request: EditRequest, on_progress: OnProgress | None) -> ExpectedEdit:
        """An edit came; its caller waits for its `ended`."""
        assert self.outlook is not None, "no device was ready yet"
        plan = self.outlook.plan(request)
        photo_size = request.photo.size if request.photo else request.photo_size
        edit = ExpectedEdit(
            number=self._added,
            request=replace(request, photo=None, photo_size=photo_size, mask=None),
            on_progress=on_progress,
            work_s=self.outlook.work_s(plan),
            step_s=self.outlook.costs.predict("step", plan.tokens) * plan.pictures,
            ended=asyncio.get_running_loop().create_future(),
        )
        self._added += 1
        self._edits[edit.number] = edit
        self._reckon()
        return edit

    def remove(self, edit: ExpectedEdit) -> None:
        """Nobody waits for it any more."""
        del self._edits[edit.number]
        if self.outlook is not None and edit.key in self.outlook.scheduler:
            self.outlook.scheduler.remove(edit.key)
        self._reckon()

    def take_in(self, outlook: Outlook, keys: Mapping[int, int]) -> None:
        """The process has told its outlook, and what it calls there the edits that it has taken in, by number."""
        self.outlook = outlook
        known = {number: key for number, key in keys.items() if number in self._edits}
        for stranger in set(outlook.scheduler).difference(known.values()):  # cancelled, or not known by number yet
            outlook.scheduler.remove(stranger)
        for number, key in known.items():
            self._edits[number].key, self._edits[number].is_taken_in = key, True
        self._reckon()

    def give_up(self, why: str) -> None:
        """The process is gone, with the edits that it had; those that wait for the next one still do."""
        if self.outlook is not None:
            self.outlook = self.outlook.emptied()
        for edit in self:
            if edit.is_handed_over and not edit.ended.done():
                edit.ended.set_exception(EngineFault(why))
        self._reckon()

    def movable(self) -> list[tuple[ExpectedEdit, Estimate]]:
        """The edits that another device may have, as they are served here, and when, where the process is ready."""
        found = self._estimates_of([edit for edit in self if edit.may_move])
        return sorted(found.items(), key=lambda each: each[1].position)

    def next_to_move(self, start_s: float) -> ExpectedEdit | None:
        """The edit that is served next of those that would wait for long.

        Args:
            start_s: until the process is ready.
        """
        for edit, found in self.movable():
            wait_s = found.wait_s if edit.is_handed_over else start_s + found.wait_s
            if wait_s > _WORTH_MOVING * edit.work_s:
                return edit
        return None

    def _estimates_of(self, edits: Collection[ExpectedEdit]) -> dict[ExpectedEdit, Estimate]:
        """When they will be done: all that are admitted before those that aren't, and these as they came.

        The scheduler goes through all of its edits to tell of one, so it is asked once for all.
        """
        if not edits:
            return {}
        assert self.outlook is not None, "there was none when they came"
        keys = {edit: edit.key for edit in edits if self.admits(edit)}
        found = self.outlook.estimates_of(keys.values(), now_s=time.monotonic())
        estimates = {edit: found[key] for edit, key in keys.items()}
        if len(estimates) < len(edits):
            asked, wait_s = set(edits), self._admitted_end_s()
            for position, edit in enumerate(self):
                if self.admits(edit):
                    continue
                if edit in asked:
                    estimates[edit] = Estimate(position=position, wait_s=wait_s, finish_s=wait_s + edit.work_s)
                wait_s += edit.work_s
        return estimates

    def _admitted_end_s(self) -> float:
        """Seconds until all that are admitted are done."""
        assert self.outlook is not None, "no device was ready yet"
        admitted = self.outlook.scheduler.estimates(time.monotonic()).values()
        return max((each.finish_s for each in admitted), default=0.0)

    def _first_barred(self) -> float:
        """The number of the first edit that isn't admitted: a suspect one behind others, or the first behind that."""
        is_suspect_there = False
        for position, edit in enumerate(self):
            is_suspect_there = is_suspect_there or edit.request.is_suspect
            if position and is_suspect_there:
                return edit.number
        return inf

    def _reckon(self) -> None:
        """Have in the outlook whoever is admitted and isn't known to the process yet."""
        self._barred_from = self._first_barred()
        if self.outlook is None:
            return
        for edit in self:
            is_reckoned_with = edit.is_taken_in or edit.key in self.outlook.scheduler
            if not is_reckoned_with and not edit.ended.done() and self.admits(edit):
                self.outlook.scheduler.add(
                    edit.key,
                    account=edit.request.account,
                    work_s=edit.work_s,
                    now_s=time.monotonic(),
                    priority=edit.request.priority,
                )
