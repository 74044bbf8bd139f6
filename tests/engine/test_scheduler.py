"""Whose step is next: the rules one by one, then what they are worth on a seeded load. All on a simulated clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekontext.engine.replay import Load, judge
from rekontext.engine.scheduler import Policy, Scheduler


def test_the_shortest_remaining_edit_is_next() -> None:
    scheduler = Scheduler()
    for id, work_s in (("long", 9.0), ("short", 2.0), ("middle", 5.0)):
        scheduler.add(id, account="a", work_s=work_s, now_s=0)
    assert scheduler.order(0) == ["short", "middle", "long"]
    scheduler.served("long", took_s=8, remaining_s=1, now_s=8)
    assert scheduler.next(8) == "long"


def test_fifo_runs_every_edit_to_its_end() -> None:
    scheduler = Scheduler(policy=Policy(kind="fifo"))
    scheduler.add("first", account="a", work_s=9, now_s=0)
    scheduler.add("second", account="a", work_s=1, now_s=0)
    assert scheduler.order(0) == ["first", "second"]


def test_an_overtaken_edit_ages_to_the_front() -> None:
    """However many short edits come, the long one waits at most `ageing` times its first-come-first-served latency."""
    scheduler = Scheduler(policy=Policy(ageing=2.0))
    scheduler.add("long", account="a", work_s=10, now_s=0)
    now_s, number = 0.0, 0
    while scheduler.next(now_s) != "long":
        scheduler.add(number, account="a", work_s=1, now_s=now_s)
        now_s += 1
        id = scheduler.next(now_s)
        assert isinstance(id, int), "the long edit's turn came inside the loop"
        scheduler.done(id, now_s=now_s)
        number += 1
    assert now_s + 10 <= 2 * 10 + 1


@pytest.mark.parametrize(("priority", "order"), [(0, ["b", "a"]), (1, ["b", "a"]), (2, ["a", "b"])])
def test_a_priority_level_halves_an_edit_in_the_order(priority: int, order: list[str]) -> None:
    scheduler = Scheduler()
    scheduler.add("a", account="x", work_s=3, now_s=0, priority=priority)
    scheduler.add("b", account="x", work_s=1, now_s=0)
    assert scheduler.order(0) == order


def test_an_account_that_took_more_than_its_share_goes_behind() -> None:
    """And among its own edits the earliest comes first, so that none of them starves."""
    scheduler = Scheduler()
    scheduler.add("greedy long", account="greedy", work_s=450, now_s=0)
    scheduler.served("greedy long", took_s=400, remaining_s=50, now_s=400)
    scheduler.add("greedy short", account="greedy", work_s=1, now_s=400)
    assert scheduler.order(400) == ["greedy short", "greedy long"], "alone there is nobody to be fair to"
    scheduler.add("other", account="other", work_s=99, now_s=400)
    assert scheduler.order(400) == ["other", "greedy long", "greedy short"]


def test_past_use_is_forgotten() -> None:
    scheduler = Scheduler()
    scheduler.add("before", account="greedy", work_s=400, now_s=0)
    scheduler.served("before", took_s=400, remaining_s=0, now_s=400)
    scheduler.done("before", now_s=400)
    for now_s, order in ((400, ["other", "greedy"]), (4000, ["greedy", "other"])):
        scheduler.add("greedy", account="greedy", work_s=1, now_s=now_s)
        scheduler.add("other", account="other", work_s=2, now_s=now_s)
        assert scheduler.order(now_s) == order
        scheduler.remove("greedy")
        scheduler.remove("other")


def test_a_heavier_account_may_take_more() -> None:
    scheduler = Scheduler(weight=lambda account: 10.0 if account == "gold" else 1.0)
    scheduler.add("gold", account="gold", work_s=1, now_s=0)
    scheduler.served("gold", took_s=400, remaining_s=1, now_s=400)
    scheduler.add("other", account="other", work_s=99, now_s=400)
    assert scheduler.order(400) == ["gold", "other"]


def test_estimates_are_exact_when_nobody_else_comes() -> None:
    scheduler = Scheduler()
    for id, work_s in (("long", 9.0), ("short", 2.0)):
        scheduler.add(id, account="a", work_s=work_s, now_s=0)
    estimates = scheduler.estimates(0)
    assert (estimates["short"].position, estimates["short"].wait_s, estimates["short"].finish_s) == (0, 0, 2)
    assert (estimates["long"].position, estimates["long"].wait_s, estimates["long"].finish_s) == (1, 2, 11)
    newcomer = scheduler.estimate(account="b", work_s=5, now_s=0)
    assert (newcomer.position, newcomer.wait_s, newcomer.finish_s) == (1, 2, 7)
    assert len(scheduler) == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 100), st.integers(-2, 2)), max_size=30))
def test_every_edit_is_in_the_order_once_and_the_first_is_next(edits: list[tuple[str, float, int]]) -> None:
    scheduler = Scheduler()
    for number, (account, work_s, priority) in enumerate(edits):
        scheduler.add(number, account=account, work_s=work_s, now_s=number, priority=priority)
    now_s = float(len(edits))
    order = scheduler.order(now_s)
    assert sorted(order, key=str) == sorted(range(len(edits)), key=str)
    assert scheduler.next(now_s) == (order[0] if order else None)
    estimates = scheduler.estimates(now_s)
    assert [estimates[id].position for id in order] == list(range(len(edits)))


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_load_is_served_much_sooner_than_first_come_first_served(seed: int) -> None:
    """With a greedy account around: most wait less, nobody waits far longer, and the others don't notice it."""
    verdict = judge(Load(seed=seed, edits=800), Policy())
    assert verdict.mean_latency_vs_fifo <= 0.65
    assert verdict.p99_vs_fifo <= 1.5
    assert verdict.ordinary_mean_vs_fifo <= 0.2
    assert verdict.ordinary_mean_vs_alone <= 1.2
    assert verdict.eta_error_running < 0.05
    assert verdict.eta_error_queued < 0.3
    assert verdict.eta_error_queued_ordinary < 0.1


def test_a_replay_is_a_function_of_its_seed() -> None:
    load = Load(seed=7, edits=100)
    assert judge(load, Policy()) == judge(load, Policy())
    assert judge(load, Policy()) != judge(Load(seed=8, edits=100), Policy())
