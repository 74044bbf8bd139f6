"""Whose step is next: the rules one by one, then what they are worth on a seeded load. All on a simulated clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekontext.engine.replay import Load, judge, replay
from rekontext.engine.scheduler import Policy, Scheduler

EDITS = 400
"""Of a load on which an outcome is judged by its mean. What most of the slowest wait takes more of them to tell."""


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


@given(st.integers(1, 79), st.integers(0, 100), st.integers(-2, 2))
def test_an_edit_is_overtaken_only_by_those_that_come_soon_after_it(eighths: int, came_s: int, priority: int) -> None:
    """From its length / `ageing` on none goes before it any more, however short; until then only the shorter."""
    scheduler = Scheduler(policy=Policy(ageing=0.125))
    length, short_s = 10 * 2.0**-priority, eighths / 8
    scheduler.add("long", account="a", work_s=10, now_s=0, priority=priority)
    scheduler.add("short", account="a", work_s=short_s, now_s=came_s)
    assert (scheduler.next(came_s) == "short") == (came_s < (length - short_s) / 0.125)


def test_waiting_alone_changes_no_order() -> None:
    scheduler = Scheduler()
    for number, work_s in enumerate((9.0, 2.0, 5.0, 5.1)):
        scheduler.add(number, account="a", work_s=work_s, now_s=10 * number)
    assert scheduler.order(40) == scheduler.order(4000) == [1, 2, 3, 0]


@pytest.mark.parametrize(("priority", "order"), [(0, ["b", "a"]), (1, ["b", "a"]), (2, ["a", "b"])])
def test_a_priority_level_halves_an_edit_in_the_order(priority: int, order: list[str]) -> None:
    scheduler = Scheduler()
    scheduler.add("a", account="x", work_s=3, now_s=0, priority=priority)
    scheduler.add("b", account="x", work_s=1, now_s=0)
    assert scheduler.order(0) == order


def run(scheduler: Scheduler, account: str, *, edits: int, now_s: float = 0) -> float:
    """So many edits of ten seconds of one account, one after the other. Returns when the last is done."""
    for number in range(edits):
        id = (account, now_s, number)
        scheduler.add(id, account=account, work_s=10, now_s=now_s)
        now_s += 10
        scheduler.served(id, took_s=10, remaining_s=0, now_s=now_s)
        scheduler.done(id, now_s=now_s)
    return now_s


def test_an_account_that_took_more_than_its_share_goes_behind() -> None:
    """And its own edits are served more nearly in order, so that none of them starves."""
    scheduler = Scheduler()
    then_s = run(scheduler, "greedy", edits=100)
    scheduler.add("greedy long", account="greedy", work_s=12, now_s=then_s)
    now_s = then_s + 60
    scheduler.add("greedy short", account="greedy", work_s=1, now_s=now_s)
    assert scheduler.order(now_s) == ["greedy short", "greedy long"], "alone there is nobody to be fair to"
    scheduler.add("other", account="other", work_s=15, now_s=now_s)
    assert scheduler.order(now_s) == ["other", "greedy long", "greedy short"]


def test_of_many_that_an_account_brings_most_let_others_pass() -> None:
    scheduler = Scheduler()
    for number in range(30):
        scheduler.add(number, account="many", work_s=10, now_s=0)
    scheduler.add("one", account="one", work_s=20, now_s=0)
    assert scheduler.order(0) == ["one", *range(30)]


def test_a_crowd_changes_nothing_among_its_own() -> None:
    """Nor where each account has one edit: the shortest is first."""
    scheduler = Scheduler(policy=Policy(crowding=10))
    for number, work_s in enumerate((9.0, 2.0, 5.0, 2.5)):
        scheduler.add(number, account="many", work_s=work_s, now_s=0)
    assert scheduler.order(0) == [1, 3, 2, 0]
    alone = Scheduler(policy=Policy(crowding=10))
    for number, work_s in enumerate((9.0, 2.0, 5.0, 2.5)):
        alone.add(number, account=f"account-{number}", work_s=work_s, now_s=0)
    assert alone.order(0) == [1, 3, 2, 0]


def test_edits_that_are_marked_as_unimportant_are_no_greater_crowd() -> None:
    scheduler = Scheduler()
    scheduler.add("wanted", account="a", work_s=5, now_s=0)
    for number in range(5):
        scheduler.add(number, account="a", work_s=5, now_s=0, priority=-2)
    scheduler.add("other", account="b", work_s=13, now_s=0)
    assert scheduler.next(0) == "wanted"


def test_many_tiny_edits_do_not_make_one_greedy_sooner() -> None:
    scheduler = Scheduler()
    now_s = run(scheduler, "a", edits=20, now_s=run(scheduler, "b", edits=20))
    for number in range(200):
        scheduler.add(number, account="c", work_s=0.01, now_s=now_s)
    scheduler.add("long", account="d", work_s=20, now_s=now_s)
    scheduler.served("long", took_s=10, remaining_s=10, now_s=now_s + 10)
    scheduler.add("other", account="b", work_s=11, now_s=now_s + 10)
    order = scheduler.order(now_s + 10)
    assert order.index("long") < order.index("other")


def test_an_account_with_a_demand_beyond_measure_does_not_hide_another_greedy_one() -> None:
    scheduler = Scheduler()
    now_s = 0.0
    for account in ("huge", "many") * 50:
        now_s = run(scheduler, account, edits=1, now_s=now_s)
    for account, edits in (("huge", 1000), ("many", 30)):
        for number in range(edits):
            scheduler.add((account, number), account=account, work_s=10, now_s=now_s)
    scheduler.add("one", account="one", work_s=90, now_s=now_s)
    assert scheduler.next(now_s) == "one"


def test_who_asks_is_told_what_holds_once_it_came() -> None:
    """An account that is greedy only because another asks is greedy in the answer too."""
    scheduler = Scheduler()
    now_s = run(scheduler, "greedy", edits=100)
    scheduler.add("greedy", account="greedy", work_s=12, now_s=now_s)
    told = scheduler.estimate(account="other", work_s=15, now_s=now_s)
    scheduler.add("other", account="other", work_s=15, now_s=now_s)
    assert told == scheduler.estimates(now_s, of=["other"])["other"]
    assert (told.position, told.finish_s) == (0, 15)


@pytest.mark.parametrize(("pause_s", "order"), [(0, ["other", "greedy"]), (4000, ["greedy", "other"])])
def test_past_use_is_forgotten(pause_s: float, order: list[str]) -> None:
    scheduler = Scheduler()
    now_s = run(scheduler, "greedy", edits=100) + pause_s
    scheduler.add("greedy", account="greedy", work_s=12, now_s=now_s)
    scheduler.add("other", account="other", work_s=15, now_s=now_s)
    assert scheduler.order(now_s) == order


@pytest.mark.parametrize(("weight", "order"), [(1, ["other", "gold"]), (10, ["gold", "other"])])
def test_a_heavier_account_may_take_more(weight: float, order: list[str]) -> None:
    scheduler = Scheduler(weight=lambda account: weight if account == "gold" else 1)
    now_s = run(scheduler, "gold", edits=100)
    scheduler.add("gold", account="gold", work_s=12, now_s=now_s)
    scheduler.add("other", account="other", work_s=15, now_s=now_s)
    assert scheduler.order(now_s) == order


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


def test_what_an_account_will_yet_bring_does_not_lengthen_its_own_waits() -> None:
    """It goes behind what the account has waiting. Who sent fifty equal edits was told of ten times the wait."""
    scheduler = Scheduler()
    for number in range(50):
        scheduler.add(number, account="a", work_s=6, now_s=number / 10)
        told = scheduler.estimates(number / 10)
        assert [told[n].finish_s for n in range(number + 1)] == pytest.approx([6 * (n + 1) for n in range(number + 1)])


@pytest.mark.parametrize("took_s", [0, 1])
def test_what_cancelled_edits_would_have_needed_is_not_expected_to_come(took_s: int) -> None:
    """Whoever submits and cancels in a loop must not make others be told of long waits, or be refused."""
    scheduler = Scheduler()
    for number in range(60):
        now_s = 10 * number
        scheduler.add(number, account="a", work_s=10, now_s=now_s)
        if took_s:
            scheduler.served(number, took_s=took_s, remaining_s=10 - took_s, now_s=now_s + took_s)
        scheduler.remove(number)
    for number in range(3):
        scheduler.add(f"meant {number}", account="b", work_s=20, now_s=600)
    told = [scheduler.estimates(600)[f"meant {number}"].finish_s for number in range(3)]
    assert told == pytest.approx([20, 40, 60], rel=0.25 if took_s else 1e-9)


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
def test_without_a_greedy_account_most_wait_less_too(seed: int) -> None:
    verdict = judge(Load(seed=seed, edits=EDITS, rate=0.8, backlog=0), Policy())
    assert verdict.mean_latency_vs_fifo <= 0.75
    assert verdict.p99_vs_fifo <= 2.5
    assert verdict.eta_error_queued < 0.15


@pytest.mark.parametrize("seed", range(3))
def test_an_account_that_brings_half_of_the_edits_does_not_slow_the_others_down(seed: int) -> None:
    verdict = judge(Load(seed=seed, edits=EDITS, rate=0.8, greedy_part=0.5, backlog=0), Policy())
    assert verdict.mean_latency_vs_fifo < 0.95
    assert verdict.ordinary_mean_vs_fifo <= 0.5
    assert verdict.ordinary_mean_vs_alone <= 1.2
    assert verdict.eta_error_queued < 0.25
    assert verdict.eta_error_queued_ordinary < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_an_account_that_takes_all_that_others_leave_slows_them_down_little(seed: int) -> None:
    """Where the others leave just a fifth, which is no more than some of them ask for at times."""
    verdict = judge(Load(seed=seed, edits=EDITS, rate=0.8), Policy())
    assert verdict.mean_latency_vs_fifo < 0.4
    assert verdict.ordinary_mean_vs_alone < 2


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.5])
def test_beside_one_other_account_too_a_greedy_one_takes_what_is_left(rate: float) -> None:
    """Up to where that one asks for half of the device, which is its share: there it waits, but isn't locked out."""
    verdict = judge(Load(seed=2, edits=EDITS // 2, rate=rate, accounts=1), Policy())
    assert verdict.mean_latency_vs_fifo < 0.9
    assert verdict.ordinary_mean_vs_fifo < 0.7
    assert verdict.ordinary_mean_vs_alone <= 1.2 or rate == 0.5


@pytest.mark.parametrize(
    "load",
    [
        Load(edits=EDITS),
        Load(edits=EDITS, rate=0.8, backlog=0),
        Load(edits=EDITS, rate=0.8, greedy_part=0.5, backlog=0),
    ],
)
def test_what_is_promised_comes_about_as_often_later_as_earlier(load: Load) -> None:
    """Of all that isn't kept to the second. Promises that count on nobody to come are broken always to one side."""
    errors = [error for error in replay(load, Policy()).all_queued_errors() if abs(error) > 1e-6]
    late = sum(error < 0 for error in errors) / len(errors)
    assert 0.35 < late < 0.65


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
