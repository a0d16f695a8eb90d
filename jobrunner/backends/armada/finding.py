"""What became of a submission that got no answer (PROTOCOL 8).

Armada keeps `queue:client_id` for seven days, and answers a second submission with the first's id. But it
stores the key only after it has handed the job on: a second one that comes in between, or after a server
that died in between, makes a second job. So a submission is first looked for, by the external job URI that
it carries, until whatever is still under way has arrived and is listed; only then it is repeated.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.armada.spec import own_uri
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.armada.wire import Wire, messages
from jobrunner.backends.base import SEND_WITHIN_S, Found, Unsure, sending_until
from jobrunner.bounded import Bounded
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import SubmitRejected
from jobrunner.logs import get_logger

log = get_logger(__name__)

LISTING_LAG_S = 10.0
"""How long a new job may be missing from the server's listing, which is filled from its event log."""
REMEMBERED = dt.timedelta(days=6)
"""For how long a client id is relied on: Armada keeps it for 7 days, and clocks may differ."""
REFUSED_S = 60.0
"""How long a repeated submission may be refused before a person is asked."""


class Finder:
    """Looks for the submissions of one connection.

    `submit` makes one, or is answered with the job of the first one that had its token. `settle_s`: for how
    many seconds a submission is only looked for; None: for as long as a first one may still be under way,
    and then be missing from the listing.
    """

    def __init__(
        self, wire: Wire, submit: Callable[[Mapping[str, Any], str], Awaitable[str]], settle_s: float | None
    ) -> None:
        self._wire = wire
        self._submit = submit
        self._given_settle_s = settle_s
        # Whoever submits such a job in the end need not be this process: then nothing takes its token out.
        self._first_s: Bounded[str, float] = Bounded()
        self._refused_s: Bounded[str, float] = Bounded()
        self._can_list = True

    @property
    def _settle_s(self) -> float:
        if self._given_settle_s is not None:
            return self._given_settle_s
        under_way_s = max(SEND_WITHIN_S, self._wire.options.call_timeout_s)
        return under_way_s + (LISTING_LAG_S if self._can_list else 0.0)

    async def find(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Unsure:
        """Return the job of a submission; where there was none, it is made now, under the same token.

        So it never says that there is none: a late first submission would get the id of this one.
        """
        begun_s = monotonic_s()
        first_s = self._first_s.setdefault(token, begun_s)
        found = await self._listed(spec, token)
        if found is None:
            if begun_s - first_s < self._settle_s:
                return Unsure(since, f"no job with the client id {token} is listed yet")
            if utcnow() - since > REMEMBERED:
                self._forget(token)
                return Unsure(
                    None, "Armada remembers a client id for 7 days, and it was submitted before that"
                )
            try:
                with sending_until(monotonic_s() + SEND_WITHIN_S):
                    found = await self._submit(spec, token)
            except SubmitRejected as error:
                return self._refused(token, since, error)
        self._forget(token)
        return Found(found)

    def _forget(self, token: str) -> None:
        self._first_s.pop(token, None)
        self._refused_s.pop(token, None)

    async def _listed(self, spec: Mapping[str, Any], token: str) -> str | None:
        """Return the job that carries the submission's URI: the oldest one, as ids of Armada sort by time."""
        uri = own_uri(spec, token)
        if uri is None or not self._can_list:
            return None
        request = messages("job").JobStatusUsingExternalJobUriRequest(
            queue=spec["queue"], jobset=spec["jobSetId"], external_job_uri=uri
        )
        try:
            answer = await self._wire.call("Jobs", "GetJobStatusUsingExternalJobUri", request)
        except ArmadaError as error:
            if error.kind in {Kind.PERMISSION, Kind.REFUSED}:
                return None  # who may submit need not be allowed to list: then it is asked for by client id
            if error.kind is not Kind.NOT_ARMADA:
                raise
            self._can_list = False  # an older server; a wrong address fails in the submission, too
            log.info("this Armada cannot list jobs by their URI: submissions are proven by client id alone")
            return None
        ids = sorted(answer.job_states)
        return JobKey(spec["queue"], spec["jobSetId"], ids[0]).join() if ids else None

    def _refused(self, token: str, since: dt.datetime, error: SubmitRejected) -> Unsure:
        # It was refused now, which does not say that the first one was.
        now_s = monotonic_s()
        refused_for_s = now_s - self._refused_s.setdefault(token, now_s)
        retry_at = since if refused_for_s < min(REFUSED_S, self._settle_s) else None
        if retry_at is None:
            self._forget(token)
        return Unsure(
            retry_at, f"no job with the client id {token} is listed, and to ask for it is refused: {error}"
        )
