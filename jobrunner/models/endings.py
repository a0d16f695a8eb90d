"""How a job ends before its code does: by a kill, or by its timeout."""

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import RowMapping

from jobrunner.states import JobState


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """The state and the message with which a job ends before its code does."""

    state: JobState
    message: str


TIMED_OUT = EarlyEnd(JobState.FAILED, "the timeout has passed")


def early_end(row: RowMapping, now: dt.datetime) -> EarlyEnd | None:
    """Return how a job has to end by what its row says at `now`, the database's time; None: it goes on.

    Of a kill and a timeout, the one that came first counts, whoever looks and whenever.
    """
    killed, deadline = row["kill_requested_at"], row["deadline_at"]
    is_late = deadline is not None and deadline < now
    if killed is not None and not (is_late and deadline < killed):
        return EarlyEnd(JobState.KILLED, kill_message(row))
    return TIMED_OUT if is_late else None


def kill_message(row: RowMapping) -> str:
    """Return what a killed job says: by whom and why, as far as the flag tells."""
    by = f" by {row['kill_requested_by']}" if row["kill_requested_by"] else ""
    why = f": {row['kill_reason']}" if row["kill_reason"] else ""
    return f"killed{by}{why}"
