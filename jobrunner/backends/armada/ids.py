"""The external id of an Armada job: `queue/job_set/job_id`, each part percent-quoted.

Armada itself needs queue and job set to cancel a job, and the old JobService to look at one.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self
from urllib.parse import quote, unquote

_PARTS = 3


class JobKey(NamedTuple):
    """What names a job of Armada. None of the parts is empty."""

    queue: str
    job_set: str
    job_id: str

    def join(self) -> str:
        """Return the external id. Raises ValueError where a part is empty."""
        if not all(part.strip() for part in self):
            raise ValueError(f"a job of Armada has a queue, a job set and an id, and one is empty: {self}")
        return "/".join(quote(part, safe="") for part in self)

    @classmethod
    def split(cls, external_id: str) -> Self:
        """Return the parts of an external id. Raises ValueError where it is none."""
        parts = [unquote(part) for part in external_id.split("/")]
        if len(parts) != _PARTS or not all(part.strip() for part in parts):
            raise ValueError(f"{external_id!r} is not of the form QUEUE/JOB_SET/JOB_ID")
        return cls(*parts)


def split_all(external_ids: Iterable[str]) -> tuple[dict[str, JobKey], list[str]]:
    """Return the keys of external ids, by them, and those that are none."""
    keys: dict[str, JobKey] = {}
    wrong: list[str] = []
    for external_id in external_ids:
        try:
            keys[external_id] = JobKey.split(external_id)
        except ValueError:
            wrong.append(external_id)
    return keys, wrong
