"""Any text in any column: it is stored and read again, stored in a visible form, or refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.errors import JobrunnerError, UsageError
from jobrunner.models import BaseJob
from jobrunner.statements import Sight
from jobrunner.states import JobState
from jobrunner.testing import MemoryMonitorJob
from tests.fuzz.command_line import ask
from tests.fuzz.examples import TIMEOUT_S, examples
from tests.fuzz.messages import ensure_message
from tests.fuzz.texts import any_json, any_text
from tests.helpers import a_running_job, row_of

pytestmark = pytest.mark.timeout(TIMEOUT_S)

_plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(any_text, any_text, any_text, any_text)
@examples(40)
def test_a_kill_counts_whatever_words_come_with_it(
    database: Database, name: str, dag_id: str, by: str, reason: str
) -> None:
    try:
        job = MemoryMonitorJob(name=name, dag_id=dag_id).store()
    except UsageError as error:
        ensure_message(str(error))
        return
    assert job.request_kill(by=by, reason=reason) is JobState.KILLED  # it was never submitted
    row = row_of(database, job.id)
    assert row["kill_requested_at"] is not None
    ask("list", "--json")
    ask("show", str(job.id), "--json")
    ask("show", str(job.id))


@given(any_text, any_text, any_text, st.dictionaries(any_text, any_json(4), max_size=3))
@examples(40)
def test_an_end_is_written_whatever_words_an_outside_system_has(
    database: Database, message: str, state: str, end: str, detail: dict[str, Any]
) -> None:
    claim, _ = a_running_job(database, external_id="x-1")
    sight = Sight(claim.job_id, claim.claims, "x-1", external_state=state, message=message, detail=detail)
    with database.write() as connection:
        assert statements.observe_many(connection, claim.runner_id, [sight]) == {claim.job_id}
    with database.write() as connection:
        assert statements.end(connection, claim, JobState.FAILED, end, external_id="x-1")
    row = row_of(database, claim.job_id)
    assert row["state"] is JobState.FAILED
    shown = json.loads(ask("show", str(claim.job_id), "--json").out)
    assert shown["state"] == "failed"
    with pytest.raises(JobrunnerError):
        BaseJob.get(claim.job_id).result(0)


@given(_plain_text, _plain_text)
@examples(40)
def test_what_both_databases_can_hold_is_read_as_it_was_written(
    database: Database, reason: str, message: str
) -> None:
    claim, _ = a_running_job(database)
    with database.write() as connection:
        statements.request_kill(connection, claim.job_id, "me", reason)
    with database.write() as connection:
        assert statements.end(connection, claim, JobState.KILLED, message)
    row = row_of(database, claim.job_id)
    assert (row["kill_reason"], row["message"]) == (reason, message)
