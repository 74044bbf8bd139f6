"""What is known beforehand of the edits of one device: what each comes to, how long the device takes, whose turn it is.

A value without tensors or threads. It can be copied to another process, which then tells when an edit would be done
without asking the one that has the device.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field, replace

from rekontext.contract import EditRequest, Estimate
from rekontext.engine.canvas import Canvas
from rekontext.engine.costs import CostModel
from rekontext.engine.plan import Plan, plan_of
from rekontext.engine.scheduler import Scheduler

_DONE = Estimate(position=0, wait_s=0.0, finish_s=0.0)


@dataclass(kw_only=True)
class Outlook:
    """The edits of one device, and when each will be done.

    Attributes:
        text_tokens: tokens of every prompt.
        merged: the LoRAs that are merged now; an edit that wants others has to wait until these are.
    """

    canvas: Canvas
    text_tokens: int
    costs: CostModel = field(default_factory=CostModel)
    scheduler: Scheduler = field(default_factory=Scheduler)
    merged: tuple[tuple[str, float], ...] = ()

    def plan(self, request: EditRequest) -> Plan:
        """Sizes and passes of an edit."""
        return plan_of(request, canvas=self.canvas, text_tokens=self.text_tokens)

    def work_s(self, plan: Plan, step: int | None = None, *, ahead: int = 0) -> float:
        """Predicted device seconds that a plan still needs.

        Args:
            step: the next one; None is before preparing.
            ahead: passes of it that are done, for the first of several pictures.
        """
        passes = plan.pictures * sum(plan.runs[step or 0 :]) - ahead
        work_s = passes * self.costs.predict("step", plan.tokens)
        work_s += plan.pictures * self.costs.predict("decode", plan.output_tokens)
        if step is None:
            work_s += self.costs.predict("prepare", plan.tokens)
            work_s += self.costs.predict("swap", 1) if plan.loras != self.merged else 0.0
        return work_s

    def estimate(self, request: EditRequest, *, now_s: float) -> Estimate:
        """When an edit would be done if it came now."""
        work_s = self.work_s(self.plan(request))
        return self.scheduler.estimate(account=request.account, work_s=work_s, now_s=now_s, priority=request.priority)

    def estimate_of(self, id: Hashable, *, now_s: float) -> Estimate:
        """When an edit that came in will be done; one that isn't there any more is."""
        return self.estimates_of([id], now_s=now_s)[id]

    def estimates_of(self, ids: Collection[Hashable], *, now_s: float) -> dict[Hashable, Estimate]:
        """The same of several, in one pass over all edits."""
        found = self.scheduler.estimates(now_s, of=frozenset(ids))
        return {id: found.get(id, _DONE) for id in ids}

    def emptied(self) -> Outlook:
        """The same device without its edits."""
        scheduler = Scheduler(policy=self.scheduler.policy, weight=self.scheduler.weight)
        return replace(self, scheduler=scheduler, merged=())
