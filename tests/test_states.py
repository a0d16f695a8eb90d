from itertools import product

import pytest

from jobrunner.states import FINAL_PHASES, TERMINAL_STATES, JobState, Phase, is_allowed


def test_there_are_six_states_and_the_last_four_are_terminal() -> None:
    assert [str(state) for state in JobState] == ["queued", "running", "success", "failed", "killed", "lost"]
    assert [state for state in JobState if state.is_terminal] == list(JobState)[2:]


@pytest.mark.parametrize(("before", "after"), list(product(sorted(TERMINAL_STATES), JobState)))
def test_nothing_follows_a_terminal_state(before: JobState, after: JobState) -> None:
    assert not is_allowed(before, after)


def test_a_queued_job_may_only_begin_or_be_killed() -> None:
    allowed = {after for after in JobState if is_allowed(JobState.QUEUED, after)}
    assert allowed == {JobState.RUNNING, JobState.KILLED}


def test_a_running_job_may_be_adopted_released_or_end() -> None:
    assert all(is_allowed(JobState.RUNNING, after) for after in JobState)


def test_a_phase_is_final_when_the_outside_work_has_ended() -> None:
    assert (
        {phase for phase in Phase if phase.is_final}
        == set(FINAL_PHASES)
        == set(Phase) - {"waiting", "running"}
    )
