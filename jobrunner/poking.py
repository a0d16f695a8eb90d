"""One look at a monitor job's work, from any process: what a sensor asks."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jobrunner.aside import Aside
from jobrunner.backends.base import Gone, Observation
from jobrunner.backends.checks import Answer
from jobrunner.backends.guarded import guarded
from jobrunner.errors import BackendError, JobFailed, error_of_end, words_of
from jobrunner.judging import judged
from jobrunner.log_limits import Seldom
from jobrunner.models.rows import is_stored
from jobrunner.settings import get_settings
from jobrunner.states import JobState, Phase
from jobrunner.terms import made_backend, terms_of

if TYPE_CHECKING:
    from jobrunner.models.monitor_job import MonitorJob

_CLOSE_S = 5.0


def poke(job: "MonitorJob") -> bool:
    """Look once: True when the work is done, False while it is not. Raises as `MonitorJob.poke`."""
    if is_stored(job):
        job.reload()
        if JobState(job.state).is_terminal:
            error = error_of_end(job.id, job.state, job.message)
            if error is not None:
                raise error
            return True
    if job.external_id is None:
        return False
    return _is_done(job, _run(_look(job)))


def _is_done(job: "MonitorJob", answer: Answer) -> bool:
    if isinstance(answer, Observation):
        answer = judged(job, answer, Seldom())
        if answer.phase in {Phase.FAILED, Phase.CANCELLED}:
            told = answer.message or answer.external_state
            raise JobFailed(f"{job.external_id} {answer.phase}: {told}", job_id=job.id)
        return answer.phase is Phase.SUCCEEDED
    if isinstance(answer, Gone):
        raise BackendError(f"{job.external_id} cannot be seen: {answer.reason}")
    raise BackendError(answer.message)


async def _look(job: "MonitorJob") -> Answer:
    aside = Aside()
    terms = await terms_of(aside, type(job), lambda: job, job.connection, get_settings())
    backend = guarded(await made_backend(aside, job, terms.behind), terms.connection)
    external_id = job.external_id or ""
    try:
        return (await backend.fetch([external_id]))[external_id]
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(words_of(error)) from error
    finally:
        with suppress(Exception):  # the look was taken, or says what is wrong
            await backend.close(_CLOSE_S)


def _run(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run it here, or, where a loop runs here already, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: list[Answer | BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001  # it is raised where it was asked for
            found.append(error)

    thread = threading.Thread(target=run, name="poke")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
