"""What a job's own class says about its watching: `judge` and `look_interval_s`, which are others' code."""

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobrunner.backends.base import Observation
from jobrunner.backends.calls import contained
from jobrunner.backends.checks import code_not_run, observed, shown
from jobrunner.errors import CodeError, words_of
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger
from jobrunner.states import Phase

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)


def judges_at_once(job: "MonitorJob") -> bool:
    """Whether both are jobrunner's own, so that they may be called on the event loop."""
    of_class = (type(job).judge, type(job).look_interval_s)
    ours = f"{__name__.partition('.')[0]}."
    return all(str(getattr(each, "__module__", "")).startswith(ours) for each in of_class)


def said_of(
    job: "MonitorJob", observation: Observation, watched_s: float, seldom: Seldom
) -> tuple[Observation, float | None]:
    """Return what an observation means for a job, and the seconds until the next look; None: as usual."""
    judgement = judged(job, observation, seldom)
    return judgement, None if judgement.phase.is_final else interval_of(job, watched_s, seldom)


def judged(job: "MonitorJob", observation: Observation, seldom: Seldom) -> Observation:
    """Return what an observation means for a job; where its `judge` fails, the row says so.

    Without a judgement a success is a failure: nobody knows whether the work did what it should.
    Every other observation stands as it was made.
    """
    try:
        with contained("judge", CodeError):
            answer: Any = job.judge(observation)
        if not isinstance(answer, Observation):
            what = code_not_run(answer) or shown(answer)
            return unjudged(job, observation, seldom, f"it returned {what}, not an Observation")
        with contained("judge's answer", CodeError):
            checked = observed(answer, lambda _flaw: None)
        if isinstance(checked, Observation):
            return checked
        return unjudged(job, observation, seldom, checked.message)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # whatever the job's own code raises
        return unjudged(job, observation, seldom, words_of(error))


def unjudged(job: "MonitorJob", observation: Observation, seldom: Seldom, why: str) -> Observation:
    """Return what an observation means for a job whose `judge` said nothing about it, and `why` not."""
    trouble = f"judge of {type(job).__name__} failed: {why}"
    seldom.error(log, "judge failed", about=job.id, job=job.id, error=why)
    said = observation.message or observation.external_state
    if observation.phase is Phase.SUCCEEDED:
        words = f"{trouble}; the work itself had succeeded ({said}), but that was not judged"
        return replace(observation, phase=Phase.FAILED, message=words, cause="")
    return replace(observation, message=f"{said}; {trouble}" if said else trouble)


def interval_of(job: "MonitorJob", watched_s: float, seldom: Seldom) -> float | None:
    """Return the seconds until the next look, as the job's class says; None: as usual."""
    try:
        with contained("look_interval_s", CodeError):
            interval_s: Any = job.look_interval_s(watched_s)
        if interval_s is None:
            return None
        if isinstance(interval_s, int | float) and 0 < interval_s < math.inf:
            return float(interval_s)
        what = code_not_run(interval_s) or shown(interval_s)
        why = f"it returned {what}, not a number of seconds above 0"
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # whatever the job's own code raises
        why = words_of(error)
    seldom.error(log, "look_interval_s failed", about=job.id, job=job.id, error=why)
    return None
