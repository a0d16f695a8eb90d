"""Submitting again what failed for a cause that its job's policy names: a new token each time."""

import uuid
from typing import TYPE_CHECKING

from sqlalchemy import RowMapping

from jobrunner import statements
from jobrunner.backends.base import Observation
from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger
from jobrunner.owned import OwnedJob
from jobrunner.states import Phase

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)


def shall_be_resubmitted(owned: OwnedJob, last: Observation) -> bool:
    """Whether work that ended so is to be submitted again: never what somebody wants to end."""
    return (
        last.phase is Phase.FAILED
        and owned.resubmit.get(last.cause, 0) > 0
        and not owned.kill_seen
        and owned.cancellation.cause is None
        and monotonic_s() < owned.deadline_s
    )


async def resubmit(runner: "Runner", owned: OwnedJob, last: Observation) -> RowMapping | None:
    """Make a job ready to be submitted under a new token, and return its row; None: it may not be."""
    assert owned.external_id is not None  # it was asked about
    left = {**owned.resubmit, last.cause: owned.resubmit[last.cause] - 1}
    token = uuid.uuid4().hex
    said = last.message or last.external_state
    message = f"submitted again after {last.cause} ({left[last.cause]} more times): {said}"
    change = (owned.claim, owned.token, token, owned.external_id, left, message)
    if not await runner.persist(statements.resubmit, *change):
        row = await runner.persist(statements.get_or_none, owned.job_id)
        if row is None or row["submit_token"] != token:  # else only the answer of an earlier try was lost
            return None
    log.info("submitted again", job=owned.job_id, cause=last.cause, left=left[last.cause])
    owned.start_anew(token, left)
    return await runner.persist(statements.get_or_none, owned.job_id)
