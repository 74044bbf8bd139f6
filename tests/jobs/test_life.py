"""Each transition happens whole, with its money, and only for whoever has the right to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from rekontext.accounts import ledger
from rekontext.database import AccountId, JobId
from rekontext.jobs import Job, JobUnknown, Lease, LeaseLost, Patience, State
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
