"""The guards of the statements, each taken out in turn: the model test has to notice every one of them."""

import re
from dataclasses import dataclass, field
from functools import partial

from tests.model import invariants
from tests.model import scenarios as play

_FENCED = (
    "confirm",
    "end",
    "release",
    "begin_submit",
    "renew_token",
    "resubmit",
    "say_unsubmitted",
    "tell",
)
_BULK = ("release_many", "observe_many", "end_many", "begin_cancel_many")
_CLAIMING = ("claim_queued", "claim_many", "adopt", "adopt_many")
_ONE = ("adopt", "lose")
_MANY = ("adopt_many", "lose_many")

_RUNNER = r"job\.runner_id = \?"
_CLAIMS = r"job\.claims = \?"
_STATE = r"job\.state = \?"
_SAME_RUNNER = r"job\.runner_id IS (\?|json_extract\([^)]*\))"
_SAME_CLAIMS = r"job\.claims = (\?|json_extract\([^)]*\))"
_SAME_STATE = r"job\.state = \?|\(job\.state \|\| ''\) = \?"
_SAME_BEAT = (
    r"coalesce\(strftime\('[^']*', job\.latest_heartbeat\), '[^']*'\) = "
    r"coalesce\(strftime\('[^']*', (\?|json_extract\([^)]*\))\), '[^']*'\)"
)
_HOST = r"\(job\.host_id IS NULL OR job\.host_id IN \([^)]*\)\)"
_TOKEN = r"job\.submit_token = \?"
_ANY_TOKEN = r"job\.submit_token IS json_extract\([^)]*\)"
_EXTERNAL_ID = r"job\.external_id = (\?|json_extract\([^)]*\))"
_NO_EXTERNAL_ID = r"job\.external_id IS NULL"
_ANY_EXTERNAL_ID = r"job\.external_id IS (\?|json_extract\([^)]*\))"
_UNFLAGGED = r"job\.kill_requested_at IS NULL"

_NO_GUARD = r"(\g<0> OR 1 = 1)"  # not taken out of the text: its parameter has to stay


@dataclass(slots=True)
class Mutant:
    """One statement without one of its guards, by its SQL on SQLite; `hits`: how often it was sent so."""

    statement: str
    guard: str
    pattern: str
    scenario: play.Scenario
    replacement: str = _NO_GUARD
    hits: int = field(default=0, compare=False)

    @property
    def caught_by(self) -> str:
        """The invariant that notices it."""
        return _CAUGHT_BY[self.name]

    @property
    def name(self) -> str:
        return f"{self.statement}: {self.guard}"

    def row(self, why: str) -> str:
        """Return its row of the table in the docs."""
        return f"| `{self.statement}` | {self.guard} | {why} |"

    def applied(self, running: str, sql: str) -> str:
        """Return the SQL of the statement that is running, without the guard if it is the one."""
        if running != self.statement:
            return sql
        # Only what follows WHERE: what is assigned before it is no guard.
        head, where, tail = sql.partition("WHERE") if self.replacement == _NO_GUARD else ("", "", sql)
        tail, hits = re.subn(self.pattern, self.replacement, tail)
        self.hits += hits
        return head + where + tail


@dataclass(frozen=True, slots=True)
class Redundant:
    """A guard that another one stands behind."""

    mutant: Mutant
    why: str


def _fences() -> list[Mutant]:
    of = dict.fromkeys(_FENCED, (_RUNNER, _CLAIMS, _STATE))
    of |= dict.fromkeys(_BULK, (_RUNNER, _SAME_CLAIMS, _SAME_STATE))
    return [
        Mutant(name, guard, pattern, play.late(guard, name))
        for name, patterns in of.items()
        for guard, pattern in zip(("runner_id", "claims", "state"), patterns, strict=True)
    ]


def _sightings() -> list[Mutant]:
    guards = {
        "runner_id": _SAME_RUNNER,
        "claims": _SAME_CLAIMS,
        "state": _SAME_STATE,
        "latest_heartbeat": _SAME_BEAT,
    }
    return [
        Mutant(name, guard, pattern, play.orphan(guard, name))
        for name in (*_ONE, *_MANY)
        for guard, pattern in guards.items()
    ]


def _bars() -> list[Mutant]:
    guards = {
        "host_uid": r"\(job\.host_uid IS NULL OR job\.host_uid = \?\)",
        "needs": r"\(job\.needs IS NULL OR job\.needs <= \?\)",
        "held_at": r"\(job\.held_at IS NULL OR job\.kill_requested_at IS NOT NULL\)",
    }
    claims = [
        Mutant(name, guard, pattern, partial(play.a_claim_of_what_is_barred, by=guard))
        for name in ("claim_queued", "claim_many")
        for guard, pattern in guards.items()
    ]
    orphans = [
        Mutant(
            name,
            guard,
            pattern,
            partial(
                play.an_orphan_that_is_barred,
                by=guard,
                many=name in _MANY,
                adoptable=name.startswith("adopt"),
            ),
        )
        for name in (*_ONE, *_MANY)
        for guard, pattern in guards.items()
        if name.startswith("adopt") or guard != "host_uid"
    ]
    return [*claims, *orphans]


_TAKEN = "DO UPDATE SET runner_id = excluded.runner_id, state = excluded.state, claims = excluded.claims"

MUTANTS = [
    Mutant("store_once", "a key that is there", "DO NOTHING", play.stored_unheard, _TAKEN),
    Mutant("find", "key", r'job\."key" = \?', play.stored_unheard),
    Mutant("beat", "runner_id", _RUNNER, play.anothers_beat),
    Mutant("beat", "state", _STATE, play.a_beat_for_what_has_ended),
    Mutant("claim_queued", "state", _STATE, play.a_claim_of_what_runs),
    Mutant("claim_queued", "host_id", _HOST, play.a_claim_from_another_host),
    Mutant("claim_many", "state", _STATE, play.a_claim_of_what_runs),
    Mutant("claim_many", "host_id", _HOST, play.a_bulk_claim_from_another_host),
    Mutant("claim_many", "connection", r"job\.connection IS \?", play.a_claim_of_what_is_not_served),
    *_sightings(),
    *_bars(),
    *(
        Mutant(f"adopt{many}", guard, pattern, partial(scenario, many=bool(many)))
        for many in ("", "_many")
        for guard, pattern, scenario in (
            ("adoptable", r"job\.adoptable = 1", play.an_orphan_that_is_not_adoptable),
            ("host_id", _HOST, play.an_orphan_of_another_host),
        )
    ),
    *_fences(),
    Mutant("end", "external_id", _EXTERNAL_ID, play.an_outcome_of_an_earlier_attempt),
    Mutant("end_many", "external_id", _ANY_EXTERNAL_ID, play.an_end_of_an_earlier_attempt),
    Mutant(
        "end_many",
        "the cause it was judged by",
        r"coalesce\(job\.cancel_cause, \?\) = json_extract\([^)]*\)",
        play.an_end_judged_before_its_kill,
    ),
    Mutant("begin_submit", "submit_token", _TOKEN, play.a_token_that_was_renewed_unheard),
    Mutant("begin_submit", "no external_id", _NO_EXTERNAL_ID, play.a_submission_recorded_by_a_slow_runner),
    Mutant("begin_submit", "no kill wished", _UNFLAGGED, play.a_kill_before_the_submission),
    Mutant("record_submitted", "submit_token", _TOKEN, play.a_record_under_an_earlier_token),
    Mutant("record_submitted", "state", r"job\.state IN \(\?, \?\)", play.a_record_after_the_end),
    Mutant(
        "record_submitted",
        "no other external_id",
        r"\(job\.external_id IS NULL OR job\.external_id = \?\)",
        play.a_record_of_a_second_job,
    ),
    Mutant("renew_token", "submit_token", _TOKEN, play.a_token_that_was_renewed_unheard),
    Mutant("renew_token", "no kill wished", _UNFLAGGED, play.a_kill_before_another_token),
    Mutant(
        "resubmit", "submit_token", _TOKEN, partial(play.failed_once_more, after="its resubmission was lost")
    ),
    Mutant(
        "resubmit", "external_id", _EXTERNAL_ID, partial(play.failed_once_more, after="its record was lost")
    ),
    Mutant("resubmit", "no kill wished", _UNFLAGGED, partial(play.failed_once_more, after="a kill")),
    Mutant(
        "resubmit",
        "not being cancelled",
        r"job\.cancel_cause IS NULL",
        partial(play.failed_once_more, after="its time was over"),
    ),
    Mutant("say_unsubmitted", "no external_id", _NO_EXTERNAL_ID, play.says_unsubmitted),
    Mutant("observe_many", "external_id", _EXTERNAL_ID, play.an_observation_of_an_earlier_attempt),
    Mutant("request_kill", "state", r"job\.state IN \(\?, \?\)", play.a_kill_after_the_end),
    Mutant(
        "request_kill",
        "the first time stands",
        r"coalesce\(job\.kill_requested_at, ",
        play.killed_twice,
        "coalesce(NULL, ",
    ),
    Mutant(
        "request_kill",
        "the first person stands",
        r"CASE WHEN \(job\.kill_requested_at IS NULL\)",
        play.killed_twice,
        "CASE WHEN (1 = 1)",
    ),
    Mutant("request_kill", "still queued, to be killed at once", _STATE, play.a_kill_before_the_submission),
    Mutant("request_kill", "nothing begun", r"job\.submit_started_at IS NULL", play.a_kill_of_what_was_begun),
    Mutant("request_kill", "no external_id", _NO_EXTERNAL_ID, play.a_kill_of_what_runs_outside),
    Mutant(
        "begin_cancel_many",
        "the first cause stands",
        r"coalesce\(job\.cancel_cause, ",
        play.cancelled_for_two_causes,
        "coalesce(NULL, ",
    ),
    Mutant(
        "begin_cancel_many",
        "the attempt",
        f"{_ANY_TOKEN} AND {_ANY_EXTERNAL_ID}",
        play.a_cancellation_of_an_earlier_attempt,
    ),
    Mutant(
        "begin_cancel_many",
        "external_id",
        _ANY_EXTERNAL_ID,
        play.a_cancellation_of_work_whose_record_was_lost,
    ),
]

REDUNDANT = {
    mutant.name: Redundant(mutant, why)
    for mutant, why in (
        (
            Mutant(
                "record_submitted",
                "held by no other",
                r"NOT \(EXISTS",
                play.two_jobs_that_find_one,
                "(1 = 1 OR EXISTS",
            ),
            "the unique index on (connection, external_id) lets in only one as well",
        ),
        (
            Mutant(
                "begin_cancel_many", "submit_token", _ANY_TOKEN, play.a_cancellation_of_an_earlier_attempt
            ),
            "another attempt has other work, and so another external id, or none yet",
        ),
        (
            Mutant("renew_token", "external_id", _NO_EXTERNAL_ID, play.a_token_that_was_renewed_unheard),
            "a token is renewed only when its work was proven absent, and only in place of that token",
        ),
        (
            Mutant(
                "request_kill",
                "flagged, to be killed at once",
                r"job\.kill_requested_at IS NOT NULL",
                play.killed_twice,
            ),
            "the statement right before it has just set the flag",
        ),
    )
}
"""Guards without which nothing goes wrong."""

_CAUGHT_BY = {
    name: invariant
    for invariant, names in {
        invariants.ONE_OWNER: [
            "beat: runner_id",
            "claim_queued: state",
            "claim_many: state",
            "confirm: runner_id",
            "confirm: claims",
            "end: runner_id",
            "end: claims",
            "release: runner_id",
            "release: claims",
            "begin_submit: runner_id",
            "begin_submit: claims",
            "renew_token: runner_id",
            "renew_token: claims",
            "resubmit: runner_id",
            "resubmit: claims",
            "say_unsubmitted: runner_id",
            "say_unsubmitted: claims",
            "begin_cancel_many: runner_id",
            "begin_cancel_many: claims",
            "tell: runner_id",
            "tell: claims",
            "release_many: runner_id",
            "release_many: claims",
            "observe_many: runner_id",
            "observe_many: claims",
            "end_many: runner_id",
            "end_many: claims",
        ],
        invariants.STORED_ONCE: [
            "find: key",
        ],
        invariants.OWN_ATTEMPT: [
            "begin_cancel_many: the attempt",
            "begin_cancel_many: external_id",
        ],
        invariants.NO_REVIVAL: [
            "beat: state",
        ],
        invariants.SERVED: [
            "claim_queued: host_id",
            "claim_many: host_id",
            "claim_many: connection",
            "adopt: adoptable",
            "adopt: host_id",
            "adopt_many: adoptable",
            "adopt_many: host_id",
            *(f"{name}: host_uid" for name in _CLAIMING),
            *(
                f"{name}: {guard}"
                for name in (*_CLAIMING, "lose", "lose_many")
                for guard in ("needs", "held_at")
            ),
        ],
        invariants.LIVE_OWNER: [
            "adopt: runner_id",
            "adopt: claims",
            "adopt: latest_heartbeat",
            "lose: runner_id",
            "lose: claims",
            "lose: latest_heartbeat",
            "adopt_many: runner_id",
            "adopt_many: claims",
            "adopt_many: latest_heartbeat",
            "lose_many: runner_id",
            "lose_many: claims",
            "lose_many: latest_heartbeat",
        ],
        invariants.ABSORBING: [
            "adopt: state",
            "lose: state",
            "adopt_many: state",
            "lose_many: state",
            "confirm: state",
            "end: state",
            "release: state",
            "begin_submit: state",
            "renew_token: state",
            "resubmit: state",
            "say_unsubmitted: state",
            "begin_cancel_many: state",
            "tell: state",
            "release_many: state",
            "observe_many: state",
            "end_many: state",
            "record_submitted: state",
            "request_kill: state",
        ],
        invariants.TRUE_OUTCOME: [
            "end: external_id",
            "end_many: external_id",
            "say_unsubmitted: no external_id",
            "observe_many: external_id",
            "request_kill: no external_id",
        ],
        invariants.ONE_JOB: [
            "begin_submit: submit_token",
            "begin_submit: no external_id",
            "record_submitted: submit_token",
            "record_submitted: no other external_id",
            "renew_token: submit_token",
            "resubmit: submit_token",
            "resubmit: external_id",
        ],
        invariants.KILL: [
            "begin_submit: no kill wished",
            "renew_token: no kill wished",
            "resubmit: no kill wished",
            "resubmit: not being cancelled",
            "request_kill: the first time stands",
            "request_kill: the first person stands",
            "request_kill: nothing begun",
            "begin_cancel_many: the first cause stands",
            "end_many: the cause it was judged by",
        ],
        invariants.ONE_EVENT: [
            "store_once: a key that is there",
            "request_kill: still queued, to be killed at once",
        ],
    }.items()
    for name in names
}
