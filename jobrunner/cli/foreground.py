"""Running a job in the foreground: from its start to the exit code."""

import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobrunner import registry, worklist
from jobrunner.cli.exits import CODE_OF_STATE, ExitCode, code_of, show_own_traceback, tell
from jobrunner.cli.live import Live
from jobrunner.cli.options import JobOptions
from jobrunner.cli.output import log_as_words, report, report_json, word
from jobrunner.cli.spelling import why_waiting
from jobrunner.database import get_database
from jobrunner.errors import ClaimLost, DatabaseError, JobEndedBadly, JobrunnerError, Released
from jobrunner.states import JobState

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

    from jobrunner.models import BaseJob, MonitorJob

_LAST_LOOK_S = 2.0  # for a process that was told to stop: the database may not answer


def start_monitor_job(make: "Callable[..., MonitorJob]", options: JobOptions) -> int:
    """Make a monitor job, run it in this process to its end, and return the exit code.

    `make` is called with the arguments that every kind of job takes; where it raises, nothing is stored.
    A detached one is only queued.
    """
    log_as_words()
    if options.detach:
        return queue(make(**options.of_job), as_json=options.as_json)
    with Live(as_json=options.as_json) as live:
        executor: Any = registry.load_executor_class("LocalExecutor")(
            on_exit=options.on_exit, on_started=live.started
        )
        return watch_to_the_end(make(executor=executor, **options.of_job).run, live)


def queue(job: "BaseJob", *, as_json: bool) -> int:
    """Store a job for a worker to take, print its id, and say so where nobody will take it soon."""
    try:
        with _stops_as_interrupts(job):
            job.store()
    except KeyboardInterrupt as error:
        word(
            f"jobrunner: {str(error) or 'interrupted'}: the job may have been stored, and a worker runs it "
            f"then: `jobrunner list --key {shlex.quote(job.key or '')}` shows whether it was."
        )
        return _code_of_interrupt(error)
    is_told = report_json({"id": job.id, "state": str(job.state)}) if as_json else report(f"job {job.id}")
    why = _why_waiting(job)
    if why is not None or not is_told:
        word(f"job {job.id} is queued" + (f": {why}" if why else ""))
    return ExitCode.SUCCESS


def _why_waiting(job: "BaseJob") -> str | None:
    """Return why no worker will take the job soon; None: one will."""
    database = get_database()
    try:
        with database.read() as connection:
            workers = worklist.workers(connection, database.settings.grace_multiplier)
    except DatabaseError as error:  # it is stored, and that is what was asked for
        return f"it is not known whether a worker takes it ({error})"
    return why_waiting(job.job_type, job.connection, workers, job.spec, is_special=job.needs is not None)


def watch_to_the_end(run: Callable[[], None], live: Live) -> int:
    """Run what watches a monitor job, say how it ended, and return the exit code."""
    try:
        run()
    except Released as error:
        row = live.finish(_LAST_LOOK_S)
        has_begun = row is None or row["external_id"] is not None
        work = "its work goes on" if has_begun else "its work is not known to have begun"
        word(f"job {live.job_id} is released: {work}, and nobody watches it, nor any timeout.")
        word(f"  to watch it again: jobrunner attach {live.job_id}")
        word(f"  to kill it:        jobrunner kill {live.job_id}")
        return code_of(error)
    except JobEndedBadly as error:
        if live.finish() is None:
            word(f"jobrunner: {error}")
        return code_of(error)
    except ClaimLost as error:
        row = live.finish()
        code = tell(error)
        # Whoever took it may have seen its end: then that is the outcome.
        return code if row is None else CODE_OF_STATE.get(JobState(row["state"]), code)
    live.finish()
    return ExitCode.SUCCESS


_SAME_SIGNAL_S = 0.5
"""What is sent to a whole group of processes arrives twice: by itself, and by way of the guardian."""


class _Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as what ends a user's code just as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def run_own_code(job: "BaseJob", live: Live) -> int:
    """Run a user's own job in this process, say how it ended, and return the exit code."""
    try:
        with _stops_as_interrupts(job):
            job.run()
    except JobrunnerError as error:
        row = live.finish()
        if row is None or not JobState(row["state"]).is_terminal:
            return tell(error)
        return code_of(error) if isinstance(error, JobEndedBadly) else _code_of(row, ExitCode.FAILED)
    except KeyboardInterrupt as error:
        live.finish(_LAST_LOOK_S)
        return _code_of_interrupt(error)
    except SystemExit:
        return _code_of(live.finish(), ExitCode.FAILED)
    except BaseException as error:  # the job's own code's: its author has to see where it came from
        if live.job_id is None:
            raise
        show_own_traceback(error)
        return _code_of(live.finish(), ExitCode.FAILED)
    return _code_of(live.finish(), ExitCode.SUCCESS)


def _code_of_interrupt(error: KeyboardInterrupt) -> int:
    return 128 + error.number if isinstance(error, _Stopped) else ExitCode.INTERRUPTED


def _code_of(row: "RowMapping | None", unknown: int) -> int:
    """Return the exit code that a job's row means, whatever its code raised; `unknown`: without a row."""
    return unknown if row is None else CODE_OF_STATE.get(JobState(row["state"]), ExitCode.FAILED)


@contextmanager
def _stops_as_interrupts(job: "BaseJob") -> Iterator[None]:
    last_s = -math.inf

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal last_s
        before_s, last_s = last_s, time.monotonic()
        if last_s - before_s > _SAME_SIGNAL_S:
            error = KeyboardInterrupt() if number == signal.SIGINT else _Stopped(number)
            if job._own is not None:
                job._own.interrupt = error
            raise error

    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in stopping}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
