"""Cancelling one job: Airbyte ends what runs on the job's connection, so it is looked at before and after.

Between the last look and the DELETE a moment remains in which the job may end and a newer one begin: Airbyte
has no call that would exclude it. What was hit then is told, and so is a job that began in place of this one.
"""

from jobrunner.backends.airbyte.client import Api
from jobrunner.backends.airbyte.memory import Memory
from jobrunner.backends.airbyte.reading import Job
from jobrunner.backends.airbyte.trouble import AirbyteError, Kind
from jobrunner.logs import get_logger
from jobrunner.states import Phase

log = get_logger(__name__)

_NOTHING_THERE = frozenset({Kind.NOT_THERE, Kind.CONFLICT})


async def cancel(api: Api, memory: Memory, job_id: int) -> str | None:
    """Ask for a job's end, unless that would end another; return what stood in the way, or None.

    Raises `AirbyteError` where there was no answer.
    """
    try:
        job = await api.get_job(job_id)
    except AirbyteError as error:
        if error.kind in _NOTHING_THERE:
            return None
        raise
    memory.learn(job)
    if job.is_over:
        return None
    running = await _running(api, job)
    if running is not None and running.id != job_id:
        return (
            "not cancelled: Airbyte ends whatever runs on a connection, and there the newer job "
            f"{running.id} is {running.status}"
        )
    try:
        await api.delete_job(job_id)
    except AirbyteError as error:
        if error.kind is not Kind.CONFLICT:  # it is not running: it ended, or has not begun
            raise
    after = await api.get_job(job_id)
    memory.learn(after)
    if after.is_over:
        await _tell_of_another(api, memory, after)
    return None


async def _running(api: Api, job: Job) -> Job | None:
    """Return the newest job of the connection that has not ended."""
    newest = await api.newest_jobs(job.connection_id) if job.connection_id else []
    return next((each for each in newest if not each.is_over and each.id >= job.id), None)


async def _tell_of_another(api: Api, memory: Memory, job: Job) -> None:
    """See whether a newer job was hit in place of one that ended by itself, or began after a cancellation."""
    listed = await api.newest_jobs(job.connection_id) if job.connection_id else []
    newer = [each for each in listed if each.id > job.id]
    if job.phase is Phase.CANCELLED:
        # Some versions of Airbyte begin another one in place of a job that had not begun.
        other = next((each for each in newer if not each.is_over), None)
        note = "the newer job {} of its Airbyte connection has begun since"
    else:
        other = next((each for each in newer if each.phase is Phase.CANCELLED), None)
        note = "it ended by itself while it was being cancelled, which may have ended the newer job {}"
    if other is None:
        return
    log.warning("there is a newer job beside a cancelled one", job=job.id, newer=other.id, its=other.status)
    known = memory.jobs.get(job.id)
    if known is not None:
        known.note = note.format(other.id)
