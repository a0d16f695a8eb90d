"""Every statement that writes a job's row, exactly as PROTOCOL has it, for both databases.

Core statements on the table, never ORM entities: an unknown job_type must not raise, a subclass
filter must not creep in, and memory must never be merged over what others wrote. Every write for an
owner carries his whole claim, (runner_id, claims), and its row count is looked at.
"""

from jobrunner.statements.beating import Beaten, beat, flagged, look
from jobrunner.statements.claiming import (
    adopt,
    adopt_many,
    claim_many,
    claim_queued,
    confirm,
    find,
    holds,
    lose,
    lose_many,
    store,
    store_once,
)
from jobrunner.statements.ending import End, end, end_many, judged_by, release, release_many
from jobrunner.statements.holding import HELD, UNFOUND, free, held_rows, hold_live, say_held
from jobrunner.statements.killing import Begun, Cancel, begin_cancel_many, request_kill
from jobrunner.statements.observing import Sight, observe_many, tell
from jobrunner.statements.probing import prove_writable
from jobrunner.statements.pruning import prune
from jobrunner.statements.submitting import (
    begin_submit,
    held,
    record_submitted,
    renew_token,
    resubmit,
    say_unsubmitted,
)
from jobrunner.statements.table import (
    PROTOCOL,
    Attempt,
    Claim,
    Owner,
    Sighting,
    any_of,
    get,
    get_many,
    get_or_none,
    may_claim,
    may_judge,
    new_owner,
    new_runner_id,
    none_of,
    now,
    one_of,
    promptly,
    tables,
)
from jobrunner.statements.workers import WORKER, in_spec, is_worker, is_worker_row

__all__ = [
    "HELD",
    "PROTOCOL",
    "UNFOUND",
    "WORKER",
    "Attempt",
    "Beaten",
    "Begun",
    "Cancel",
    "Claim",
    "End",
    "Owner",
    "Sight",
    "Sighting",
    "adopt",
    "adopt_many",
    "any_of",
    "beat",
    "begin_cancel_many",
    "begin_submit",
    "claim_many",
    "claim_queued",
    "confirm",
    "end",
    "end_many",
    "find",
    "flagged",
    "free",
    "get",
    "get_many",
    "get_or_none",
    "held",
    "held_rows",
    "hold_live",
    "holds",
    "in_spec",
    "is_worker",
    "is_worker_row",
    "judged_by",
    "look",
    "lose",
    "lose_many",
    "may_claim",
    "may_judge",
    "new_owner",
    "new_runner_id",
    "none_of",
    "now",
    "observe_many",
    "one_of",
    "promptly",
    "prove_writable",
    "prune",
    "record_submitted",
    "release",
    "release_many",
    "renew_token",
    "request_kill",
    "resubmit",
    "say_held",
    "say_unsubmitted",
    "store",
    "store_once",
    "tables",
    "tell",
]
