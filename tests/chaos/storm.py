"""One storm from its first job to its verdict: a database, workers, the world outside, and chaos over all."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
from sqlalchemy import make_url

from jobrunner.errors import DatabaseError, DatabaseRefused
from jobrunner.settings import configure
from tests.chaos import demotion, history, slow_names
from tests.chaos.bursts import Bursts
from tests.chaos.faults import AWAY, CALL_S, HEARTRATE_S, Faults
from tests.chaos.hostile import AS_PLANNED, Unprintable
from tests.chaos.outside import Outside
from tests.chaos.processes import NO_DATABASE, ROOT, Place, Processes, a_cluster, a_worker
from tests.chaos.sides import by_name, outside
from tests.chaos.strikes import Chaos
from tests.chaos.switches import Switches
from tests.chaos.verdict import Verdict, judge, read_rows
from tests.helpers import plain_sql
from tests.pooler import IGNORES_OPTIONS, PgBouncer, find_pgbouncer
from tests.postgres import Postgres
from tests.proxy import TcpProxy

_STALL_S = 1.0
_TRACE_LINES = 40  # that the report quotes
_LOOK_S = 0.1
_SAY = Callable[[str], object]
_POOLER = (
    IGNORES_OPTIONS,
    "default_pool_size = 5",
    "server_login_retry = 0.5",  # else it keeps away from a server for 15 s after one failure
)
_ODD_PATH = "é %41 #1 'x'"


@dataclass(frozen=True, slots=True)
class Phase:
    """So many seconds of some faults, one every so often (a range of seconds)."""

    name: str
    seconds: float
    faults: Sequence[str]
    every_s: tuple[float, float]


class Storm:
    """What runs while chaos does its worst. As a context it is up and running."""

    def __init__(
        self,
        directory: Path,
        url: str,
        *,
        seed: int,
        jobs_per_s: float,
        postgres: Postgres | None = None,
        small_disk: Path | None = None,
        workers: int = 2,
        dask_workers: int = 2,
        burst: int = 500,
    ) -> None:
        self.url = url
        self.faults = Faults()
        self._directory = directory / "here"
        self._directory.mkdir()
        self._rng = random.Random(seed)
        self._rng_of_jobs = random.Random(seed + 2)
        self._seed = seed
        self._burst = burst
        self._jobs_per_s = jobs_per_s
        self._postgres = postgres
        self._workers, self._dask_workers = workers, dask_workers
        self._stack = ExitStack()
        self.processes = Processes(self._directory, random.Random(seed + 1), self._on_end)
        self.small_disk = small_disk
        self._is_storing = False
        self.has_pooler = postgres is not None and find_pgbouncer() is not None
        self._is_over = threading.Event()
        self._broken: list[BaseException] = []

    def __enter__(self) -> Self:
        self._stack.__enter__()
        self._notes = self._directory / f"notes {_ODD_PATH}"
        self.outside: Outside = outside(self._stack, self._notes, self._seed + 3)
        self._data = self._directory / f"data {_ODD_PATH}"
        configure(database_url=self.url, heartrate=HEARTRATE_S, data_dir=self._data)
        history.install(self.url)
        if self._postgres is not None:
            demotion.install(self.url)
        self._switches = Switches(self._directory / "switches")
        self._site = slow_names.prepare(self._directory / "site")
        rng_of_bursts = random.Random(self._seed + 4)
        self._bursts = Bursts(self.outside, self.url, rng_of_bursts, self._burst, self._is_over)
        self.chaos = Chaos(
            self.faults,
            self.processes,
            self.outside,
            self._bursts,
            self._switches,
            self.url,
            self._rng,
            self._postgres,
            self.small_disk,
        )
        self._stack.callback(self.processes.kill)
        for number in range(self._workers):
            proxy = self._proxy()
            is_last = number == self._workers - 1
            pooler = self._pooler(proxy) if proxy is not None and is_last else None
            environment = self._environment(proxy, pooler)
            self.processes.add(a_worker(f"worker{number}", self._directory, environment, proxy, pooler))
        if self._dask_workers:
            proxies = [self._proxy() for _ in range(1 + self._dask_workers)]
            environments = [self._environment(proxy) for proxy in proxies]
            for place in a_cluster(self._directory, environments, proxies):
                self.processes.add(place)
        self._stack.enter_context(self._threads())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(None, None, None)

    def _proxy(self) -> TcpProxy | None:
        if self._postgres is None:
            return None
        return self._stack.enter_context(TcpProxy(self._postgres.socket_dir))

    def _pooler(self, proxy: TcpProxy) -> PgBouncer | None:
        program = find_pgbouncer()
        if program is None:
            return None
        return self._stack.enter_context(PgBouncer(program, proxy.port, *_POOLER))

    def _environment(self, proxy: TcpProxy | None, pooler: PgBouncer | None = None) -> dict[str, str]:
        """Return what a worker needs to know; its deadlines are short, so that it soon sees what is gone."""
        return {
            **self.outside.environment(),
            **self._switches.environment(),
            "PYTHONPATH": f"{self._site}{os.pathsep}{ROOT}",
            "JOBRUNNER_DATABASE_URL": self._url_by(proxy, pooler),
            "JOBRUNNER_DATA_DIR": str(self._data),
            "JOBRUNNER_HEARTRATE": str(HEARTRATE_S),
            "JOBRUNNER_CONNECT_TIMEOUT_S": "3",
            "JOBRUNNER_STATEMENT_TIMEOUT_S": "3",
            "JOBRUNNER_LOCK_TIMEOUT_S": "2",
            "JOBRUNNER_CALL_TIMEOUT_S": f"{CALL_S:g}",
        }

    def _url_by(self, proxy: TcpProxy | None, pooler: PgBouncer | None) -> str:
        """Return the URL of the database, on PostgreSQL by the name of this machine."""
        if proxy is None:
            return self.url
        database = make_url(self.url).database or ""
        if pooler is None:
            return by_name(proxy.url(database))
        return f"postgresql://postgres@localhost:{pooler.port}/{database}"

    def _on_end(self, place: Place) -> None:
        self.faults.note(f"the end of {place.name}", pids=frozenset({place.pid}), is_consequence=True)
        assert place.process is not None
        code = place.process.returncode
        is_start = code == NO_DATABASE and not place.has_begun and self._was_away(place.started_s)
        is_expected = code in place.expected or is_start
        if place.kind == "worker" and not is_expected:
            self.processes.odd_ends.append(f"{place.writer} ended with {code}: see {place.words}")

    def _was_away(self, since_s: float) -> bool:
        """Whether the database was away at any time since then: who starts meanwhile ends, and says so."""
        now_s = time.time()
        return any(each.is_database_away and each.overlaps(since_s, now_s) for each in self.faults.log)

    # --- what goes on all the while ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._until_over, args=(do,), name=f"chaos {do.__name__}")
            for do in (self._move, self._store, self._bursts.step, self._watch_the_machine)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def _until_over(self, do: Callable[[], float]) -> None:
        try:
            while not self._is_over.wait(do()):
                pass
        except BaseException as error:
            self._broken.append(error)
            raise

    def _move(self) -> float:
        self.outside.move()
        return _LOOK_S

    def _store(self) -> float:
        if not self._is_storing:
            return _LOOK_S
        plan = self.outside.plan(self._rng_of_jobs)
        job = self.outside.job(plan, self._rng_of_jobs)
        while not self._is_over.is_set():
            try:
                job.store()  # again, where the answer alone was lost: the job is stored once
                plan.job = job
                break
            except DatabaseRefused as error:
                self.faults.wrongs.append(f"{plan.name} was refused: {error}")
                break
            except DatabaseError:
                self._is_over.wait(0.2)
        return self._rng_of_jobs.expovariate(self._jobs_per_s)

    def _watch_the_machine(self) -> float:
        """Note when this very process got no time to run: then the others got none either."""
        before_s = time.time()
        self._is_over.wait(_LOOK_S)
        if time.time() - before_s > _STALL_S:
            fault = self.faults.note("the machine stood still", silences_all=True, is_consequence=True)
            fault.from_s = before_s
            fault.end()
        return 0.0

    # --- the course of it -------------------------------------------------------------------------------

    def run(self, phases: Sequence[Phase], say: _SAY) -> None:
        """Let the phases come one after the other."""
        self._is_storing = True
        for phase in phases:
            before = len(self.faults.log)
            self._through(phase)
            done = sum(not each.is_consequence for each in self.faults.log[before:])
            jobs = len(self.outside.plans)
            say(f"{phase.name}: {phase.seconds:.0f} s, {done} faults, {jobs} jobs so far")
        self._is_storing = False
        self.faults.take_back(all_of_them=True)

    def _through(self, phase: Phase) -> None:
        end_s = time.monotonic() + phase.seconds
        next_s = time.monotonic()
        deck: list[str] = []  # each has its turn before any comes again
        while time.monotonic() < end_s:
            self._look()
            if phase.faults and time.monotonic() >= next_s:
                deck = deck or self._rng.sample(phase.faults, len(phase.faults))
                getattr(self.chaos, deck.pop())()
                next_s = time.monotonic() + self._rng.uniform(*phase.every_s)
            time.sleep(_LOOK_S / 2)

    def _look(self) -> None:
        if self._broken:
            raise self._broken[0]
        self.faults.take_back()
        self.processes.look()

    def settle(self, timeout_s: float) -> None:
        """Let calm return, and wait until every job has ended, or for so long."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and self._count_open():
            self._look()
            time.sleep(_LOOK_S)

    def _count_open(self) -> int:
        """Return how many jobs have not ended, -1 where that cannot be told."""
        if not (self.faults.wrongs or all(plan.is_stored for plan in list(self.outside.plans.values()))):
            return -1
        query = "SELECT count(*) FROM job WHERE state IN ('queued', 'running') AND job_type != 'WorkerJob'"
        with suppress(*AWAY):
            return int(plain_sql(self.url, query)[0][0])
        return -1

    def verdict(self) -> Verdict:
        """Stop the workers, and judge."""
        left = _left_behind(str(self._notes))
        self.processes.stop()
        self._is_over.set()
        self.outside.move(looks_again=True)
        noted = history.read(self.url)
        for name, lines in (("changes", noted.changes), ("faults", self.faults.log)):  # for who looks into it
            (self._directory / f"{name}.txt").write_text("".join(f"{each}\n" for each in lines))
        verdict = judge(self.outside, read_rows(self.url), noted, self.faults)
        kept = [] if self._postgres is None else demotion.kept(self.url)
        verdict.wrong_outcomes += left + self.processes.odd_ends + self._traces() + kept
        return verdict

    def _traces(self) -> list[str]:
        """Return which workers wrote a traceback of ours, but that of a job's own code."""
        return [
            f"{place.name} wrote a traceback: {' / '.join(trace.splitlines()[:_TRACE_LINES])}"
            for place in self.processes.places
            for trace in place.words.read_text().split("Traceback (most recent call last)")[1:]
            if place.kind == "worker" and "/jobrunner/" in trace and not _is_planned(trace)
        ]


def _is_planned(trace: str) -> bool:
    return AS_PLANNED in trace or f"{Unprintable.__module__}.{Unprintable.__name__}" in trace


def _left_behind(notes: str) -> list[str]:
    """Return the commands of jobs that still run though every job has ended."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if notes in line and process.pid != os.getpid():
            found.append(f"a process was left behind: {process.pid} {line[:200]}")
    return found
