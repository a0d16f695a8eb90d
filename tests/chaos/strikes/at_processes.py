"""Strikes at processes: they die, stand still, or are told to stop."""

import os
import signal
from contextlib import suppress

import psutil

from tests.chaos.faults import AWAY, GRACE_S, HEARTRATE_S
from tests.chaos.processes import TAKEN_FOR_DEAD
from tests.chaos.strikes.hand import Hand
from tests.helpers import plain_sql


class ProcessStrikes(Hand):
    """Deaths, stops, and deploys."""

    def kill_a_worker(self) -> None:
        self._kill("kill -9 of a worker", "worker")

    def kill_a_dask_worker(self) -> None:
        self._kill("kill -9 of a Dask worker", "Dask worker")

    def kill_the_scheduler(self) -> None:
        self._kill("kill -9 of Dask's scheduler", "scheduler")

    def _kill(self, kind: str, *places: str) -> None:
        place = self.one_of(*places)
        if place is None:
            return
        self.faults.note(kind, pids=frozenset({place.pid}))
        place.is_struck = True
        place.send(signal.SIGKILL, -signal.SIGKILL)

    def stop_a_worker(self) -> None:
        """Deploy anew: SIGTERM, and the next one."""
        place = self.one_of("worker")
        if place is None:
            return
        place.is_struck = True
        self.faults.note("SIGTERM of a worker")
        place.send(signal.SIGTERM, 0, -signal.SIGTERM, TAKEN_FOR_DEAD)

    def pause_past_the_grace(self) -> None:
        seconds = GRACE_S + self.rng.uniform(2.0, 5.0)
        self._pause("SIGSTOP past the grace, SIGCONT", seconds, is_long=True)

    def pause_for_a_moment(self) -> None:
        """Stop a worker for less than its grace: nobody may take it for dead."""
        self._pause("SIGSTOP within the grace, SIGCONT", self.rng.uniform(0.3, 1.5), is_long=False)

    def _pause(self, kind: str, seconds: float, *, is_long: bool) -> None:
        place = self.one_of("worker", "Dask worker")
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
            pids = plain_sql(self.url, f"SELECT pid FROM job WHERE {running} ORDER BY random() LIMIT 1")
            for (pid,) in pids:
                with suppress(psutil.Error, OSError):
                    if psutil.Process(pid).cwd() == str(self.processes.directory):
                        self.faults.note("kill -9 of a process that runs code", pids=frozenset({pid}))
                        os.kill(pid, signal.SIGKILL)
