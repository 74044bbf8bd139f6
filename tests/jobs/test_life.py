"""Each transition happens whole, with its money, and only for whoever has the right to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event

from rekontext.accounts import AccountUnknown, InsufficientCredits, SpendCapReached, ledger
from rekontext.database import AccountId, JobId
from rekontext.database.tables import idempotency_keys
from rekontext.jobs import (
    Accepted,
    Bounds,
    IdempotencyKeyReused,
    Job,
    JobUnknown,
    Lease,
    LeaseLost,
    Patience,
    QueueFull,
    State,
    TooManyInFlight,
    history,
    queries,
)
from tests.jobs.office import ALICE, BOB, MADE, OUTPUT, Office


def test_an_accepted_job_is_queued_and_its_price_held(office: Office) -> None:
    """Both or nothing."""
    accepted = office.accept()
    assert accepted.job.state is State.QUEUED
    assert (accepted.replayed, accepted.ahead) == (False, 0)
    assert office.job(accepted.job.id) == accepted.job
    assert office.money() == (9, 1, 0)
    assert accepted.balance == office.balance()


def test_a_completed_job_is_charged_and_says_how_it_was_made(office: Office) -> None:
    """The hold becomes revenue in the same transaction."""
    office.clock.advance(5)
    job = office.start()
    office.clock.advance(3)
    done = office.complete(job.lease)
    assert (done.state, done.outputs, done.made) == (State.COMPLETED, (OUTPUT,), MADE)
    assert (done.inference_s, done.timings) == (2.5, {"denoise": 2.0})
    assert (done.queue_s, done.total_s) == (0.0, 3.0)
    assert done.files_until == office.clock.now() + timedelta(days=7)
    assert office.job(job.id) == done
    assert office.money() == (9, 0, 1)


def test_a_job_of_bad_input_fails_at_once_and_is_free(office: Office) -> None:
    """A second attempt would fail again."""
    job = office.start()
    failed = office.fail(job.lease, retry=False)
    assert (failed.state, failed.error_code, failed.error) == (State.FAILED, "boom", "It broke.")
    assert office.money() == (10, 0, 0)


def test_faults_of_ours_are_retried_a_bounded_number_of_times(office: Office) -> None:
    """Each time after a longer wait; then the job fails and is free."""
    office.patience = Patience(faults_max=3, backoff_s=2)
    job = office.start()
    for wait_s in (2, 4):
        queued = office.fail(job.lease)
        assert queued.state is State.QUEUED
        assert office.money() == (9, 1, 0)
        office.clock.advance(wait_s - 1)
        assert office.claim() == []
        office.clock.advance(1)
        [job] = office.claim()
    assert (job.attempt, job.faults, job.retries) == (3, 2, 2)
    failed = office.fail(job.lease)
    assert (failed.state, failed.faults, failed.retries) == (State.FAILED, 3, 2)
    assert office.money() == (10, 0, 0)


def test_a_fault_of_the_callers_is_none_of_ours(office: Office) -> None:
    """It is neither counted nor tried again."""
    failed = office.fail(office.start().lease, retry=False)
    assert (failed.state, failed.faults, failed.retries) == (State.FAILED, 0, 0)


def test_an_attempt_that_was_handed_back_was_no_fault(office: Office) -> None:
    """The next one is no retry."""
    office.hand_back(office.start().lease)
    [job] = office.claim()
    assert (job.attempt, job.retries) == (2, 0)


def test_jobs_are_claimed_in_the_order_of_their_acceptance(office: Office) -> None:
    """As many as asked for, and each once."""
    accepted = [office.accept().job.id for _ in range(5)]
    first = office.claim("one", limit=2)
    second = office.claim("two", limit=10)
    assert [job.id for job in first + second] == accepted
    assert {job.worker for job in first} == {"one"}
    assert office.claim("three") == []


def test_accounts_take_turns(office: Office) -> None:
    """Whoever orders much waits behind his own; who comes later waits for one of his at most."""
    office.open_account(BOB)
    orders = [ALICE, ALICE, ALICE, BOB, BOB, ALICE]
    accepted = [office.accept(office.order(account)) for account in orders]
    assert [each.ahead for each in accepted] == [0, 1, 2, 1, 3, 5]
    order = [0, 3, 1, 4, 2, 5]
    assert [office.ahead(each.job) for each in accepted] == [0, 2, 4, 1, 3, 5]
    assert (office.ahead_of_new(ALICE), office.ahead_of_new(BOB)) == (6, 5)
    claimed = office.claim(limit=3) + office.claim(limit=10)
    assert [job.id for job in claimed] == [accepted[place].job.id for place in order]


def test_no_job_is_passed_by_for_ever(office: Office) -> None:
    """However many others send their next edit as soon as the last is claimed."""
    others = [AccountId(f"account-{number}") for number in range(3)]
    for account in others:
        office.open_account(account, edits=100)
    first, second = office.accept().job, office.accept().job
    for account in others:
        office.accept(office.order(account))
    claimed: list[JobId] = []
    while len(claimed) < 20 and second.id not in claimed:
        [job] = office.claim()
        claimed.append(job.id)
        if job.account in others:
            office.accept(office.order(job.account))
    assert claimed[0] == first.id
    assert claimed.index(second.id) == 4


@pytest.mark.parametrize("others_wait", [False, True])
def test_a_job_that_is_tried_again_is_next(office: Office, others_wait: bool) -> None:
    """Its turn was in a queue that is gone; now others wait from the first turn on."""
    office.patience = Patience(backoff_s=0)
    office.open_account(BOB)
    for _ in range(5):
        office.accept()
    back = office.claim(limit=5)[-1]
    waiting = [office.accept(office.order(account)).job for account in (BOB, ALICE) if others_wait]
    office.fail(back.lease)
    waiting += [office.accept(office.order(account)).job for account in (BOB, ALICE) if not others_wait]
    assert [job.id for job in office.claim(limit=3)] == [back.id, *(job.id for job in waiting)]


def test_a_job_that_waits_to_be_tried_again_holds_no_turn_back(office: Office) -> None:
    """The queue has gone on: who comes now is behind who waits already."""
    office.open_account(BOB)
    first = office.start()
    for _ in range(4):
        office.accept()
    office.fail(first.lease)
    claimed = [office.claim()[0].id for _ in range(2)]
    assert first.id not in claimed
    newcomer = office.accept(office.order(BOB))
    assert newcomer.job.turn == 2


def test_accounts_can_be_left_out_of_a_claim(office: Office) -> None:
    office.open_account(BOB)
    jobs = [office.accept(office.order(account)).job for account in (ALICE, BOB)]
    work = office.life.claim
    claimed = office.database.transact_sync(
        lambda tx: work(tx, worker="w", limit=2, now=office.clock.now(), besides={ALICE})
    )
    assert [job.id for job in claimed] == [jobs[1].id]


def test_a_lease_that_is_renewed_is_kept(office: Office) -> None:
    """And one that is not, isn't."""
    kept, lost = office.start(), office.start()
    office.clock.advance(20)
    assert set(office.renew(kept.lease)) == {kept.lease}
    office.clock.advance(20)
    assert [job.id for job in office.recover()] == [lost.id]
    assert set(office.renew(kept.lease, lost.lease)) == {kept.lease}
    assert office.renew() == {}


def test_a_worker_back_from_the_dead_cannot_touch_a_job_given_to_another(office: Office) -> None:
    """Its attempt number is old, so every ending is refused; the other worker's counts, once."""
    stale = office.start()
    office.clock.advance(60)
    office.recover()
    office.clock.advance(1)
    [fresh] = office.claim("another")
    assert fresh.attempt == stale.attempt + 1
    endings: list[Callable[[Lease], Job]] = [office.complete, office.fail, office.stop, office.hand_back]
    for late in endings:
        with pytest.raises(LeaseLost, match="PROCESSING in attempt 2"):
            late(stale.lease)
    assert office.renew(stale.lease) == {}
    assert office.money() == (9, 1, 0)
    office.complete(fresh.lease)
    with pytest.raises(LeaseLost, match="COMPLETED"):
        office.complete(stale.lease)
    assert office.money() == (9, 0, 1)


def test_a_worker_back_from_the_dead_cannot_touch_a_job_that_waits_again(office: Office) -> None:
    """Though nobody else has claimed it yet."""
    stale = office.start()
    office.clock.advance(60)
    office.recover()
    with pytest.raises(LeaseLost, match="QUEUED"):
        office.complete(stale.lease)


def test_a_late_worker_whose_job_nobody_took_may_still_finish(office: Office) -> None:
    """Its work is good, so it isn't thrown away."""
    job = office.start()
    office.clock.advance(3600)
    assert office.complete(job.lease).state is State.COMPLETED


def test_a_job_that_kills_its_workers_fails_in_the_end(office: Office) -> None:
    """A lost worker counts as a fault, so a poisonous job can't go round for ever."""
    office.patience = Patience(faults_max=2, backoff_s=0)
    office.start()
    office.clock.advance(60)
    [taken] = office.take_back()
    assert (taken.job.state, taken.job.worker, taken.worker, taken.code) == (
        State.QUEUED,
        None,
        "worker",
        "worker_lost",
    )
    office.claim()
    office.clock.advance(60)
    [failed] = office.recover()
    assert (failed.state, failed.error_code) == (State.FAILED, "worker_lost")
    assert failed.error == "The worker stopped before the edit was done, in the last of 2 tries."
    office.patience = Patience(faults_max=1)
    office.start()
    office.clock.advance(60)
    [failed] = office.recover()
    assert failed.error == "The worker stopped before the edit was done."
    assert office.money() == (10, 0, 0)


def test_a_restarted_worker_takes_its_jobs_back_at_once(office: Office) -> None:
    """It doesn't wait for the leases of its former self, and leaves those of others alone."""
    mine, other = office.start(), office.accept().job
    office.claim("other")
    assert [job.id for job in office.recover("worker")] == [mine.id]
    assert office.job(other.id).state is State.PROCESSING


def test_a_job_handed_back_is_next_again_without_a_fault(office: Office) -> None:
    """A restart in good order costs a job none of its attempts."""
    job, later = office.start(), office.accept().job
    office.hand_back(job.lease)
    again, second = office.claim(limit=2)
    assert (again.id, again.attempt, again.faults) == (job.id, 2, 0)
    assert second.id == later.id


def test_a_waiting_job_is_cancelled_at_once(office: Office) -> None:
    """And free."""
    job = office.accept().job
    assert office.cancel(job.id).state is State.CANCELLED
    assert office.money() == (10, 0, 0)
    assert office.claim() == []


def test_a_running_job_is_asked_to_stop_and_is_free_whatever_happens_next(office: Office) -> None:
    """A cancel that was answered is never charged, not even if the edit was done a moment later."""
    endings: list[Callable[[Lease], Job] | None] = [office.stop, office.complete, office.fail, office.hand_back, None]
    for ending in endings:
        job = office.start()
        office.clock.advance(1)
        asked = office.cancel(job.id)
        assert (asked.state, asked.cancel_requested_at) == (State.PROCESSING, office.clock.now())
        assert office.renew(job.lease)[job.lease].cancel_requested_at is not None
        if ending is None:  # the worker died
            office.clock.advance(60)
            office.recover()
        else:
            ending(job.lease)
        assert office.job(job.id).state is State.CANCELLED
        assert office.money() == (10, 0, 0)


def test_a_job_that_ended_cannot_be_cancelled(office: Office) -> None:
    """It stays as it is, and asking again changes nothing."""
    job = office.start()
    done = office.complete(job.lease)
    assert office.cancel(job.id) == done
    waiting = office.accept().job
    cancelled = office.cancel(waiting.id)
    office.clock.advance(5)
    assert office.cancel(waiting.id) == cancelled


def test_another_accounts_job_is_unknown(office: Office) -> None:
    """Its existence is nobody else's business."""
    job = office.accept().job
    for unknown, account in ((job.id, BOB), (JobId("none"), ALICE)):
        with pytest.raises(JobUnknown, match=f"Request {unknown} not found"):
            office.cancel(unknown, account)
    assert office.job(job.id).state is State.QUEUED


def test_a_job_that_nobody_starts_fails_in_the_end(office: Office) -> None:
    """Every wait has a limit."""
    office.patience = Patience(queue_s_max=100)
    job = office.accept().job
    office.clock.advance(99)
    assert office.recover() == []
    office.clock.advance(1)
    [failed] = office.recover()
    assert (failed.id, failed.error) == (job.id, "No worker was free within 100 s.")
    assert office.money() == (10, 0, 0)


def test_a_job_that_ran_has_not_waited(office: Office) -> None:
    """The time in the queue counts from when it could last be claimed: not from accept, nor during a backoff."""
    office.patience = Patience(queue_s_max=100, lease_s=1000, backoff_s=50, faults_max=4)
    job = office.start()
    office.clock.advance(150)
    office.hand_back(job.lease)
    assert office.recover() == []
    office.clock.advance(99)
    [job] = office.claim()
    office.clock.advance(150)
    office.fail(job.lease)
    office.clock.advance(50 + 99)
    assert office.recover() == []
    office.clock.advance(1)
    [failed] = office.recover()
    assert (failed.error_code, failed.error) == ("queue_timeout", "No worker was free within 100 s.")
    assert office.money() == (10, 0, 0)


def test_a_job_whose_worker_died_has_not_waited(office: Office) -> None:
    """Taken back after longer than anything may wait, it is tried again and not given up at once."""
    office.patience = Patience(queue_s_max=100, backoff_s=0)
    office.start()
    office.clock.advance(150)
    [job] = office.recover()
    assert (job.state, job.faults) == (State.QUEUED, 1)
    assert office.recover() == []


def test_balances_are_locked_in_one_order(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a job is given up because it waited or because its worker is gone, so that no two processes block."""
    office.open_account(BOB)
    office.patience = Patience(queue_s_max=100, faults_max=1)
    office.start(office.order(BOB))
    office.accept()
    settled: list[str] = []
    settle = ledger.settle

    def watched(tx: Connection, account: AccountId, *args: Any, **values: Any) -> int:
        settled.append(account)
        return settle(tx, account, *args, **values)

    monkeypatch.setattr(ledger, "settle", watched)
    office.clock.advance(150)
    office.recover()
    assert settled == [ALICE, BOB]


def test_who_cannot_pay_gets_no_job(office: Office) -> None:
    """And nothing is left behind, not even the idempotency key."""
    office.open_account(BOB, edits=0)
    with pytest.raises(InsufficientCredits):
        office.accept(office.order(BOB, key="k"))
    office.open_account(AccountId("acc_capped"), edits=5, monthly_cap_micros=1)
    with pytest.raises(SpendCapReached):
        office.accept(office.order(AccountId("acc_capped")))
    with pytest.raises(AccountUnknown):
        office.accept(office.order(AccountId("acc_nobody")))
    assert office.claim() == []
    with pytest.raises(InsufficientCredits):  # not "replayed": the key was rolled back
        office.accept(office.order(BOB, key="k"))


def test_an_account_may_have_so_many_jobs_in_flight(office: Office) -> None:
    """Waiting and running together; its own limit goes before the service's."""
    office.bounds = Bounds(in_flight_max=2)
    first = office.start()
    office.accept()
    with pytest.raises(TooManyInFlight) as refusal:
        office.accept()
    assert (refusal.value.in_flight, refusal.value.limit) == (2, 2)
    office.complete(first.lease)
    office.accept()
    office.open_account(BOB, in_flight_max=1)
    office.accept(office.order(BOB))
    with pytest.raises(TooManyInFlight, match="this account may have 1"):
        office.accept(office.order(BOB))


def test_the_queue_has_an_end(office: Office) -> None:
    """Running jobs don't count, other accounts' do."""
    office.bounds = Bounds(queued_max=2)
    office.open_account(BOB)
    office.start()
    office.accept()
    office.accept(office.order(BOB))
    with pytest.raises(QueueFull, match="2 edits are waiting"):
        office.accept(office.order(BOB))


def test_the_same_key_and_body_is_the_same_job(office: Office) -> None:
    """Held once, whatever became of it, and limits don't stand in the way of the answer."""
    first = office.accept(office.order(key="k"))
    office.bounds = Bounds(in_flight_max=1, queued_max=1)
    again = office.accept(office.order(key="k"))
    assert (again.job, again.replayed, again.ahead) == (first.job, True, 0)
    assert office.money() == (9, 1, 0)
    [claimed] = office.claim()
    office.complete(claimed.lease)
    assert office.accept(office.order(key="k")).job.state is State.COMPLETED
    assert office.money() == (9, 0, 1)


def test_the_same_key_with_another_body_is_refused(office: Office) -> None:
    """The client made a mistake; nothing is held for it."""
    office.accept(office.order(key="k"))
    with pytest.raises(IdempotencyKeyReused, match="'k' was used for a different request"):
        office.accept(office.order(key="k", body="another"))
    assert office.money() == (9, 1, 0)


def test_a_key_that_is_swept_while_it_is_asked_for_is_free(office: Office) -> None:
    """On PostgreSQL that may happen after it was found to be taken."""
    first, again = office.accept(office.order(key="k")), office.order(key="k", body="another")

    def accept(tx: Connection) -> Accepted:
        looks = 0

        @event.listens_for(tx, "before_cursor_execute")
        def sweep(_connection: object, _cursor: object, sent: str, *_: object) -> None:
            nonlocal looks
            looks += sent.startswith("SELECT idempotency_keys")
            if looks == 1:
                looks += 1
                tx.execute(delete(idempotency_keys))

        return office.life.accept(tx, again, now=office.clock.now())

    accepted = office.database.transact_sync(accept)
    assert (accepted.replayed, accepted.job.id) == (False, again.job)
    assert accepted.job.id != first.job.id
    assert office.accept(replace(again, job=JobId("third"))).job.id == again.job


def test_keys_of_different_accounts_are_different_keys(office: Office) -> None:
    """Nobody can find out or take another one's key."""
    office.open_account(BOB)
    mine = office.accept(office.order(key="k"))
    theirs = office.accept(office.order(BOB, key="k", body="another"))
    assert not theirs.replayed
    assert theirs.job.id != mine.job.id


@pytest.mark.anyio
async def test_a_hundred_concurrent_submits_on_a_balance_for_ten_make_ten(office: Office) -> None:
    """Exactly ten jobs, exactly ten holds."""

    async def submit() -> bool:
        order = office.order()
        try:
            await office.database.transact(lambda tx: office.life.accept(tx, order, now=office.clock.now()))
        except InsufficientCredits:
            return False
        return True

    office.bounds = Bounds(in_flight_max=1000)
    accepted = await asyncio.gather(*(submit() for _ in range(100)))
    assert sum(accepted) == 10
    assert office.money() == (0, 10, 0)
    assert len(office.claim(limit=100)) == 10


@pytest.mark.anyio
async def test_concurrent_submits_never_pass_the_limit_in_flight(office: Office) -> None:
    """The count is exact, not a guess that races."""
    office.bounds = Bounds(in_flight_max=3)

    async def submit() -> bool:
        order = office.order()
        try:
            await office.database.transact(lambda tx: office.life.accept(tx, order, now=office.clock.now()))
        except TooManyInFlight:
            return False
        return True

    assert sum(await asyncio.gather(*(submit() for _ in range(30)))) == 3


@pytest.mark.anyio
async def test_32_concurrent_submits_with_one_key_make_one_job(office: Office) -> None:
    """All of them get it."""

    async def submit() -> Accepted:
        order = office.order(key="k")
        return await office.database.transact(lambda tx: office.life.accept(tx, order, now=office.clock.now()))

    answers = await asyncio.gather(*(submit() for _ in range(32)))
    assert len({answer.job.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert office.money() == (9, 1, 0)


@pytest.mark.anyio
async def test_concurrent_workers_never_claim_the_same_job(office: Office) -> None:
    """Eight workers, each asking for three of ten jobs at the same moment."""
    for _ in range(10):
        office.accept()
    claims = await asyncio.gather(
        *(
            office.database.transact(
                lambda tx, number=number: office.life.claim(  # type: ignore[misc]
                    tx, worker=f"worker-{number}", limit=3, now=office.clock.now()
                )
            )
            for number in range(8)
        )
    )
    claimed = [job.id for jobs in claims for job in jobs]
    assert len(claimed) == len(set(claimed)) == 10


@pytest.mark.anyio
async def test_of_all_endings_that_race_one_counts(office: Office) -> None:
    """Complete, fail and stop at the same moment: one state, one settlement."""
    job = office.start()
    life, now = office.life, office.clock.now()
    endings = [
        lambda tx: life.complete(tx, job.lease, outputs=[], made={}, inference_s=0, timings={}, now=now),
        lambda tx: life.fail(tx, job.lease, code="x", error="x", retry=False, now=now),
        lambda tx: life.stop(tx, job.lease, now=now),
    ]
    outcomes = await asyncio.gather(
        *(office.database.transact(ending) for ending in endings * 4), return_exceptions=True
    )
    assert sum(isinstance(outcome, LeaseLost) for outcome in outcomes) == 11
    [ended] = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert office.job(job.id) == ended


def test_a_lease_is_named_only_by_job_and_attempt(office: Office) -> None:
    """So it can be compared, logged and kept in a set."""
    job = office.start()
    assert job.lease == Lease(job=job.id, attempt=1)
    with pytest.raises(AssertionError, match="nobody holds it"):
        _ = office.complete(job.lease).lease


def test_what_waits_is_counted(office: Office) -> None:
    """The place in the queue and the totals for the metrics."""
    jobs = [office.accept().job for _ in range(3)]
    office.claim()
    places = [office.database.read_sync(lambda tx, job=job: queries.ahead(tx, job)) for job in jobs[1:]]  # type: ignore[misc]
    assert places == [0, 1]
    assert office.database.read_sync(queries.unfinished_by_state) == {State.QUEUED: 2, State.PROCESSING: 1}
    assert office.database.read_sync(lambda tx: queries.queue(tx, ALICE)).in_flight == 3


def test_a_clock_that_is_set_back_keeps_no_job_waiting(office: Office) -> None:
    """Jobs that were accepted, or put back, under the wrong time are next all the same, and no time is below zero."""
    office.patience = Patience(backoff_s=1)
    first, second = office.accept().job, office.accept().job
    [claimed] = office.claim()
    office.fail(claimed.lease)
    office.clock.set_back(3600)
    jobs = office.claim(limit=2)
    assert [job.id for job in jobs] == [first.id, second.id]
    done = [office.complete(job.lease) for job in jobs]
    assert [(job.queue_s, job.total_s) for job in done] == [(0.0, 0.0)] * 2


def test_the_wait_before_another_attempt_has_a_bound(office: Office) -> None:
    """It doubles with each fault, but a job that may have many is not put off for years."""
    office.patience = Patience(faults_max=100, backoff_s=1, backoff_s_max=60)
    office.accept()
    for _ in range(60):
        [job] = office.claim()
        put_back = office.fail(job.lease)
        assert (put_back.available_at - office.clock.now()).total_seconds() <= 60
        assert office.claim() == []
        office.clock.advance(60)
    office.fail(office.claim()[0].lease, retry=False)


@pytest.mark.parametrize("prompt", ["Mäke it 50% Night, NÜTZT", "mäke it 50% night, nützt"])
def test_a_search_heeds_neither_capitals_nor_the_database(office: Office, prompt: str) -> None:
    """What else is in it stands for itself."""
    job = office.accept(replace(office.order(), parameters={"prompt": prompt, "seed": 7})).job
    for words, model, found in (
        ("NIGHT", None, [job.id]),
        ("Nützt", None, [job.id]),
        ("it 50% n", "KONTEXT", [job.id]),
        ("it%night", None, []),
        (None, "kontext_dev", []),
    ):
        page = office.database.read_sync(
            lambda tx, words=words, model=model: history(tx, ALICE, prompt_contains=words, model_contains=model)  # type: ignore[misc]
        )
        assert ([each.id for each in page.jobs], page.total) == (found, len(found))
