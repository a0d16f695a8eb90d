"""`jobrunner logs`: what a monitor job's work has printed."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.options import JOB_ID, complete_ids, json_option

if TYPE_CHECKING:
    from jobrunner.backends.base import LogLine
    from jobrunner.models import BaseJob

_LOOK_S = 1.0


@click.command()
@click.argument("job_id", metavar="ID", type=JOB_ID, shell_complete=complete_ids)
@click.option("--follow", "-f", is_flag=True, help="Go on printing until the job has ended.")
@json_option
def logs(job_id: int, *, follow: bool, as_json: bool) -> None:
    """Print the output of a monitor job's work, oldest first."""
    from jobrunner.cli.output import word
    from jobrunner.models import BaseJob

    job = BaseJob.get(job_id)
    backend_class = _ensure_has_logs(job)
    printer = _Printer(as_json=as_json, follow=follow)
    asyncio.run(_print(job, printer, backend_class))
    if not printer.seen:
        word(f"Job {job_id} has printed nothing{'' if job.state.is_terminal else ' yet'}.")


def _ensure_has_logs(job: "BaseJob") -> Any:
    from jobrunner import identity
    from jobrunner.errors import UsageError
    from jobrunner.models import MonitorJob

    if not isinstance(job, MonitorJob):
        raise UsageError(
            f"Job {job.id} is a {job.job_type}, of which no logs are kept: only monitor jobs have them, "
            "and their type must be installed here."
        )
    if job.runs_on_this_host and not identity.can_serve(job.host_id):
        raise UsageError(
            f"The output of job {job.id} is on {job.hostname}: run `jobrunner logs {job.id}` there."
        )
    return type(job)


async def _print(job: Any, printer: "_Printer", job_class: Any) -> None:
    from jobrunner.settings import get_settings

    _, connection = get_settings().connection(job.connection, job_class.backend_kind)
    backend = job_class.make_backend(connection)
    try:
        while True:
            # The state is read first: what was printed before the end is then all there.
            is_last = not printer.follow or job.state.is_terminal
            begun_s = time.monotonic()
            has_begun = job.external_id is not None
            is_read = not has_begun or await printer.print_new(backend, job.external_id, is_last=is_last)
            if is_last or not is_read:
                return
            # A long log takes long to read again: then it is looked at less often.
            await asyncio.sleep(max(_LOOK_S, 3 * (time.monotonic() - begun_s)))
            await asyncio.to_thread(_reload, job)
    finally:
        await backend.close()


def _reload(job: "BaseJob") -> None:
    from jobrunner.errors import DatabaseError

    try:
        job.reload()
    except DatabaseError:
        return  # the output is not in the database: it can be followed without


class _Printer:
    """Prints each line once, over any number of looks at the whole output."""

    def __init__(self, *, as_json: bool, follow: bool) -> None:
        self.follow = follow
        self.seen = 0
        self._as_json = as_json
        self._printed = 0
        self._held: tuple[int, str] | None = None

    async def print_new(self, backend: Any, external_id: str, *, is_last: bool) -> bool:
        """Print what is new; False when nobody reads it any more.

        The last line may still be growing: it is held back until the next look finds it unchanged.
        """
        index = 0
        held: LogLine | None = None
        async for line in backend.logs(external_id, None):
            if held is not None and not self._print(held, index - 1):
                return False
            held = line
            index += 1
        self.seen = index
        if held is None:
            return True
        before, self._held = self._held, (index, held.text)
        is_whole = is_last or before == self._held
        return not is_whole or self._print(held, index - 1)

    def _print(self, line: "LogLine", index: int) -> bool:
        from jobrunner.cli.output import row_as_json, say, say_json

        if index < self._printed:
            return True
        self._printed = index + 1
        if not self._as_json:
            return say(line.text)
        return say_json(row_as_json({"text": line.text, "at": line.at, "source": line.source or None}))
