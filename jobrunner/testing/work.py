"""The work inside a `MemoryBackend`: jobs that move by plan or by hand."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobrunner.backends.base import LogLine, Observation
from jobrunner.states import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a job behaves when nobody moves it by hand. All times are seconds.

    A job's spec may carry any of these fields under the same name, and then overrides the backend's plan.
    """

    appear_after_s: float = 0.0
    """How long `fetch` and `find` do not see a job that was made."""
    wait_for_s: float | None = 0.0
    """How long it waits before it runs; None: until it is moved by hand."""
    run_for_s: float | None = None
    """How long it runs; None: until it is moved by hand."""
    ends_as: Phase = Phase.SUCCEEDED
    """How it ends after `run_for_s`."""
    message: str = ""
    """What it says then."""
    cancel_takes_s: float = 0.0
    """How long it goes on after a cancel; if its own end comes first, that one counts."""
    cancel_ends_as: Phase = Phase.CANCELLED
    """How a cancelled job ends: another phase is a job that finished by itself just before."""
    ignores_cancel: bool = False
    """A cancel is accepted and does nothing."""

    def overridden_by(self, spec: Mapping[str, Any]) -> "Plan":
        """Return this plan with the fields that `spec` carries."""
        names = {each.name for each in dataclasses.fields(self)} & spec.keys()
        changes: dict[str, Any] = {name: spec[name] for name in names}
        for name in names & {"ends_as", "cancel_ends_as"}:
            changes[name] = Phase(changes[name])
        return dataclasses.replace(self, **changes)


@dataclass(slots=True, eq=False)
class MemoryJob:
    """One job of the outside; read it freely, move it through its `MemoryBackend`."""

    external_id: str
    token: str
    spec: Mapping[str, Any]
    plan: Plan
    made_at_s: float
    phase: Phase = Phase.WAITING
    external_state: str = "WAITING"
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    cancel_reasons: list[str] = field(default_factory=list)
    """One for each time that it was asked to end, also when that came too late."""
    cancel_due_s: float | None = None
    running_since_s: float | None = None
    lines: list[LogLine] = field(default_factory=list)
    has_run: bool = False
    """Lets it say so while it waits: a work that is tried again."""
    cause: str = ""

    def move(
        self, phase: Phase, now_s: float, message: str = "", detail: Mapping[str, Any] | None = None
    ) -> None:
        """Put the job into `phase`."""
        if phase is Phase.RUNNING and self.running_since_s is None:
            self.running_since_s = now_s
        self.phase = phase
        self.external_state = phase.value.upper()
        self.message = message
        if detail is not None:
            self.detail = dict(detail)

    def settle(self, now_s: float) -> None:
        """Let what the plan says happen up to `now_s`."""
        if self.phase is Phase.WAITING and self.plan.wait_for_s is not None:
            starts_s = self.made_at_s + self.plan.wait_for_s
            # A cancel that was due before the start ends it unstarted.
            if starts_s <= now_s and (self.cancel_due_s is None or starts_s < self.cancel_due_s):
                self.move(Phase.RUNNING, starts_s)
        if self.phase.is_final:
            return
        ends_s = None
        if (
            self.phase is Phase.RUNNING
            and self.running_since_s is not None
            and self.plan.run_for_s is not None
        ):
            ends_s = self.running_since_s + self.plan.run_for_s
        if (
            ends_s is not None
            and ends_s <= now_s
            and (self.cancel_due_s is None or ends_s <= self.cancel_due_s)
        ):
            message = self.plan.message or (
                "" if self.plan.ends_as is Phase.SUCCEEDED else "it ended by its plan"
            )
            self.move(self.plan.ends_as, ends_s, message)
        elif self.cancel_due_s is not None and self.cancel_due_s <= now_s:
            self.move(self.plan.cancel_ends_as, self.cancel_due_s, self.cancel_reasons[0])

    def ask_to_end(self, reason: str, now_s: float) -> None:
        """Note a cancel; the first one that counts sets the time of the end."""
        self.cancel_reasons.append(reason)
        if not self.phase.is_final and not self.plan.ignores_cancel and self.cancel_due_s is None:
            self.cancel_due_s = now_s + self.plan.cancel_takes_s

    def visible_at_s(self) -> float:
        """Return since when `fetch` and `find` see the job."""
        return self.made_at_s + self.plan.appear_after_s

    def observation(self) -> Observation:
        """Return what the outside says of the job."""
        return Observation(
            self.phase,
            self.external_state,
            self.message,
            dict(self.detail),
            has_run=self.has_run,
            cause=self.cause,
        )
