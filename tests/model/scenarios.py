"""Sequences of the machine's own rules that random search would take long to come upon."""

from collections.abc import Callable
from functools import partial

from tests.model.machine import Machine
from tests.model.outside import Kind

Scenario = Callable[[Machine], None]

_LOST_ANSWER = "its next answer is lost"
_LOST_COMMIT = "the last commit is lost"


def _claimed(m: Machine, kind: Kind = Kind.WINDOW, *, adoptable: bool = True) -> None:
    m.queue(kind=kind, adoptable=adoptable)
    m.claim(who=0, job=0)


def _submitted(m: Machine, kind: Kind = Kind.WINDOW) -> None:
    _claimed(m, kind)
    m.go_on(who=0, job=0, steps=3)


def _silent(m: Machine, kind: Kind = Kind.WINDOW, *, adoptable: bool = True) -> None:
    """The owner is paused, and others have seen his job stand still for a grace."""
    _claimed(m, kind, adoptable=adoptable)
    m.befall_runner(who=0, what="pause")
    m.wait(steps=6)


def _taken_over(m: Machine) -> None:
    """Whatever the first owner was at, he is paused, and the second one has his job."""
    m.befall_runner(who=0, what="pause")
    m.wait(steps=6)
    m.adopt(who=1)


def _ended_unheard(m: Machine, kind: Kind = Kind.WINDOW) -> None:
    """The owner ended his job, and was not told that it is done."""
    _submitted(m, kind)
    m.befall_outside(what="failed")
    m.go_on(who=0, job=0)
    m.befall_runner(who=0, what=_LOST_ANSWER)
    m.apply(who=0)


def _in_doubt_ended_unheard(m: Machine, *, adoptable: bool = True) -> None:
    """The same with a job that never got an external id."""
    _claimed(m, Kind.NUMBERS, adoptable=adoptable)
    m.go_on(who=0, job=0)
    m.befall_outside(what="down")
    m.go_on(who=0, job=0)
    m.befall_outside(what="up")
    m.befall_runner(who=0, what=_LOST_ANSWER)
    m.go_on(who=0, job=0)


def anothers_beat(m: Machine) -> None:
    _claimed(m)
    _taken_over(m)
    m.befall_runner(who=0, what="resume")
    m.wait()


def a_beat_for_what_has_ended(m: Machine) -> None:
    _ended_unheard(m)
    m.wait()


def a_beat_under_an_earlier_claim(m: Machine) -> None:
    _claimed(m)
    m.befall_runner(who=0, what=_LOST_ANSWER)
    m.release(who=0, job=0)
    m.claim(who=0, job=0)
    m.beat(who=0)


def a_claim_from_another_host(m: Machine) -> None:
    m.queue(kind=Kind.RECORD, bound=True)
    m.claim(who=0, job=0)


def a_bulk_claim_from_another_host(m: Machine) -> None:
    m.queue(kind=Kind.RECORD, bound=True)
    m.claim_many(who=0)


def a_claim_of_what_is_barred(m: Machine, *, by: str) -> None:
    m.queue(kind=Kind.RECORD, barred_by=by)
    m.claim(who=0, job=0)
    m.claim_many(who=0)


def an_orphan_that_is_barred(m: Machine, *, by: str, many: bool, adoptable: bool) -> None:
    m.start(who=0, kind=Kind.RECORD, adoptable=adoptable, barred_by=by)
    if adoptable:
        m.go_on(who=0, job=0)  # it is known to be stored, and others may take it over
    m.befall_runner(who=0, what="pause")
    m.wait(steps=6)
    m.adopt(who=1, many=many)


def a_claim_of_what_is_not_served(m: Machine) -> None:
    m.queue(kind=Kind.WINDOW)
    m.claim_many(who=2)


def a_claim_of_what_runs(m: Machine) -> None:
    _claimed(m)
    m.claim(who=1, job=0)
    m.claim_many(who=1)


def late_under_anothers_claim(m: Machine, what: str, *, submitted: bool) -> None:
    """The database lost a claim, and another one holds it now, under the same number."""
    if submitted:
        _submitted(m)
        m.release(who=0, job=0)
    else:
        m.queue(kind=Kind.WINDOW, adoptable=what not in _MAKES_ADOPTABLE)
    m.claim(who=0, job=0)
    m.befall_database(what=_LOST_COMMIT)
    m.claim(who=1, job=0)
    m.write_late(who=0, job=0, what=what)


def late_under_an_earlier_claim(m: Machine, what: str, *, submitted: bool) -> None:
    """The same runner has claimed it again."""
    _submitted(m) if submitted else _claimed(m, adoptable=what not in _MAKES_ADOPTABLE)
    m.befall_runner(who=0, what=_LOST_ANSWER)
    m.release(who=0, job=0)
    m.claim(who=0, job=0)
    m.write_late(who=0, job=0, what=what)


def late_after_the_end(m: Machine, what: str, *, submitted: bool) -> None:
    if submitted:
        _ended_unheard(m)
    else:
        _in_doubt_ended_unheard(m, adoptable=what not in _MAKES_ADOPTABLE)
    m.write_late(who=0, job=0, what=what)


def an_orphan_that_beat_again(m: Machine, *, many: bool, adoptable: bool) -> None:
    _silent(m, adoptable=adoptable)
    m.befall_runner(who=0, what="resume")
    m.beat(who=0)
    m.adopt(who=1, many=many)


def an_orphan_that_ended(m: Machine, *, many: bool, adoptable: bool) -> None:
    m.queue(kind=Kind.WINDOW, adoptable=adoptable)
    m.claim(who=0, job=0)
    m.go_on(who=0, job=0, steps=4)
    m.befall_outside(what="succeeded")
    m.fetch(who=0, job=0)
    m.befall_runner(who=0, what="pause")
    m.wait(steps=6)
    m.befall_runner(who=0, what="resume")
    m.apply(who=0, number=1)
    m.adopt(who=1, many=many)


def an_orphan_claimed_again_by_its_owner(m: Machine, *, many: bool, adoptable: bool) -> None:
    """And the database's clock stands where it stood at the claim before."""
    _silent(m, adoptable=adoptable)
    m.befall_runner(who=0, what="resume")
    m.release(who=0, job=0)
    m.befall_database(what="its clock goes back to a beat", job=0)
    m.claim(who=0, job=0)
    m.adopt(who=1, many=many)


def an_orphan_whose_claim_was_lost(m: Machine, *, many: bool, adoptable: bool) -> None:
    """Another one claimed it, under the same number and at the same time of the database's clock."""
    _silent(m, adoptable=adoptable)
    m.befall_database(what=_LOST_COMMIT)
    m.befall_database(what="its clock goes back to a beat", job=0)
    m.claim(who=2, job=0)
    m.adopt(who=1, many=many)


def an_orphan_that_is_not_adoptable(m: Machine, *, many: bool) -> None:
    _silent(m, adoptable=False)
    m.adopt(who=1, many=many)


def an_orphan_of_another_host(m: Machine, *, many: bool) -> None:
    _claimed(m, Kind.RECORD)
    m.go_on(who=0, job=0)
    m.befall_runner(who=0, what="pause")
    m.wait(steps=6)
    m.adopt(who=2, many=many)


def an_outcome_of_an_earlier_attempt(m: Machine) -> None:
    _submitted(m)
    m.befall_outside(what="failed")
    m.fetch(who=0, job=0)
    m.fetch(who=0, job=0)
    m.apply(who=0, again=True)
    m.go_on(who=0, job=0, steps=3)
    m.apply(who=0)


def an_observation_of_an_earlier_attempt(m: Machine) -> None:
    _submitted(m)
    m.fetch(who=0, job=0)
    m.befall_outside(what="failed")
    m.fetch(who=0, job=0)
    m.apply(who=0, number=1, again=True)
    m.go_on(who=0, job=0, steps=3)
    m.apply(who=0)


def an_end_of_an_earlier_attempt(m: Machine) -> None:
    """In a burst of ends one is about work that was submitted again since."""
    _submitted(m)
    m.befall_outside(what="failed")
    m.fetch(who=0, job=0)
    m.fetch(who=0, job=0)
    m.apply(who=0, again=True)
    m.go_on(who=0, job=0, steps=3)
    m.conclude(who=0)
    m.write_ends(who=0)


def an_end_judged_before_its_kill(m: Machine) -> None:
    """The kill was being stored while others cancelled the work, and the end was judged in between."""
    _submitted(m)
    m.kill(job=0)
    m.beat(who=0)
    m.decide_to_cancel(who=0, cause="kill")
    m.befall_outside(what="cancelled")
    m.fetch(who=0, job=0)
    m.conclude(who=0)
    m.cancel_late(who=0)
    m.write_ends(who=0)


def a_burst_of_ends(m: Machine) -> None:
    """All end at once; one of them was taken over, and one row is held locked where that can be."""
    for number in range(4):
        m.queue(kind=Kind.WINDOW)
        m.claim(who=0, job=number)
        m.go_on(who=0, job=number, steps=3)
        m.befall_outside(number=number, what="succeeded")
        m.fetch(who=0, job=number)
    m.befall_runner(who=0, what="pause")
    m.wait(steps=6)
    m.adopt(who=1, job=1)
    m.befall_runner(who=0, what="resume")
    for _ in range(4):
        m.conclude(who=0)
    m.befall_database(what="a row is held locked", job=2)
    m.wait(steps=2)
    m.befall_runner(who=0, what=_LOST_ANSWER)
    m.write_ends(who=0)
    m.write_ends(who=0)
    m.befall_database(what="the row is let go")
    m.write_ends(who=0)


def a_cancellation_of_an_earlier_attempt(m: Machine, *, cause: str = "start_timeout") -> None:
    """It was decided on, and is stored only after the work failed and was submitted again."""
    _submitted(m)
    m.decide_to_cancel(who=0, cause=cause)
    m.befall_outside(what="failed")
    m.fetch(who=0, job=0)
    m.apply(who=0, again=True)
    m.cancel_late(who=0)


def a_kill_after_a_cancellation_of_an_earlier_attempt(m: Machine) -> None:
    """The new work is not spared by what was decided on about the old one."""
    a_cancellation_of_an_earlier_attempt(m)
    m.go_on(who=0, job=0, steps=3)
    m.kill(job=0)
    m.wait()
    m.go_on(who=0, job=0, steps=3)


def a_deadline_that_passes_between_two_attempts(m: Machine) -> None:
    a_cancellation_of_an_earlier_attempt(m, cause="deadline")
    m.go_on(who=0, job=0, steps=3)
    m.out_of_time(who=0, job=0)
    m.go_on(who=0, job=0, steps=2)


def a_cancellation_of_work_whose_record_was_lost(m: Machine) -> None:
    """And a kill after it: the owner knows of work that the row does not speak of any more."""
    _submitted(m)
    m.befall_database(what=_LOST_COMMIT)
    m.out_of_time(who=0, job=0)
    m.kill(job=0)


def a_token_that_was_renewed_unheard(m: Machine) -> None:
    _claimed(m, Kind.RECORD)
    m.go_on(who=0, job=0)
    m.befall_outside(what="down")
    m.go_on(who=0, job=0)
    m.befall_outside(what="up")
    m.befall_runner(who=0, what=_LOST_ANSWER)
    m.go_on(who=0, job=0, steps=3)


def a_submission_recorded_by_a_slow_runner(m: Machine) -> None:
    """The intent was lost with a commit, and what came of it is recorded before another one begins."""
    _claimed(m, Kind.NUMBERS)
    m.go_on(who=0, job=0, steps=2)
    m.befall_database(what=_LOST_COMMIT)
    _taken_over(m)
    m.go_on(who=1, job=0)
    m.befall_runner(who=0, what="resume")
    m.go_on(who=0, job=0)
    m.go_on(who=1, job=0)


def a_kill_before_the_submission(m: Machine) -> None:
    _claimed(m)
    m.kill(job=0)
    m.go_on(who=0, job=0)


def a_kill_before_another_token(m: Machine) -> None:
    _claimed(m, Kind.RECORD)
    m.go_on(who=0, job=0)
    m.befall_outside(what="down")
    m.go_on(who=0, job=0)
    m.befall_outside(what="up")
    m.kill(job=0)
    m.go_on(who=0, job=0)


def a_record_under_an_earlier_token(m: Machine) -> None:
    _claimed(m)
    m.go_on(who=0, job=0, steps=2)
    _taken_over(m)
    m.go_on(who=1, job=0, steps=2)
    m.befall_outside(what="failed")
    m.go_on(who=1, job=0)
    m.apply(who=1, again=True)
    m.befall_runner(who=0, what="resume")
    m.go_on(who=0, job=0)


def a_record_after_the_end(m: Machine) -> None:
    _claimed(m, Kind.NUMBERS)
    m.go_on(who=0, job=0)
    _taken_over(m)
    m.go_on(who=1, job=0)
    m.befall_runner(who=0, what="resume")
    m.go_on(who=0, job=0, steps=2)


def a_record_of_a_second_job(m: Machine) -> None:
    _claimed(m, Kind.NUMBERS)
    m.go_on(who=0, job=0)
    _taken_over(m)
    m.befall_outside(what="somebody starts work by hand")
    m.go_on(who=1, job=0, steps=2)
    m.befall_runner(who=0, what="resume")
    m.go_on(who=0, job=0, steps=2)


def two_jobs_that_find_one(m: Machine) -> None:
    """Both look for what is new before either has recorded it."""
    for who in (0, 1):
        m.queue(kind=Kind.NUMBERS)
        m.claim(who=who, job=who)
        m.go_on(who=who, job=0)
        m.befall_outside(what="down")
        m.go_on(who=who, job=0)
        m.befall_outside(what="up")
    m.befall_outside(what="somebody starts work by hand")
    for _ in range(2):
        for who in (0, 1):
            m.go_on(who=who, job=0)


def failed_once_more(m: Machine, *, after: str) -> None:
    """A policy wants failed work once more, and something has come in between."""
    _submitted(m)
    if after == "its record was lost":
        m.befall_database(what=_LOST_COMMIT)
    m.befall_outside(what="failed")
    m.fetch(who=0, job=0)
    m.fetch(who=0, job=0)
    if after == "a kill":
        m.kill(job=0)
    elif after == "its time was over":
        m.out_of_time(who=0, job=0)
    elif after == "its resubmission was lost":
        m.apply(who=0, again=True)
        m.befall_database(what=_LOST_COMMIT)
    m.apply(who=0, again=True)


def says_unsubmitted(m: Machine) -> None:
    _submitted(m)
    m.say(who=0, job=0, unsubmitted=True)


def a_kill_after_the_end(m: Machine) -> None:
    _ended_unheard(m)
    m.kill(job=0)


def killed_twice(m: Machine) -> None:
    _claimed(m)
    m.kill(job=0, by="anna")
    m.wait()
    m.kill(job=0, by="ben")


def a_kill_of_what_was_begun(m: Machine) -> None:
    _claimed(m, Kind.RECORD)
    m.go_on(who=0, job=0)
    m.befall_outside(what=_LOST_ANSWER)
    m.go_on(who=0, job=0)
    m.release(who=0, job=0)
    m.kill(job=0)


def a_kill_of_what_runs_outside(m: Machine) -> None:
    """The record that it was begun was lost."""
    _claimed(m)
    m.go_on(who=0, job=0, steps=2)
    m.befall_database(what=_LOST_COMMIT)
    m.go_on(who=0, job=0)
    m.release(who=0, job=0)
    m.kill(job=0)


def cancelled_for_two_causes(m: Machine) -> None:
    _submitted(m)
    m.out_of_time(who=0, job=0)
    m.befall_runner(who=0, what="pause")
    m.kill(job=0)
    m.wait(steps=6)
    m.adopt(who=1)
    m.go_on(who=1, job=0)


def a_row_held_locked(m: Machine) -> None:
    """Somebody's open session holds one of two rows for longer than a grace."""
    for number in (0, 1):
        m.queue(kind=Kind.WINDOW)
        m.claim(who=0, job=number)
    m.befall_database(what="a row is held locked", job=0)
    m.wait(steps=3)
    m.go_on_with_all(who=0, steps=3)
    m.release_all(who=0)
    m.claim_many(who=1)
    m.befall_database(what="the row is let go")
    m.wait()


def a_live_owner_whose_row_was_held_locked(m: Machine) -> None:
    """An open session holds his row for longer than a grace, and a sweeper is faster than his next beat."""
    _claimed(m)
    m.befall_database(what="a row is held locked", job=0)
    m.wait(steps=6)
    m.befall_database(what="the row is let go")
    m.adopt(who=1, many=True)
    m.beat(who=0)


def stored_unheard(m: Machine) -> None:
    """Two starts were stored, both answers were lost, and each is sent again under its key."""
    for _ in range(2):
        m.befall_runner(who=0, what=_LOST_ANSWER)
        m.start(who=0, kind=Kind.WINDOW)
    for _ in range(2):
        m.start_again(who=0)
    m.go_on_with_all(who=0, steps=3)


def stored_unheard_and_given_up(m: Machine) -> None:
    """The same, and its starter, who knows of nothing, has gone away: nobody runs what was started."""
    m.befall_runner(who=0, what=_LOST_ANSWER)
    m.start(who=0, kind=Kind.WINDOW)
    m.befall_runner(who=0, what="crash")
    m.wait(steps=6)
    m.adopt(who=1, many=True)


def the_same_claim_twice(m: Machine) -> None:
    """The database lost a claim, and the same runner claims again before it learns of that."""
    _claimed(m)
    m.befall_database(what=_LOST_COMMIT)
    m.claim(who=0, job=0)
    for _ in range(3):
        for held in (0, 1):
            m.go_on(who=0, job=held)


_MAKES_ADOPTABLE = frozenset({"confirm"})
_NOT_SUBMITTED = frozenset({"begin_submit", "renew_token", "say_unsubmitted"}) | _MAKES_ADOPTABLE
_LATE = {
    "runner_id": late_under_anothers_claim,
    "claims": late_under_an_earlier_claim,
    "state": late_after_the_end,
}
_ORPHANS = {
    "runner_id": an_orphan_whose_claim_was_lost,
    "claims": an_orphan_claimed_again_by_its_owner,
    "state": an_orphan_that_ended,
    "latest_heartbeat": an_orphan_that_beat_again,
}


def late(guard: str, what: str) -> Scenario:
    """Return how a write of an owner comes too late for a guard of the fence."""
    return partial(_LATE[guard], what=what, submitted=what not in _NOT_SUBMITTED)


def orphan(guard: str, statement: str) -> Scenario:
    """Return how an orphan is none any more by a guard of its sighting."""
    is_lost, many = statement.startswith("lose"), statement.endswith("many")
    return partial(_ORPHANS[guard], many=many, adoptable=not is_lost)
