"""Submitting once, at a server without idempotency keys: what is in doubt is looked for, never repeated."""

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from jobrunner.backends.airbyte.client import Api
from jobrunner.backends.airbyte.reading import Job
from jobrunner.backends.airbyte.spec import AirbyteSpec
from jobrunner.backends.airbyte.transport import LONG_S
from jobrunner.backends.airbyte.trouble import NOT_VISIBLE, NOTHING_DONE, AirbyteError, Kind
from jobrunner.backends.base import Found, Unsure
from jobrunner.bounded import Bounded
from jobrunner.clock import monotonic_s
from jobrunner.errors import NotSent, SubmitRejected
from jobrunner.logs import get_logger

log = get_logger(__name__)

IsHeld = Callable[[Sequence[str]], Awaitable[set[str]]]

DOUBT_S = LONG_S + 80.0
"""How long after the first look for it a job may still appear: a POST takes a minute, after a queue."""
_CONFLICT_S = 20.0  # the same, where the POST was answered: it met another job


class Submissions:
    """The submissions of one connection."""

    def __init__(self, api: Api, *, doubt_s: float = DOUBT_S) -> None:
        self._api = api
        self._doubt_s = doubt_s
        self._looked_for: Bounded[str, float] = Bounded()
        self._conflicts: Bounded[str, str] = Bounded()
        """What the server said to a submission that met a job already running."""

    async def submit(self, spec: Mapping[str, Any], token: str) -> tuple[int, Job | None]:
        """POST the job, and return what `Api.post_job` does. Raises what `Backend.submit` does."""
        checked = AirbyteSpec.resolved(spec)
        try:
            return await self._api.post_job(checked.connection_id, checked.job_type)
        except AirbyteError as error:
            if error.kind is Kind.CONFLICT:
                if checked.on_conflict == "fail":
                    raise SubmitRejected(str(error)) from error
                # It may even be this very submission, sent twice by a proxy: `find` tells.
                self._conflicts[token] = str(error)
                raise
            raise error.of_submission() from error

    async def baseline(self, spec: Mapping[str, Any]) -> str:
        """Return the newest job id of the Airbyte connection, `0` where it has none yet.

        After it stand the connection and the type where variables name them: whoever looks for the
        submission later may have others.
        """
        checked = AirbyteSpec.resolved(spec)
        try:
            newest = await self._api.newest_jobs(checked.connection_id)
        except AirbyteError as error:
            if error.kind is Kind.CONFLICT:  # so, too, an Airbyte connection may be said not to be visible
                raise SubmitRejected(str(error)) from error
            told = error.of_submission()
            # Nothing was to be made by this call, whatever came of it.
            raise (NotSent(str(error)) if error.kind not in NOTHING_DONE else told) from error
        baseline = str(newest[0].id if newest else 0)
        if AirbyteSpec.checked(spec).has_variables:
            return f"{baseline} {checked.connection_id} {checked.job_type}"
        return baseline

    async def find(
        self,
        spec: Mapping[str, Any],
        token: str,
        since: dt.datetime,
        *,
        baseline: str | None = None,
        is_held: IsHeld | None = None,
    ) -> Found | Unsure:
        """Look for the submission among the connection's newest jobs, for a while."""
        before, *filled = (baseline or "-").split()
        if not before.isdecimal():
            # Any job since then could be somebody else's: a schedule starts them, too.
            return Unsure(None, "which jobs the Airbyte connection had before was never stored")
        named = dict(zip(("connectionId", "jobType"), filled, strict=False))
        checked = AirbyteSpec.resolved({**spec, **named, "onConflict": "adopt"})  # the POST is over
        first_s = self._looked_for.setdefault(token, monotonic_s())
        begun_s = monotonic_s()
        try:
            newest = await self._api.newest_jobs(checked.connection_id)
        except AirbyteError as error:
            if error.kind in NOT_VISIBLE and begun_s - first_s >= self._doubt_s:
                self._forget(token)
                return Unsure(None, f"the jobs of the Airbyte connection cannot be listed any more ({error})")
            raise error.of_reading() from error
        ours = [job for job in newest if job.is_of_kind(checked.job_type)]
        new = [job for job in ours if job.id > int(before)]
        conflict = self._conflicts.get(token)
        if conflict is not None and not new:  # the policy is to watch what runs there
            new = [job for job in ours if not job.is_over][:1]
        held = await is_held([str(job.id) for job in new]) if is_held is not None and new else set()
        free = [job for job in new if str(job.id) not in held]
        if free:
            self._forget(token)
            # The oldest: had another one run before it, Airbyte would not have taken ours.
            found = min(free, key=lambda job: job.id)
            log.info("a job of Airbyte is adopted", job=found.id, conflict=conflict, candidates=len(free))
            return Found(str(found.id))
        place = f"the Airbyte connection {checked.connection_id}"
        reason = f"no {checked.job_type} job that began since is listed for {place}"
        if held:
            reason = f"{', '.join(sorted(held))} of {place} is watched by another job here"
        doubt_s = self._doubt_s
        if conflict is not None:
            reason = f"{conflict}; and {reason}"
            doubt_s = min(doubt_s, _CONFLICT_S)
        if begun_s - first_s < doubt_s:
            return Unsure(since, reason)
        self._forget(token)
        tail = "" if conflict is not None else ", but it may have been made all the same"
        return Unsure(None, f"{reason}{tail}")

    def _forget(self, token: str) -> None:
        self._looked_for.pop(token, None)
        self._conflicts.pop(token, None)
