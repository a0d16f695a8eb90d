"""What runs on the workers of a Dask cluster: functions that travel there by their names, and their orders.

jobrunner is installed on each Dask worker, with settings of its own; that it reaches the same database as
the worker that sent the order is proven before anything is done.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection

from jobrunner import registry, statements
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseError, JobNotFound, JobrunnerError
from jobrunner.executors.children import Children
from jobrunner.log_limits import Seldom, Trouble
from jobrunner.logs import get_logger
from jobrunner.retry import until_taken
from jobrunner.settings import configure, configured
from jobrunner.statements import Claim, Sighting
from jobrunner.states import JobState
from jobrunner.sweeper import Lookout

log = get_logger(__name__)

_T = TypeVar("_T")

EXECUTOR = "DaskExecutor"
"""The executor's name in the rows of all that runs on the cluster."""
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Sender:
    """The worker that spreads the jobs: its claim on its own row, and what was configured in its code."""

    claim: Claim
    settings: Mapping[str, Any]
    imports: tuple[str, ...]

    def database(self) -> Database | None:
        """Return the database of this process, if the sender's row is in it."""
        if configured() != self.settings:
            configure(**self.settings)
        database = get_database()
        row = _row(database, self.claim.job_id)
        is_the_same = row is not None and row["runner_id"] == self.claim.runner_id
        return database if is_the_same else None


ELSEWHERE = "this Dask worker reaches another database: give it the same JOBRUNNER_DATABASE_URL"


def _row(database: Database, job_id: int) -> Any:
    with database.read() as connection:
        return statements.get_or_none(connection, job_id)


# --- a job with code ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CodeOrder:
    """One job to be run: queued, or an orphan as it was sighted."""

    sender: Sender
    job_id: int
    orphan: Sighting | None = None


def run_one(order: CodeOrder) -> str | None:
    """Run a job in a child process of this Dask worker, to its end; return why it could not be begun.

    The child claims the job first. Dask may run this twice: the second copy's claim fails, and it ends
    untouched.
    """
    database = order.sender.database()
    return ELSEWHERE if database is None else asyncio.run(_run_one(database, order))


async def _run_one(database: Database, order: CodeOrder) -> str | None:
    seldom = Seldom()

    async def persist(write: Callable[..., _T], *args: Any) -> _T:
        def once() -> _T:
            with database.write() as connection:
                return write(connection, *args)

        most_s = database.settings.heartrate
        return await until_taken(lambda: asyncio.to_thread(once), write.__name__, most_s, seldom)

    children = Children(database, EXECUTOR, persist, order.sender.imports)
    await children.start(order.job_id, order.orphan)
    trouble = Trouble()
    while not await children.until_idle(_LOOK_S):
        try:
            await children.look()
            trouble.ends()
        except DatabaseError as error:
            if trouble.begins():
                log.warning("a child cannot be looked after", job=order.job_id, error=error)
    return "its process failed before it claimed it" if children.is_resting(order.job_id) else None


# --- monitor jobs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServeOrder:
    """What a worker on a Dask worker shall be."""

    sender: Sender
    heartrate: float
    capacity: int
    job_types: tuple[str, ...]
    connections: tuple[str, ...]
    address: str


def serve(order: ServeOrder) -> str | None:
    """Take and watch monitor jobs here, until the sender stops; return why it could not be begun.

    It leaves Dask's thread pool first, so that it keeps no slot from other tasks.
    """
    from distributed import get_worker, secede

    dask_worker = get_worker()
    secede()  # type: ignore[no-untyped-call]
    database = order.sender.database()
    if database is None:
        return ELSEWHERE
    for module in order.sender.imports:
        registry.load_module(module)
    job: Any = registry.load("jobrunner.worker.job:WorkerJob")(
        None,
        order.heartrate,
        capacity=order.capacity,
        processes=0,
        job_types=order.job_types,
        connections=order.connections,
        imports=order.sender.imports,
        parent_id=order.sender.claim.job_id,
        executor_class=EXECUTOR,
        served_for={"dask_worker": order.address},
    )
    sender = _SenderWatch(database, order.sender.claim)

    def why_stop() -> str | None:
        if dask_worker.status.name not in {"running", "paused"}:
            return "its Dask worker is being closed"
        return sender.why_stop()

    job.why_stop = why_stop
    try:
        job.run()
    except JobrunnerError as error:  # killed by a person, or taken for dead: it is started again
        log.warning("a worker on a Dask worker ended", job=job.id, error=error)
    return None


class _SenderWatch:
    """Whether the worker that started us is still there: its row tells."""

    def __init__(self, database: Database, claim: Claim) -> None:
        self._database = database
        self._claim = claim
        self._lookout = Lookout(claim.job_id, database.settings.grace_multiplier)

    def why_stop(self) -> str | None:
        """Return why there is nobody any more to serve for; None: there is, as far as can be told."""
        why = None
        with self._lookout.trying(), self._database.read() as connection:
            why = self._why_gone(connection)
        return None if why is None else f"worker {self._claim.job_id} {why}"

    def _why_gone(self, connection: Connection) -> str | None:
        try:
            row, orphan = self._lookout.look(connection)
        except JobNotFound:
            return "has ended"
        if row["state"] is not JobState.RUNNING or row["runner_id"] != self._claim.runner_id:
            return "has ended"
        if (row["detail"] or {}).get("stopping"):
            return "stops"
        return None if orphan is None else "is silent"
