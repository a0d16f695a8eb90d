"""The world outside: what was submitted under which token, and what became of it."""

from dataclasses import dataclass
from enum import StrEnum

from jobrunner.backends.base import Absent, Found
from jobrunner.states import Phase

SEND_WITHIN_S = 10.0
"""How long after its intent a submission may still be sent, where late ones are refused by time."""


class Kind(StrEnum):
    """By what a system can prove that a submission never reached it (PROTOCOL 8)."""

    RECORD = "record"  # looking for it leaves a record, and a late submission finds that
    WINDOW = "window"  # a late submission is not sent
    NUMBERS = "numbers"  # never: only that a number is new can be told


class Broken(AssertionError):
    """An invariant does not hold: which one, and how."""

    def __init__(self, invariant: str, how: str) -> None:
        super().__init__(f"{invariant}: {how}")
        self.invariant = invariant


class Unreachable(Exception):
    """No answer came: what was asked for may have been done, or not."""


class Refused(Exception):
    """The submission was not taken, and never will be under this token."""


class NotSent(Exception):
    """It was too late to send, and so nothing was."""


@dataclass(slots=True)
class Work:
    """One job of the outside system; `job_id` is for the eyes of the test only."""

    number: int
    kind: Kind
    token: str | None
    job_id: int | None
    phase: Phase = Phase.RUNNING
    cancelled_by_us: bool = False

    @property
    def external_id(self) -> str:
        return f"work-{self.number}"


class Outside:
    """All the work there is outside, of all three kinds of systems."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.is_down = False
        self.loses_next_answer = False
        self._refused: set[str] = set()

    def submit(self, kind: Kind, token: str | None, job_id: int | None) -> str:
        """Make work. It does not forgive a second submission under one token: that is the invariant."""
        if self.is_down:
            raise Unreachable
        if kind is Kind.RECORD and token in self._refused:
            raise Refused
        work = Work(len(self.works) + 1, kind, token, job_id)
        twins = [each for each in self.works.values() if token is not None and each.token == token]
        if twins:
            raise Broken("one external job a token", f"{twins[0].external_id} was made under {token} before")
        self.works[work.external_id] = work
        if self.loses_next_answer:
            self.loses_next_answer = False
            raise Unreachable
        return work.external_id

    def find(self, kind: Kind, token: str, looked_for_s: float) -> Found | Absent | None:
        """Say what became of a submission; None: it cannot be told yet.

        `looked_for_s`: for how long the one who asks has been looking, by his own clock.
        """
        if self.is_down:
            raise Unreachable
        for work in self.works.values():
            if work.token == token:
                return Found(work.external_id)
        if kind is Kind.RECORD:
            self._refused.add(token)
            return Absent()
        return Absent() if looked_for_s > SEND_WITHIN_S else None

    def newer_than(self, baseline: str) -> list[str]:
        """Return the work with numbers after `baseline`: candidates, whoever made them."""
        if self.is_down:
            raise Unreachable
        works = (work for work in self.works.values() if work.kind is Kind.NUMBERS)
        return [work.external_id for work in works if work.number > int(baseline)]

    def baseline(self) -> str:
        """Return the newest number."""
        return str(len(self.works))

    def fetch(self, external_id: str) -> Phase:
        """Say where work stands."""
        if self.is_down:
            raise Unreachable
        return self.works[external_id].phase

    def cancel(self, external_id: str) -> None:
        """End work, if it has not ended by itself."""
        if self.is_down:
            raise Unreachable
        work = self.works[external_id]
        if not work.phase.is_final:
            work.phase, work.cancelled_by_us = Phase.CANCELLED, True

    def finish(self, external_id: str, phase: Phase) -> None:
        """Let work end by itself."""
        work = self.works[external_id]
        if not work.phase.is_final:
            work.phase = phase

    def active_of(self, job_id: int) -> list[Work]:
        """Return the work of a job that has not ended."""
        return [work for work in self.works.values() if work.job_id == job_id and not work.phase.is_final]
