"""`jobrunner logs`: what a monitor job's work has printed."""

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.options import JOB_ID, WholeNumber, complete_ids, json_option

if TYPE_CHECKING:
    from jobrunner.cli.log_printer import LogPrinter
    from jobrunner.models import BaseJob, MonitorJob

_LOOK_S = 1.0
_LOOK_MOST_S = 10.0
_SETTLE_S = 3.0
"""How long after its end a job's last lines may still be on their way to a log that has times."""
_TRIES_AFTER_END = 5
_CLOSE_S = 5.0


@click.command()
@click.argument("job_id", metavar="ID", type=JOB_ID, shell_complete=complete_ids)
@click.option("--follow", "-f", is_flag=True, help="Go on printing until the job has ended.")
@click.option("--child", type=WholeNumber(min=0), metavar="N", help="Of this child of an array job, from 0.")
@click.option(
    "--node", type=WholeNumber(min=0), metavar="N", help="Of this node of a job of several, from 0."
)
@json_option
def logs(job_id: int, *, follow: bool, child: int | None, node: int | None, as_json: bool) -> None:
    """Print the output of a monitor job's work, oldest first.

    Where the work was tried several times, a line on standard error tells where the next try begins.
    """
    from jobrunner.cli.log_printer import LogPrinter
    from jobrunner.cli.output import word
    from jobrunner.models import BaseJob

    job = _ensure_has_logs(BaseJob.get(job_id))
    printer = LogPrinter(as_json=as_json)
    reader = _Reader(job, printer, follow=follow, child=child, node=node)
    asyncio.run(reader.read())
    if not printer.printed and not reader.has_told:
        word(f"Job {job_id} has printed nothing{'' if job.state.is_terminal else ' yet'}.")


def _ensure_has_logs(job: "BaseJob") -> "MonitorJob":
    from jobrunner import identity
    from jobrunner.errors import UsageError
    from jobrunner.models import MonitorJob
    from jobrunner.record_places import SEEN_BY, why_unseen

    if not isinstance(job, MonitorJob):
        raise UsageError(
            f"Job {job.id} is a {job.job_type}, of which no logs are kept: only monitor jobs have them, "
            "and their type must be installed here."
        )
    if not job.runs_on_this_host:
        return job
    if not identity.can_serve(job.host_id, job.external_id):
        raise UsageError(
            f"The output of job {job.id} is on {job.hostname}: run `jobrunner logs {job.id}` there."
        )
    unseen = why_unseen({name: getattr(job, name) for name in SEEN_BY})
    if unseen is not None:
        raise UsageError(
            f"The output of job {job.id} cannot be read: {unseen}. "
            f"Run `jobrunner logs {job.id}` where that directory is mounted."
        )
    return job


class _Reader:
    """Looks at a job's log, once or until the job has ended.

    `has_told`: whether it said why there is nothing to print; each sentence is said once.
    """

    def __init__(
        self, job: "MonitorJob", printer: "LogPrinter", *, follow: bool, child: int | None, node: int | None
    ) -> None:
        from jobrunner.log_limits import Once, Trouble
        from jobrunner.retry import Retry

        self._trouble = Trouble()
        self.has_told = False
        self._sentences = Once()
        self._job = job
        self._printer = printer
        self._follow = follow
        self._part = {"child": child, "node": node}
        self._failure: Exception | None = None
        self._retry = Retry(first_s=_LOOK_S)
        self._tries_after_end = 0
        self._output: Any = None
        """What reads on in the output, where the backend has such a thing."""

    async def read(self) -> None:
        """Print all there is and, to follow, what comes until the job has ended."""
        from jobrunner.backends.guarded import backend_of, guarded
        from jobrunner.settings import get_settings

        job = self._job
        job.log_id(**self._part)  # a part that the job does not have is refused before anything is asked
        connection_name, connection = get_settings().connection(job.connection, job.backend_kind)
        backend = guarded(backend_of(job, connection), connection_name)
        try:
            await self._look_until_the_end(backend)
        finally:
            if self._output is not None:
                self._output.close()
            with suppress(Exception):  # whatever a backend raises: its output was read, or not
                await backend.close(_CLOSE_S)

    async def _look_until_the_end(self, backend: Any) -> None:
        job = self._job
        has_settled = job.runs_on_this_host or job.state.is_terminal
        while True:
            # The state is read first: what was printed before the end is then there, or on its way.
            has_ended = job.state.is_terminal
            is_last = not self._follow or (has_ended and has_settled)
            begun_s = time.monotonic()
            goes_on = await self._look(backend, is_last=is_last)
            if not goes_on or (is_last and self._failure is None):
                return
            pause_s = _LOOK_S
            if self._output is None:  # a long log takes long to read again: then it is looked at less often
                pause_s = max(_LOOK_S, min(_LOOK_MOST_S, 3 * (time.monotonic() - begun_s)))
            if self._failure is not None:
                pause_s = max(self._retry.next_s(), getattr(self._failure, "retry_after_s", None) or 0.0)
            elif has_ended:
                has_settled, pause_s = True, _SETTLE_S
            await asyncio.sleep(pause_s)
            await asyncio.to_thread(_reload, job)

    async def _look(self, backend: Any, *, is_last: bool) -> bool:
        """Print what is new; False when nobody reads it any more. Raises what is not worth another try."""
        from jobrunner.cli.output import word
        from jobrunner.errors import LogsUnavailable, UsageError, words_of

        if self._job.external_id is None:
            return True
        goes_on = True
        try:
            goes_on = await self._print(backend, is_last=is_last)
        except LogsUnavailable as error:
            self.has_told = True
            if self._sentences.is_new(str(error)):
                word(f"job {self._job.id}: {error}")
        except UsageError:
            raise
        except Exception as error:  # whatever a backend raises: there was no answer
            if not self._follow or self._has_tried_enough():
                raise
            if self._trouble.begins():
                word(f"jobrunner: the output cannot be read now, and is asked for again: {words_of(error)}")
            self._failure = error
            return True
        if self._failure is not None:
            if self._trouble.ends():
                word("jobrunner: the output can be read again")
            self._failure = None
            self._retry = type(self._retry)(first_s=_LOOK_S)
        return goes_on

    async def _print(self, backend: Any, *, is_last: bool) -> bool:
        log_id = self._job.log_id(**self._part)
        if self._output is None:
            self._output = backend.output(log_id)
        if self._output is not None:
            return await self._printer.print_all(backend.lines_of(self._output, is_last=is_last))
        return await self._printer.print_new(backend.logs(log_id, self._printer.since), is_last=is_last)

    def _has_tried_enough(self) -> bool:
        self._tries_after_end += self._job.state.is_terminal
        return self._tries_after_end >= _TRIES_AFTER_END


def _reload(job: "BaseJob") -> None:
    from jobrunner.errors import DatabaseError

    try:
        job.reload()
    except DatabaseError:
        return  # the output is not in the database: it can be followed without
