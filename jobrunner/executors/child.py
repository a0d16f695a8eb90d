"""The child process of a job that runs its own code: it claims the job first, then runs it.

A process of its own, so that no job can hang or crash its worker: `python -m jobrunner.executors.child`,
with one line of JSON on its standard input (`Order`).
"""

import datetime as dt
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

from sqlalchemy import Connection, RowMapping

from jobrunner import registry, statements
from jobrunner.clock import monotonic_s
from jobrunner.database import Database, get_database
from jobrunner.doubt import WriteOnce
from jobrunner.errors import ClaimLost, DatabaseUnavailable, JobNotFound, JobrunnerError, UsageError, words_of
from jobrunner.executors.family import Family
from jobrunner.executors.guardian import go_on_under_guardian
from jobrunner.logs import get_logger, log_as_lines
from jobrunner.models import BaseJob, MonitorJob, UnknownJob
from jobrunner.models.base_job import object_of
from jobrunner.models.own_run import OwnRun, Terminated, run_claimed
from jobrunner.models.rows import refresh
from jobrunner.models.start import NotTaken, claimed, still_claimed
from jobrunner.retry import Retry
from jobrunner.settings import configure
from jobrunner.statements import Claim, Owner, Sighting, new_owner
from jobrunner.states import JobState
from jobrunner.sweeper import acting, confirmed

log = get_logger(__name__)

NOT_OURS = 75
"""The exit code of a child whose claim failed: somebody else has the job."""
NOT_BEGUN = 76
"""The exit code of one that could not be told whether it has the job: none of its code has run."""
ENDED = 0
"""The exit code of one that wrote its job's outcome, whatever it was."""
CLAIM_WITHIN_S = 60.0
"""Seconds for which a child tries to claim its job while the database is away."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a child shall run: a queued job, or an orphan as it was sighted."""

    job_id: int
    runner_id: str
    executor_class: str
    settings: dict[str, Any]
    imports: tuple[str, ...] = ()
    orphan: tuple[str | None, int, str] | None = None

    def to_line(self) -> bytes:
        """Return it as one line."""
        return json.dumps(asdict(self), default=str).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Order":
        """Read it."""
        given = json.loads(line)
        given["imports"] = tuple(given["imports"])
        if given["orphan"] is not None:
            given["orphan"] = tuple(given["orphan"])
        return cls(**given)

    def sighting(self) -> Sighting | None:
        """Return how the orphan was sighted."""
        if self.orphan is None:
            return None
        runner_id, claims, beat = self.orphan
        return Sighting(self.job_id, runner_id, claims, dt.datetime.fromisoformat(beat))


def main(guardian: int) -> int:
    """Run the job of the order; return the exit code. `guardian`: the process that its code descends from."""
    log_as_lines()
    order = Order.from_line(sys.stdin.buffer.readline())
    try:
        if order.settings:
            configure(**order.settings)
        claimed = _claimed(order)
    except JobrunnerError as error:
        log.error("the job cannot be claimed", job=order.job_id, error=error)
        return NOT_BEGUN
    if claimed is None:
        return NOT_OURS
    database, claim, row = claimed
    try:
        job = _made(row, order.imports)
    except BaseException as error:  # whatever the import of somebody's module raises
        is_known = isinstance(error, JobrunnerError)
        log.error("the job cannot be loaded", job=order.job_id, error=error, exc_info=not is_known)
        why = str(error) if is_known else words_of(error)
        grace = database.settings.grace_multiplier
        own = OwnRun(database, claim, row["heartrate"], grace)
        try:
            own.end(JobState.FAILED, f"it cannot be loaded here: {why}")
        except JobrunnerError as trouble:  # it was deleted or taken over, or the database stays away
            log.warning("the job ended", job=order.job_id, error=trouble)
        return ENDED
    interrupt = _interrupting(job)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run_claimed(job, database, claim, Family.around(guardian, order.runner_id).see_off)
    except KeyboardInterrupt:
        pass
    except JobrunnerError as error:
        log.warning("the job ended", job=order.job_id, error=error)
    except Exception as error:  # the job's own code's: its outcome is written, and here is where it came from
        log.error("the job failed", job=order.job_id, error=error, exc_info=True)
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:  # there is no code any more to be interrupted
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return ENDED


def _claimed(order: Order) -> tuple[Database, Claim, RowMapping] | None:
    """Claim the job, also when the database is away for a moment; None: somebody else has it.

    Raises `JobrunnerError`, after `CLAIM_WITHIN_S` where the database stays away.
    """
    owner = replace(new_owner(order.executor_class), runner_id=order.runner_id)
    until_s = monotonic_s() + CLAIM_WITHIN_S
    database = _reached(order, until_s)
    once = WriteOnce(
        database,
        lambda act: claimed(act.connection, order.job_id, owner, lambda _connection: act.claim(owner)),
        lambda connection: still_claimed(connection, order.job_id, owner),
        patience_s=until_s - monotonic_s(),
        waits_to_send=True,
        begin=lambda: _acting(database, order),
    )
    try:
        taken = once.do()
    except (NotTaken, ClaimLost, JobNotFound):
        return None
    return database, taken.claim, taken.row


def _reached(order: Order, until_s: float) -> Database:
    retry = Retry(most_s=2.0)
    while True:
        try:
            return get_database()
        except DatabaseUnavailable as error:
            if monotonic_s() >= until_s:
                raise
            if retry.count == 0:
                log.warning("the job cannot be claimed yet", job=order.job_id, error=error)
        time.sleep(retry.next_s())


@dataclass(frozen=True, slots=True)
class _Act:
    """The write in which the job is claimed: queued, or as the orphan that stood still once more."""

    connection: Connection
    claim: Callable[[Owner], Claim | None]


@contextmanager
def _acting(database: Database, order: Order) -> Iterator[_Act]:
    seen = order.sighting()
    if seen is None:
        with database.write() as connection:
            yield _Act(connection, lambda owner: statements.claim_queued(connection, order.job_id, owner))
        return
    orphan = confirmed(database, seen, CLAIM_WITHIN_S)
    with acting(database) as act:
        still_good = [] if orphan is None else act.still_good([orphan])
        yield _Act(
            act.connection,
            lambda owner: next((statements.adopt(act.connection, each, owner) for each in still_good), None),
        )


def _made(row: Any, imports: tuple[str, ...]) -> BaseJob:
    """Return the object of a job that runs its own code, made as its first start made it."""
    for module in imports:
        registry.load_module(module)
    spec = row["spec"] if isinstance(row["spec"], dict) else {}
    if "class" in spec:
        job = registry.load(spec["class"])(**spec.get("args", {}))
        refresh(job, row)
    else:
        job = object_of(row)
    if isinstance(job, UnknownJob) or not isinstance(job, BaseJob) or isinstance(job, MonitorJob):
        raise UsageError(
            f"There is no class for the job type {row['job_type']!r}: register it under `jobrunner.jobs`."
        )
    return job


def _interrupting(job: BaseJob) -> Callable[[int, FrameType | None], None]:
    """Return the handler of SIGTERM: it interrupts the code, and lets its run know that it did."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        error = Terminated("ended by SIGTERM")
        if job._own is not None:
            job._own.interrupt = error
        raise error

    return interrupt


if __name__ == "__main__":
    sys.exit(main(go_on_under_guardian()))
