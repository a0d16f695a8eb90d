"""The model test: whatever happens in whatever order, what PROTOCOL 12 promises holds."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from jobrunner.database import Database
from jobrunner.settings import Settings
from tests.helpers import IS_LONG
from tests.model import scenarios
from tests.model.invariants import judge
from tests.model.machine import Machine, machine_on
from tests.model.mutants import MUTANTS
from tests.model.playing import play
from tests.model.world import World

_LONG = 40  # times as many examples in the long form


def short_or_long(examples: int) -> Any:
    return settings(
        max_examples=examples * (_LONG if IS_LONG else 1),
        stateful_step_count=40,
        deadline=None,
        derandomize=not IS_LONG,
        database=None,
        print_blob=True,
        # Shrinking takes minutes: only who looks for faults waits for it.
        phases=[Phase.generate, Phase.shrink] if IS_LONG else [Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600 if IS_LONG else 300)
def test_what_the_protocol_promises_holds_whatever_happens(model_database: Database) -> None:
    machine = machine_on(lambda: World(model_database, judge))
    examples = 120 if model_database.is_sqlite else 40
    run_state_machine_as_test(machine, settings=short_or_long(examples))


def test_it_holds_in_every_scenario_that_some_guard_is_there_for(model_database: Database) -> None:
    for mutant in MUTANTS:
        play(model_database, mutant.scenario)


def test_a_row_that_is_held_locked_holds_up_nobody_else(model_database: Database) -> None:
    if model_database.is_sqlite:
        pytest.skip("SQLite locks no rows")
    play(model_database, scenarios.a_row_held_locked)


def test_the_same_claim_granted_twice_to_one_runner_submits_once(model_database: Database) -> None:
    play(model_database, scenarios.the_same_claim_twice)


@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.a_burst_of_ends,
        scenarios.stored_unheard_and_given_up,
        scenarios.a_kill_after_a_cancellation_of_an_earlier_attempt,
        scenarios.a_deadline_that_passes_between_two_attempts,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_it_holds_when(model_database: Database, scenario: scenarios.Scenario) -> None:
    play(model_database, scenario)


def test_a_live_owner_whose_row_was_held_locked_is_not_adopted(postgres_url: str) -> None:
    database = Database(Settings(database_url=postgres_url))
    try:
        play(database, still_owned_by_the_first)
    finally:
        database.dispose()


def still_owned_by_the_first(machine: Machine) -> None:
    scenarios.a_live_owner_whose_row_was_held_locked(machine)
    assert machine.runners[0].held
