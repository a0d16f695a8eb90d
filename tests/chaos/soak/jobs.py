"""The jobs of a soak: of each kind, how it is made, how often, and how it may end."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jobrunner.backends.base import Observation
from jobrunner.errors import SubmitRejected
from jobrunner.models import BaseJob, MonitorJob, ProcessMonitorJob
from jobrunner.states import JobState, Phase
from jobrunner.testing import MemoryBackend, MemoryMonitorJob

CONNECTIONS = ("memory_a", "memory_b", "memory_default")
_SUCCESS, _FAILED, _KILLED, _LOST = JobState.SUCCESS, JobState.FAILED, JobState.KILLED, JobState.LOST


class Outside(MemoryBackend):
    """Does what a spec says besides its plan: it `rejects`, `vanishes`, now and then `fails_by` a cause."""

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        if spec.get("rejects"):
            raise SubmitRejected("nobody wants it")
        try:
            external_id = await super().submit(spec, token)
        finally:
            if spec.get("vanishes"):  # also where the answer is lost, and it would be found by its token
                for made in self._by_token.pop(token, ()):
                    del self.jobs[made]
        if spec.get("fails_by") and random.random() < 0.7:
            self.advance(external_id, Phase.FAILED, "out of it", cause=spec["fails_by"])
        return external_id


class SoakJob(MemoryMonitorJob):
    """A job that has a say in nothing."""


class HookedJob(MemoryMonitorJob):
    """A job whose class has a say wherever it can."""

    def on_kill(self) -> None:
        if self.id % 3 == 0:
            raise RuntimeError("the clean-up failed")

    def heartbeat_callback(self, session: Any = None) -> None:
        if self.id % 3 == 0:
            raise RuntimeError("the callback failed")

    def judge(self, observation: Observation) -> Observation:
        if self.id % 7 == 0:
            raise RuntimeError("the judge failed")
        return observation

    def look_interval_s(self, watched_s: float) -> float | None:
        return 0.05 + watched_s / 10


class SoakCodeJob(BaseJob):
    """A job that runs its own code, in a child process."""

    def _execute(self) -> None:
        self.heartbeat()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job. `killed_after_s`: seconds after which a kill is requested, from and to."""

    name: str
    share: float
    """How many of 1,000 jobs."""
    make: Callable[[random.Random], MonitorJob | BaseJob]
    ends_as: frozenset[JobState]
    killed_after_s: tuple[float, float] | None = None


def _memory(cls: type[MemoryMonitorJob] = SoakJob, /, **fixed: Any) -> Callable[[random.Random], MonitorJob]:
    def make(rng: random.Random) -> MonitorJob:
        spec = {"run_for_s": rng.uniform(0.0, 0.3), **fixed.get("spec", {})}
        return cls(
            **{
                "heartrate": rng.choice([1.0, 2.0, round(rng.uniform(1.0, 3.0), 2)]),
                "poll_interval": rng.choice([0.1, 0.2, 0.5]),
                "connection": rng.choice(CONNECTIONS),
                **fixed,
                "spec": spec,
            }
        )

    return make


def _process(seconds: float, **options: Any) -> Callable[[random.Random], MonitorJob]:
    return lambda _rng: ProcessMonitorJob(
        ["sh", "-c", f"echo begun; exec sleep {seconds}"], heartrate=2.0, poll_interval=0.3, **options
    )


def _kind(name: str, share: float, make: Callable[..., Any], *ends_as: JobState, **more: Any) -> Kind:
    return Kind(name, share, make, frozenset(ends_as), **more)


KINDS = (
    _kind("succeeds", 500, _memory(), _SUCCESS),
    _kind("fails", 100, _memory(spec={"ends_as": "failed"}), _FAILED),
    _kind(
        "fails by a cause",
        50,
        _memory(spec={"fails_by": "oom"}, resubmit={"oom": 2, "preempted": 1}),
        *(_SUCCESS, _FAILED),
    ),
    _kind(
        "is killed",
        100,
        _memory(spec={"run_for_s": 600.0}),
        _KILLED,
        killed_after_s=(0.0, 1.0),
    ),
    _kind(
        "is killed or ends",
        30,
        _memory(spec={"run_for_s": 0.3, "cancel_takes_s": 0.3}),
        *(_KILLED, _SUCCESS),
        killed_after_s=(0.0, 1.0),
    ),
    _kind("times out", 30, _memory(spec={"run_for_s": 600.0}, timeout=0.7), _FAILED),
    _kind("never starts", 30, _memory(spec={"wait_for_s": None}, start_timeout=0.5), _FAILED),
    _kind("has hooks", 40, _memory(HookedJob, spec={"run_for_s": 1.5}), *(_SUCCESS, _FAILED)),
    _kind(
        "has hooks and is killed",
        20,
        _memory(HookedJob, spec={"run_for_s": 600.0}),
        _KILLED,
        killed_after_s=(0.0, 2.0),
    ),
    _kind("appears late", 30, _memory(spec={"appear_after_s": 0.2, "wait_for_s": 0.2}), _SUCCESS),
    _kind("is rejected", 20, _memory(spec={"rejects": True}), _FAILED),
    _kind("vanishes", 10, _memory(spec={"vanishes": True}), _LOST),
    _kind("is a command", 2, _process(0.2), _SUCCESS),
    _kind("is a killed command", 3, _process(600.0), _KILLED, killed_after_s=(0.5, 2.0)),
    _kind("is code", 1, lambda _rng: SoakCodeJob(heartrate=2.0), _SUCCESS),
)
"""The rest is beside the mix, a few in each round: see `course`."""
KINDS_MODULE = __name__
