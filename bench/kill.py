"""From a committed kill flag to `on_kill`, and what waiting for it costs."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

from bench.places import Place, bare_postgresql, bare_sqlite, kind, url_of
from bench.report import Row
from bench.timing import median, ms, percentile
from jobrunner.backends.base import Backend
from jobrunner.database import Database
from jobrunner.errors import JobKilled
from jobrunner.models import BaseJob, MonitorJob
from jobrunner.settings import ConnectionSettings, configure, reset
from jobrunner.testing import MemoryBackend, Plan

_IDLE_TARGET = 0.01  # of a core
_OUTSIDE = MemoryBackend(plan=Plan())


class WatchedJob(MonitorJob, job_type="bench.WatchedJob"):
    """A monitor job whose work never ends by itself."""

    backend_kind = "memory"

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:  # noqa: ARG003
        """Return the outside that all of them share."""
        return _OUTSIDE

    def on_kill(self) -> None:
        """Note the moment."""
        self.__dict__["killed_s"] = time.perf_counter()


class WaitingJob(BaseJob, job_type="bench.WaitingJob"):
    """Beats every 30 s, and notes when it was told to end."""

    def _execute(self) -> None:
        while True:
            self.heartbeat()

    def on_kill(self) -> None:
        """Note the moment."""
        self.__dict__["killed_s"] = time.perf_counter()


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield the latency of a kill by plain SQL, and the share of a core that an idle waiter uses."""
    for database in place.databases():
        configure(database_url=url_of(database), heartrate=30.0)
        try:
            flag = _flag_by_plain_sql(database)
            for job_class, what in ((WaitingJob, "a job's own code"), (WatchedJob, "a runner")):
                took = [_killed_after_s(job_class, flag) for _ in range(30 if quick else 200)]
                yield _latency(f"{kind(database)}: plain UPDATE to on_kill, {what}, {len(took)} times", took)
                idle = f"{kind(database)}: processor time of a process that waits, {what}"
                yield _idle(idle, job_class, flag, 3.0 if quick else 10.0)
        finally:
            reset()


def _latency(what: str, took: list[float]) -> Row:
    middle, late = median(took), percentile(took, 99)
    return Row(
        what,
        f"median {ms(middle)}, p99 {ms(late)}, longest {ms(max(took))}",
        "< 50 ms, p99 < 150 ms",
        middle < 0.05 and late < 0.15,
        {"median_s": middle, "p99_s": late, "max_s": max(took)},
    )


def _killed_after_s(job_class: type[BaseJob], flag: Callable[[int], None]) -> float:
    job, thread = _start(job_class)
    time.sleep(random.uniform(0.1, 0.2))  # it connects and listens; the flag then comes at any moment
    # Before it is sent: the time that the commit takes is in the figure.
    began = time.perf_counter()
    flag(job.id)
    thread.join(30)
    return float(job.__dict__["killed_s"]) - began


def _idle(what: str, job_class: type[BaseJob], flag: Callable[[int], None], seconds: float) -> Row:
    job, thread = _start(job_class)
    time.sleep(0.5)
    began = time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - began) / seconds
    flag(job.id)
    thread.join(30)
    return Row(
        f"{what}, over {seconds:g} s",
        f"{share:.2%} of a core",
        f"< {_IDLE_TARGET:.0%}",
        share < _IDLE_TARGET,
        {"share": share},
    )


def _start(job_class: type[BaseJob]) -> tuple[BaseJob, threading.Thread]:
    job = job_class()

    def run() -> None:
        with suppress(JobKilled):
            job.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while job.__dict__.get("id") is None:
        if not thread.is_alive():
            raise RuntimeError("the job did not start: its thread has said why")
        time.sleep(0.002)
    return job, thread


def _flag_by_plain_sql(database: Database) -> Callable[[int], None]:
    """Return what sets the flag as a person with a database client does."""
    if database.is_sqlite:
        statement = "UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP WHERE id = ?"
    else:
        statement = "UPDATE job SET kill_requested_at = now() WHERE id = %s"

    def flag(job_id: int) -> None:
        driver: Any = bare_sqlite(database) if database.is_sqlite else bare_postgresql(database)
        with closing(driver):
            driver.execute(statement, (job_id,))

    return flag
