"""What chaos does: each fault strikes something at random, is noted, and is taken back after a while."""

import heapq
import itertools
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from tests.chaos.outside import Outside
from tests.chaos.processes import NO_DATABASE, TAKEN_FOR_DEAD, Place, Processes
from tests.helpers import plain_sql
from tests.postgres import Postgres

HEARTRATE_S = 2.0
GRACE_S = 2.1 * HEARTRATE_S
AWAY = (psycopg.Error, sqlite3.Error)
"""What a client is told while the database is away."""
_RECOVERS_S = 10.0  # what was cut off reaches the database again within this time


@dataclass(slots=True)
class Fault:
    """One fault: what it was, when it held (time.time()), and whom others may take for dead by it."""

    kind: str
    from_s: float
    until_s: float = float("inf")
    pids: frozenset[int] = frozenset()
    writers: frozenset[str] = frozenset()
    silences_all: bool = False
    is_database_away: bool = False
    is_consequence: bool = False
    """Whether nobody did it: it came of another fault."""

    def end(self) -> None:
        self.until_s = time.time()

    def silences(self, pid: int | None, writer: str | None) -> bool:
        """Whether by this fault this process beats for nobody."""
        return self.silences_all or pid in self.pids or writer in self.writers

    def overlaps(self, from_s: float, until_s: float) -> bool:
        return self.from_s <= until_s and self.until_s >= from_s


@dataclass
class Faults:
    """All faults so far, and those that are to be taken back."""

    log: list[Fault] = field(default_factory=list)
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def note(self, kind: str, **whom: object) -> Fault:
        fault = Fault(kind, time.time(), **whom)  # type: ignore[arg-type]  # its own fields
        self.log.append(fault)
        return fault

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), do))

    def take_back(self, *, all_of_them: bool = False) -> None:
        """Take back what is due."""
        while self._later and (all_of_them or self._later[0][0] <= time.monotonic()):
            heapq.heappop(self._later)[2]()

    def silencing(self, pid: int | None, writer: str | None, from_s: float, until_s: float) -> list[Fault]:
        """Return the faults by which this process did not beat at some time of these."""
        return [each for each in self.log if each.silences(pid, writer) and each.overlaps(from_s, until_s)]


class Chaos:
    """Strikes at random. Each method does one fault, or none where there is nothing that it could strike."""

    def __init__(
        self, faults: Faults, processes: Processes, outside: Outside, url: str, rng: random.Random
    ) -> None:
        self.faults, self.processes, self.outside = faults, processes, outside
        self._url, self._rng = url, rng
        self.postgres: Postgres | None = None
        self.small_disk: Path | None = None

    # --- workers --------------------------------------------------------------------------------------

    def kill_a_worker(self) -> None:
        self._kill("kill -9 of a worker", "worker")

    def kill_a_dask_worker(self) -> None:
        self._kill("kill -9 of a Dask worker", "Dask worker")

    def kill_the_scheduler(self) -> None:
        self._kill("kill -9 of Dask's scheduler", "scheduler")

    def _kill(self, kind: str, *places: str) -> None:
        place = self._one_of(*places)
        if place is None:
            return
        self.faults.note(kind, pids=frozenset({place.pid}))
        place.is_struck = True
        place.send(signal.SIGKILL, -signal.SIGKILL)

    def stop_a_worker(self) -> None:
        """Deploy anew: SIGTERM, and the next one."""
        place = self._one_of("worker")
        if place is None:
            return
        place.is_struck = True
        self.faults.note("SIGTERM of a worker")
        place.send(signal.SIGTERM, 0, -signal.SIGTERM, TAKEN_FOR_DEAD)

    def pause_past_the_grace(self) -> None:
        seconds = GRACE_S + self._rng.uniform(2.0, 5.0)
        self._pause("SIGSTOP past the grace, SIGCONT", seconds, is_long=True)

    def pause_for_a_moment(self) -> None:
        """Stop a worker for less than its grace: nobody may take it for dead."""
        self._pause("SIGSTOP within the grace, SIGCONT", self._rng.uniform(0.3, 1.5), is_long=False)

    def _pause(self, kind: str, seconds: float, *, is_long: bool) -> None:
        place = self._one_of("worker", "Dask worker")
        if place is None:
            return
        fault = self.faults.note(kind, pids=frozenset({place.pid}) if is_long else frozenset())
        process = place.process
        assert process is not None
        place.is_struck = True
        place.send(signal.SIGSTOP, *([TAKEN_FOR_DEAD] if is_long else []))

        def go_on() -> None:
            process.send_signal(signal.SIGCONT)
            place.is_struck &= place.process is not process
            fault.end()
            fault.until_s += HEARTRATE_S  # until it has beaten

        self.faults.later(seconds, go_on)

    def kill_code(self) -> None:
        """Kill a process that runs a job's code: the job's own end."""
        running = "state = 'running' AND job_type IN ('ChaosCodeJob', 'ChaosAgainJob')"
        with suppress(*AWAY):
            pids = plain_sql(self._url, f"SELECT pid FROM job WHERE {running} ORDER BY random() LIMIT 1")
            for (pid,) in pids:
                with suppress(psutil.Error, OSError):
                    if psutil.Process(pid).cwd() == str(self.processes.directory):
                        self.faults.note("kill -9 of a process that runs code", pids=frozenset({pid}))
                        os.kill(pid, signal.SIGKILL)

    # --- the database ---------------------------------------------------------------------------------

    def restart_the_database(self) -> None:
        assert self.postgres is not None
        fault = self.faults.note("restart of PostgreSQL", is_database_away=True)
        self.postgres.stop()
        time.sleep(self._rng.choice([0.0, 0.0, 1.0, 3.0]))
        self.postgres.start()
        fault.end()

    def cut_connections(self) -> None:
        """End a worker's connections to the database; it may connect again at once."""
        place = self._one_of("worker", "Dask worker")
        if place is None or place.proxy is None:
            return
        self.faults.note("connections to the database cut").end()
        place.expected.add(NO_DATABASE)  # if it is only about to start
        place.proxy.cut()

    def leave_connections_half_open(self) -> None:
        """Let nothing through between a worker and the database, and say so to neither."""
        place = self._one_of("worker", "Dask worker")
        if place is None or place.proxy is None:
            return
        fault = self.faults.note("connections to the database half open", writers=frozenset({place.writer}))
        proxy, process = place.proxy, place.process
        place.is_struck = True
        place.expected |= {TAKEN_FOR_DEAD, NO_DATABASE}
        proxy.is_silent = True

        def go_on() -> None:
            proxy.cut()
            proxy.is_silent = False
            place.is_struck &= place.process is not process
            fault.end()
            fault.until_s += _RECOVERS_S

        self.faults.later(self._rng.uniform(3.0, 12.0), go_on)

    def fill_the_disk(self) -> None:
        """Leave no byte free where the SQLite file is."""
        assert self.small_disk is not None
        ballast = self.small_disk / "ballast"
        if ballast.exists():
            return
        fault = self.faults.note("disk of SQLite full", is_database_away=True)
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

        def empty() -> None:
            ballast.unlink()
            fault.end()

        self.faults.later(self._rng.uniform(1.0, 8.0), empty)

    # --- outside --------------------------------------------------------------------------------------

    def storm(self) -> None:
        """Let a server refuse, break off or hang all calls for a while."""
        side = self._rng.choice([each for each in self.outside.sides.values() if each.environment()])
        kind = side.storm(self._rng)
        fault = self.faults.note(f"storm of {side.kind}: {kind}")

        def calm() -> None:
            side.calm()
            fault.end()

        self.faults.later(self._rng.uniform(1.0, 8.0), calm)

    def wish_a_kill(self) -> None:
        """Set the kill flag of a job, by plain SQL, as any client would."""
        plans = self.outside.at_work()
        if not plans:
            return
        plan = self._rng.choice(plans)
        now = "now()" if self._url.startswith("postgresql") else "datetime('now')"
        plan.is_unwanted = True
        with suppress(*AWAY):  # then it was wished or not: the row says
            plain_sql(
                self._url,
                f"UPDATE job SET kill_requested_at = {now}, kill_requested_by = 'chaos' WHERE name = "
                f"'{plan.name}' AND state IN ('queued', 'running') AND kill_requested_at IS NULL",
            )

    def _one_of(self, *kinds: str) -> Place | None:
        places = self.processes.at_peace(*kinds)
        return self._rng.choice(places) if places else None
