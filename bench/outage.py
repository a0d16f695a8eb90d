"""A backend that is away, and a database that is away: nobody's jobs may be taken for orphans."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from bench.places import Place
from bench.report import Row
from bench.worker_apart import Apart, a_worker, ask, at_work, count_of, store, until
from bench.worker_process import JOB_TYPE

WORKERS = 2
HEARTRATE_S = 5.0
_JOBS = 2_000
_AFTER_S = 4 * HEARTRATE_S  # more than a grace: what is silent at the end of an outage would show by now
_NOT_ADOPTED = (
    "SELECT count(*) FROM job_event WHERE reason LIKE 'adopted%' OR to_state NOT IN ('queued', 'running')"
)


def measure(place: Place, *, quick: bool, long: bool = False) -> Iterator[Row]:
    """Yield the adoptions through both. `long`: the backend's outage in its full length."""
    backend_s, database_s = (15, 15) if quick else (600 if long else 180, 60)
    short = "" if long else " (of 10 min: --long)"

    def backend(workers: list[Apart]) -> None:
        for worker in workers:
            worker.tell("down")
        time.sleep(backend_s)
        for worker in workers:
            worker.tell("up")

    def database(_workers: list[Apart]) -> None:
        with place.postgresql_away():
            time.sleep(database_s)

    yield _through(place, f"the backend away for {backend_s} s{short}", backend)
    yield _through(place, f"the database away for {database_s} s", database)


def _through(place: Place, what: str, outage: Callable[[list[Apart]], None]) -> Row:
    with place.postgresql() as database, ExitStack() as stack:
        workers = [
            stack.enter_context(a_worker(database, heartrate=HEARTRATE_S, capacity=_JOBS))
            for _ in range(WORKERS)
        ]
        until(lambda: at_work(database) == WORKERS, "all workers look around", 60)
        store(database, _JOBS, heartrate=HEARTRATE_S, poll_interval=HEARTRATE_S, is_outside=True)
        until(lambda: count_of(database, "running") == _JOBS, "all are claimed", 60)
        time.sleep(HEARTRATE_S)
        outage(workers)
        database.dispose()  # what was connected to a server that went away
        back_s = time.monotonic()
        looks = [worker.tell()["looks"] for worker in workers]
        until(
            lambda: all(
                worker.tell()["looks"] > before for worker, before in zip(workers, looks, strict=True)
            ),
            "all are watched again",
            120,
        )
        watched_s = time.monotonic() - back_s
        time.sleep(_AFTER_S)
        adopted = int(ask(database, _NOT_ADOPTED))
        claims = int(ask(database, f"SELECT sum(claims) FROM job WHERE job_type = '{JOB_TYPE}'"))
        running = count_of(database, "running")
        found: dict[str, Any] = {"adopted": adopted, "claims": claims, "running": running}
    return Row(
        f"PostgreSQL: {WORKERS} workers, {_JOBS:,} jobs, heartrate {HEARTRATE_S:g} s, {what}",
        f"adoptions {adopted}, jobs running {running:,}; looked at again {watched_s:.1f} s after it",
        "adoptions 0",
        adopted == 0 and claims == _JOBS and running == _JOBS,
        found | {"looked_at_again_s": watched_s},
    )
