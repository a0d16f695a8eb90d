"""`AirbyteMonitorJob`: a job of Airbyte."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from jobrunner.backends.base import Observation
from jobrunner.errors import SpecError, UsageError
from jobrunner.models.monitor_job import MonitorJob
from jobrunner.references import resolve
from jobrunner.settings import get_settings
from jobrunner.states import Phase

_API_VERSION = re.compile(r"v[1-9]\d*")
_LARGEST_ID = 2**63 - 1
_DIGITS_MOST = 30
_LABEL_MOST = 250
_MAX_RETRY_DELAY_S = 600.0


class AirbyteMonitorJob(MonitorJob):
    """A job of Airbyte: started once, watched with all others by one request a tick, cancelled by its id.

    `connection_id`: the UUID of the Airbyte connection whose data is moved; it may be or hold
    `${env:NAME}`. (`connection`, as for every job, names the configured way to the server.) `job_type`:
    Airbyte's own, in the row's spec as `jobType`; the column `job_type` is this class's name. `on_conflict`:
    where a job runs on the Airbyte connection already, watch that one (`adopt`), or fail. `min_rows`: a
    success with fewer rows is a failure. `api_version`: of the API, which the connection's `url` ends with.

    `exponential_backoff`: look less and less often the longer it takes, from `poll_interval` up to
    `max_retry_delay` seconds (10 minutes); back-off after failed looks there is always. A job of somebody
    else is watched by `attach`. Raises `SpecError`, which names the key that is wrong, and `UsageError`.
    """

    backend_kind: ClassVar[str] = "airbyte"
    resubmit_causes: ClassVar[Sequence[str] | None] = ()

    def __init__(
        self,
        connection_id: str | None = None,
        *,
        job_type: Literal["sync", "reset", "refresh", "clear"] = "sync",
        on_conflict: Literal["adopt", "fail"] = "adopt",
        min_rows: int | None = None,
        api_version: str = "v1",
        exponential_backoff: bool = False,
        max_retry_delay: float | None = None,
        executor: Any = None,
        heartrate: float | None = None,
        external_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        if external_id is not None:
            if connection_id is not None:
                raise UsageError(
                    f"The Airbyte job {external_id} is there already, and is only watched: connection_id "
                    "would describe a new one."
                )
            spec: dict[str, Any] = {} if min_rows is None else {"minRows": _checked_rows(min_rows)}
            name = f"airbyte job {external_id}"
        else:
            from jobrunner.backends.airbyte.spec import AirbyteSpec

            given = {
                "connectionId": connection_id,
                "jobType": job_type,
                "onConflict": on_conflict,
                "minRows": min_rows,
            }
            asked = AirbyteSpec.checked({key: value for key, value in given.items() if value is not None})
            spec = asked.as_row()
            name = f"{asked.job_type} {asked.connection_id}"
        if exponential_backoff:
            spec["maxRetryDelay"] = _checked_delay(max_retry_delay)
        elif max_retry_delay is not None:
            raise UsageError("max_retry_delay is the longest wait of exponential_backoff: set that, too.")
        _ensure_version(api_version, kwargs.get("connection"))
        kwargs.setdefault("name", name[:_LABEL_MOST])
        super().__init__(executor, heartrate, spec=spec, external_id=external_id, **kwargs)

    @classmethod
    def attach(cls, airbyte_job_id: int | str, **options: Any) -> Self:
        """Return a job that watches the Airbyte job with this id, which somebody else started.

        `airbyte_job_id`: a number, as a text too, or `${env:NAME}`. `options`: `min_rows`, `api_version`,
        `exponential_backoff`, and those of every job. It obeys kills and timeouts as any other. Raises
        `UsageError`.
        """
        return cls(external_id=_checked_id(airbyte_job_id), **options)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], **options: Any) -> Self:
        """Return the job that a spec describes (`{"connectionId": …, "jobType": "sync", "minRows": 1}`).

        `options`: those of every job. Raises `SpecError`.
        """
        from jobrunner.backends.airbyte.spec import AirbyteSpec

        asked = AirbyteSpec.checked(spec)
        if asked.max_retry_delay is not None:
            options |= {"exponential_backoff": True, "max_retry_delay": asked.max_retry_delay}
        return cls(
            asked.connection_id,
            job_type=asked.job_type,  # type: ignore[arg-type]  # or a reference to it
            on_conflict=asked.on_conflict,  # type: ignore[arg-type]
            min_rows=asked.min_rows,
            **options,
        )

    def judge(self, observation: Observation) -> Observation:
        """Return what an observation means for this job: a success with too few rows is a failure."""
        least = (self.spec or {}).get("minRows")
        if least is None or observation.phase is not Phase.SUCCEEDED:
            return observation
        rows = observation.detail.get("rows")
        if rows is not None and rows >= least:
            return observation
        told = "it does not tell how many rows there were" if rows is None else f"there were {rows:,} rows"
        message = f"succeeded in Airbyte, but {told}, and min_rows is {least:,}"
        return replace(observation, phase=Phase.FAILED, message=message)

    def has_a_say(self) -> bool:
        """Whether it was given a least number of rows, or exponential back-off."""
        # A subclass may say more.
        return type(self) is not AirbyteMonitorJob or bool(
            {"minRows", "maxRetryDelay"} & (self.spec or {}).keys()
        )

    def look_interval_s(self, watched_s: float) -> float | None:
        """Return the seconds until the next look after so long a watch; None: the job's own interval.

        With exponential back-off it grows with the time that the job has taken, as doubling does.
        """
        most_s = (self.spec or {}).get("maxRetryDelay")
        if most_s is None:
            return None
        least_s = self.default_poll_interval if self.poll_interval is None else self.poll_interval
        return float(max(least_s, min(watched_s, most_s)))


def _checked_id(job_id: int | str) -> str:
    text = str(resolve(str(job_id), "airbyte_job_id")).strip()
    is_number = text.isascii() and text.isdecimal() and not isinstance(job_id, bool)
    if not is_number or len(text) > _DIGITS_MOST or not 0 < int(text) <= _LARGEST_ID:
        # As it was given: what a variable holds may be a secret.
        raise UsageError(
            f"{str(job_id).strip()!r:.100} is no job id of Airbyte, which is a number such as 12345."
        )
    return str(int(text))


def _checked_rows(rows: Any) -> int:
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise SpecError(f"minRows is {rows!r}, and must be a whole number of rows, 0 or more.")
    return rows


def _checked_delay(seconds: Any) -> float:
    if seconds is None:
        return _MAX_RETRY_DELAY_S
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not (is_number and math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"A max_retry_delay of {seconds} s cannot be kept: give seconds, more than 0.")
    return float(seconds)


def _ensure_version(api_version: str, connection: str | None) -> None:
    """Refuse a version that is not the one at which the connection's URL leads."""
    if api_version == "v1":
        return
    if not _API_VERSION.fullmatch(api_version):
        raise UsageError(f"{api_version!r} is no version of Airbyte's API, such as v1.")
    name, settings = get_settings().connection(connection, "airbyte")
    url = str(settings.get("url", "https://api.airbyte.com/v1")).rstrip("/")
    if not url.endswith(f"/{api_version}"):
        raise UsageError(
            f"The connection {name} leads to {url.rpartition('/')[2]} of Airbyte's API, not to "
            f"{api_version}: its url ends with the version."
        )
