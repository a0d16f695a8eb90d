"""What a runner knows of each row that it owns: the monitor jobs, and perhaps the row of its own process."""

import asyncio
import datetime as dt
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from sys import intern
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from jobrunner.backends.base import Observation
from jobrunner.clock import monotonic_s
from jobrunner.due_queue import Due
from jobrunner.hooks import HookCall
from jobrunner.statements import Attempt, Claim
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.channel import Channel
    from jobrunner.database_threads import DatabaseThreads
    from jobrunner.models import MonitorJob

KILL, DEADLINE, START_TIMEOUT = "kill", "deadline", "start_timeout"
"""The causes for which a job's work is cancelled (`cancel_cause`)."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})  # one for all of 100,000 jobs


@dataclass(frozen=True, slots=True)
class Shown:
    """What a job's row shows of its work outside."""

    external_state: str | None = None
    message: str | None = None
    detail: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @classmethod
    def of(cls, observation: Observation) -> Self:
        """Return what an observation lets the row show."""
        # There are few words for states, and each answer brings copies of its own.
        state = intern(str(observation.external_state)) if observation.external_state else None
        detail = dict(observation.detail) if observation.detail else _NOTHING
        return cls(state, observation.message or state, detail)

    def unreadable(self, since: dt.datetime, message: str) -> "Shown":
        """Return this with the word that nothing newer can be read."""
        words = f"status unreadable since {since:%H:%M} UTC: {message}"
        return Shown(self.external_state, words, self.detail)

    def uncancelled(self, trouble: str) -> "Shown":
        """Return this with the word that a wish to cancel is not fulfilled yet."""
        words = ": ".join(filter(None, (self.message, f"cancel not taken: {trouble}")))
        return Shown(self.external_state, words, self.detail)

    def missing(self, reason: str) -> "Shown":
        """Return this with the word that the outside system does not know the work (yet, or any more)."""
        return Shown(self.external_state, f"not found outside: {reason}", self.detail)

    @property
    def words(self) -> str:
        """The external state and the message, for a person: each once."""
        state, message = self.external_state or "", self.message or ""
        return message if state in message else f"{state}: {message}".removesuffix(": ")

    def columns(self) -> dict[str, Any]:
        """Return the columns of it that are to be written; None: nothing was said."""
        return {
            "external_state": self.external_state,
            "message": self.message,
            "detail": dict(self.detail) or None,
        }


@dataclass(slots=True, eq=False, kw_only=True)
class OwnedRow:
    """A row that this process owns, and beats for: the beating thread reads it, and moves `good_s`."""

    claim: Claim
    heartrate: float
    good_s: float
    """The moment before the last good beat for it was sent; the beating thread moves it."""
    has_callback: bool = False
    is_refused: bool = False
    """The database refused a beat for what the row holds; that was said."""
    over: bool = False
    """Ended, released or lost: nothing is done for it any more."""

    @property
    def job_id(self) -> int:
        """The row's id."""
        return self.claim.job_id

    def is_making_progress(self) -> bool:
        """Whether a beat would be honest (PROTOCOL 3)."""
        raise NotImplementedError


@dataclass(slots=True, eq=False, kw_only=True)
class OwnProcess(OwnedRow):
    """The row of this process itself, such as a worker's."""

    on_flagged: Callable[[], None]
    """Called on the event loop when somebody wants it killed, perhaps several times."""
    on_lost: Callable[[str], None]
    """Called on the event loop when the row is no longer ours, with the reason."""
    progress_by_s: float
    """When the round under way will have been completed."""

    def is_making_progress(self) -> bool:
        """Whether its rounds are on time."""
        return monotonic_s() <= self.progress_by_s


@dataclass(slots=True, eq=False, kw_only=True)
class Cancellation:
    """What is known of the cancelling of one attempt; another attempt begins with a new one."""

    start_by_s: float = math.inf
    """When work that has not started will be cancelled; it counts from the submission."""
    waited: Shown | None = None
    """What was shown last of work that had not started, before it was cancelled."""
    is_begun: bool = False
    """Whether somebody here is about it: one alone asks the backend."""
    cause: str | None = None
    """Why it is cancelled, as the row says."""
    trouble: str | None = None
    """Why the backend could not be asked, if that was its last answer."""


@dataclass(slots=True, eq=False)
class Judgement:
    """What is under way to learn what observations mean for a job."""

    latest: tuple[Attempt, Observation] | None = None
    """The one that is to be judged next: of several, the latest alone."""
    is_under_way: bool = False
    call: HookCall | None = None
    """The call of its `judge`: there is one at a time, though nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a job comes from, until its class has said how it is watched."""

    job_class: type
    make: Callable[[], object]
    """Returns the job; it runs the class's own code."""
    connection: str | None
    """As its row names it."""
    poll_interval: float | None
    """As its row says."""
    on_refused: Callable[[Exception], None] | None = None
    """Called when it is given back because it cannot be watched here."""


@dataclass(slots=True, eq=False, kw_only=True)
class OwnedJob(OwnedRow):
    """One monitor job of this runner. The event loop's thread changes it; the beating thread reads it."""

    source: Source | None
    """None once its class has said how it is watched, and there is a `way` to its backend."""
    way: "Channel | None" = None
    threads: "DatabaseThreads"
    poll_interval: float = math.inf
    token: str
    external_id: str | None
    job: "MonitorJob | None" = None
    """The object, where its class has a say in the watching: it is many times as large as all else here."""
    is_bound_here: bool = False
    """Whether its work will be bound to this host."""
    ended: asyncio.Future[JobState] | None = None
    """What `Runner.take` gave out: how it ended, or why it is no longer ours."""
    taken_s: float
    """When this runner came to own it."""
    is_called_back: bool = False
    on_kill: HookCall | None = None
    """The call of its `on_kill`: there is one, whatever happens to the attempts."""
    uncleaned: str | None = None
    """Why its `on_kill` was not called though it was killed: the message of its end says so."""
    judgement: "Judgement | None" = None
    """Of an observation, where the class has a `judge` of its own and may take its time for it."""
    deadline_s: float = math.inf
    start_timeout: float | None = None
    moment: Due | None = None
    """The next moment at which it may be out of time."""
    has_started: bool = False
    progress_by_s: float = math.inf
    """When its own step under way will have been completed (PROTOCOL 3); the poller has its own promise."""
    is_watched: bool = False
    kill_seen: bool = False
    cancellation: Cancellation = field(default_factory=Cancellation)
    """Of the current attempt."""
    resubmit: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """How often it may still be submitted again, by the cause of a failure."""
    seen: bool = False
    gone_s: float = 0.0
    """For how long, all in all, the backend has said that it does not know the job."""
    gone_at_s: float | None = None
    """When it said so, if that was its last word."""
    errors: int = 0
    unreadable_since: dt.datetime | None = None
    shown: Shown | None = None
    """What the row shows, as far as this runner wrote it."""
    to_show: Shown | None = None
    """What it is to show, while that is still to be written."""
    concluding: bool = False
    """Whether its attempt was seen to have ended, and nothing more is asked about it."""
    is_ending: bool = False
    """Whether its end waits to be written: it is beaten for until then, and the write says whose it is."""
    _waits: int = 0
    _waits_since_s: float = 0.0

    @property
    def channel(self) -> "Channel":
        """The way to its backend, which it has before anything is asked there."""
        assert self.way is not None, f"job {self.job_id} has no way to its backend yet"
        return self.way

    @property
    def attempt(self) -> Attempt:
        """The current attempt."""
        return Attempt(self.token, self.external_id)

    @property
    def cancelling(self) -> bool:
        """Whether the current attempt is being cancelled."""
        return self.cancellation.is_begun

    @property
    def cancel_trouble(self) -> str | None:
        """Why the backend could not be asked to cancel the current attempt."""
        return self.cancellation.trouble

    @property
    def start_by_s(self) -> float:
        """When the current attempt will be cancelled, if it has not started by then."""
        return self.cancellation.start_by_s

    def is_making_progress(self) -> bool:
        """Whether its step under way, and its poller, are on time."""
        if self._waits:  # for its turn at the database, perhaps behind thousands: it is not stuck
            return self.threads.is_making_progress()
        way = self.way
        return monotonic_s() <= self.progress_by_s and (way is None or way.is_making_progress())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it wait for the database; the time does not count against the step under way."""
        if not self._waits:
            self._waits_since_s = monotonic_s()
        self._waits += 1
        try:
            yield
        finally:
            if self._waits == 1:  # before it counts as over: the beating thread looks at any time
                self.progress_by_s += monotonic_s() - self._waits_since_s
            self._waits -= 1

    def was_seen(self, observation: Observation) -> None:
        """Take note that the backend knows the job."""
        self.has_started = self.has_started or observation.has_started
        self.seen, self.gone_s, self.gone_at_s = True, 0.0, None
        self.errors, self.unreadable_since = 0, None

    def start_anew(self, token: str, resubmit: Mapping[str, int] | None = None) -> None:
        """Forget the attempt that failed, or was proven absent, and all that concerned it alone."""
        self.token, self.external_id = token, None
        if resubmit is not None:
            self.resubmit = resubmit
        self.cancellation = Cancellation()
        self.is_watched = self.seen = self.has_started = False
        self.gone_s, self.gone_at_s = 0.0, None
        self.errors, self.unreadable_since = 0, None
        self.shown = self.to_show = None

    def settle(self, outcome: JobState | BaseException) -> None:
        """Tell whoever gave the job to the runner, once."""
        if self.ended is None or self.ended.done():
            return
        if isinstance(outcome, JobState):
            self.ended.set_result(outcome)
        else:
            self.ended.set_exception(outcome)
            self.ended.exception()  # nobody has to listen: it was logged
