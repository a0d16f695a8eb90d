"""What a backend has learnt of jobs, kept between two ticks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from jobrunner.backends.airbyte.reading import Failure, Job, observation_of
from jobrunner.backends.base import Observation

_FORGET_S = 2 * 3600.0  # a job that nobody asked about for so long is watched by nobody here
_FORGET_ENDED_S = 600.0  # one that has ended is asked about no more; if it is, the server says it again
_FORGET_EVERY_S = 600.0


@dataclass(slots=True)
class Known:
    """What is known of one watched job; all moments are on the monotonic clock."""

    asked_s: float
    """When somebody last wanted to know."""
    job: Job | None = None
    """The latest word; None: none yet, or it is not visible."""
    has_run: bool = False
    is_gone: bool = False
    """The server said, asked for this very job, that it is not visible."""
    looked_s: float = float("-inf")
    """When it was last asked for by its id."""
    trouble: str = ""
    """Why asking for it by its id gave no answer."""
    failures: Sequence[Failure] | None = None
    """Why it failed; None: nobody has asked yet."""
    page: str | None = None
    note: str = ""
    is_explained: bool = False
    """Nothing more is to be found out about it, beside what its status is."""
    _told: tuple[object, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, so that nothing more is to be asked."""
        return self.job is not None and self.job.is_over

    def is_forgotten(self, now_s: float) -> bool:
        """Whether nobody has asked about it for so long that nobody will."""
        return now_s - self.asked_s > (_FORGET_ENDED_S if self.is_over else _FORGET_S)

    @property
    def is_hidden(self) -> bool:
        """Whether it was asked for by its id and not seen, for whatever reason."""
        return self.job is None and (self.is_gone or bool(self.trouble))

    @property
    def is_unexplained(self) -> bool:
        """Whether more may be found out about it."""
        return self.job is not None and not self.is_explained

    def observation(self) -> Observation | None:
        """Return what is known, in our words; None where nothing is, or no longer; made once a change."""
        if self.job is None or (self.trouble and not self.is_over):
            return None
        base = (self.job, self.has_run, self.page, self.failures, self.note)
        if self._told[:-1] != base:
            failures = self.failures or ()
            told = observation_of(
                self.job, has_run=self.has_run, page=self.page, failures=failures, note=self.note
            )
            self._told = (*base, told)
        return cast("Observation", self._told[-1])


class Memory:
    """The watched jobs by their ids."""

    def __init__(self) -> None:
        self.jobs: dict[int, Known] = {}
        self._early: dict[int, Job] = {}  # told before anybody asked: the answer of a POST
        self._forget_at_s = float("-inf")

    def ask(self, ids: Iterable[int], now_s: float) -> None:
        """Take note that somebody watches these, and drop those about which nobody asks any more."""
        if now_s >= self._forget_at_s:
            self._forget_at_s = now_s + _FORGET_EVERY_S
            for job_id in [each for each, known in self.jobs.items() if known.is_forgotten(now_s)]:
                del self.jobs[job_id]
        for job_id in ids:
            known = self.jobs.get(job_id)
            if known is None:
                known = self.jobs[job_id] = Known(now_s)
                early = self._early.pop(job_id, None)
                if early is not None:
                    self.learn(early)
            known.asked_s = now_s

    def expect(self, job: Job) -> None:
        """Remember a job that somebody is about to watch."""
        if len(self._early) > 10_000:  # noqa: PLR2004  # whoever submitted them is gone
            self._early.clear()
        self._early[job.id] = job

    def learn(self, job: Job) -> None:
        """Take the server's word of a job, where it is watched; an end is final, and stays."""
        known = self.jobs.get(job.id)
        if known is None or known.is_over:
            return
        known.is_gone, known.trouble = False, ""
        if known.job != job:
            known.job = job
            known.has_run = known.has_run or job.has_begun

    def gone(self, job_id: int) -> None:
        """Take the server's word that a job is not visible."""
        known = self.jobs.get(job_id)
        if known is not None and not known.is_over:
            known.job, known.is_gone, known.trouble = None, True, ""

    def open(self) -> list[int]:
        """Return the watched jobs that have not ended."""
        return [job_id for job_id, known in self.jobs.items() if not known.is_over]

    def connection_ids(self) -> list[str]:
        """Return the Airbyte connections of the jobs that are known."""
        found = (known.job.connection_id for known in self.jobs.values() if known.job is not None)
        return list(dict.fromkeys(filter(None, found)))
