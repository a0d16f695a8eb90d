"""Each guard of the statements is needed: without it, the model test fails."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jobrunner import heartbeat, statements
from jobrunner.database import Database
from jobrunner.statements import Claim
from jobrunner.states import JobState
from tests.model import invariants, runners, scenarios
from tests.model.mutants import MUTANTS, REDUNDANT
from tests.model.outside import Broken
from tests.model.playing import play

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_statement_without_one_of_its_guards_is_caught(model_sqlite: Database, name: str) -> None:
    mutant = dataclasses.replace(BY_NAME[name], hits=0)
    with pytest.raises(Broken) as caught:
        play(model_sqlite, mutant.scenario, mutant)
    assert mutant.hits, "the guard was found in the statement"
    assert caught.value.invariant == mutant.caught_by


@pytest.mark.parametrize("name", REDUNDANT)
def test_what_is_guarded_twice_holds_without_the_first_guard(model_sqlite: Database, name: str) -> None:
    mutant = dataclasses.replace(REDUNDANT[name].mutant, hits=0)
    play(model_sqlite, mutant.scenario, mutant)
    assert mutant.hits


def test_two_would_take_one_work_for_theirs_without_the_guard_and_the_index(
    unindexed_sqlite: Database,
) -> None:
    mutant = REDUNDANT["record_submitted: held by no other"].mutant
    with pytest.raises(Broken) as caught:
        play(unindexed_sqlite, mutant.scenario, mutant)
    assert caught.value.invariant == invariants.ONE_JOB


def test_a_runner_that_looks_at_no_claims_in_the_answer_of_a_beat_is_caught(
    model_sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(model_sqlite, scenarios.a_beat_under_an_earlier_claim)
    monkeypatch.setattr(runners, "is_still_ours", lambda _claim, _answer: True)
    with pytest.raises(Broken, match=invariants.ONE_OWNER):
        play(model_sqlite, scenarios.a_beat_under_an_earlier_claim)


def test_a_start_that_others_may_take_over_before_it_is_known_to_be_stored_is_caught(
    model_sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(model_sqlite, scenarios.stored_unheard_and_given_up)
    monkeypatch.setattr(runners, "unconfirmed", dict)
    with pytest.raises(Broken, match=invariants.STORED_ONCE):
        play(model_sqlite, scenarios.stored_unheard_and_given_up)


@pytest.mark.parametrize("looked_at", ["state", "claim"])
def test_a_runner_that_looks_at_half_of_a_row_that_did_not_come_back_is_caught(
    model_sqlite: Database, monkeypatch: pytest.MonkeyPatch, looked_at: str
) -> None:
    def half_blind(claim: Claim, row: Any) -> str | None:
        if row is not None and looked_at == "claim":
            row = {**row, "state": JobState.RUNNING}
        elif row is not None:
            row = {**row, "runner_id": claim.runner_id, "claims": claim.claims}
        return heartbeat.lost_because(claim, row)

    scenario = scenarios.anothers_beat if looked_at == "state" else scenarios.a_beat_for_what_has_ended
    play(model_sqlite, scenario)
    monkeypatch.setattr(runners, "lost_because", half_blind)
    with pytest.raises(Broken, match=invariants.ONE_OWNER):
        play(model_sqlite, scenario)


def test_no_statement_that_changes_a_job_is_left_out() -> None:
    reading = {"look", "flagged", "get", "get_many", "get_or_none", "held", "new_owner", "now", "tables"}
    reading |= {"judged_by", "held_rows", "holds", "may_judge", "new_runner_id"}
    reading |= {"may_claim", "any_of", "none_of", "one_of", "in_spec", "is_worker", "is_worker_row"}
    unguarded = {"store", "prune"}  # it inserts; and it deletes what nobody can own any more
    unguarded |= {"hold_live", "free", "say_held"}  # a person's, of rows that nobody may own meanwhile
    unguarded |= {"prove_writable", "promptly"}  # they change nothing
    functions = {name for name in statements.__all__ if name[0].islower()} - reading - unguarded
    assert {mutant.statement for mutant in MUTANTS} == functions


def test_the_docs_list_every_guard_and_what_catches_its_loss() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = set(page.splitlines())
    told = [(mutant, mutant.caught_by) for mutant in MUTANTS]
    told += [(redundant.mutant, redundant.why) for redundant in REDUNDANT.values()]
    assert not [row for mutant, why in told if (row := mutant.row(why)) not in rows]
