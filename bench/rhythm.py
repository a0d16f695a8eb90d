"""Drift and deviation of beats at a heartrate of 0.1 s, with a busy process beside them.

Each database's beats come from a process of their own: `python -m bench.rhythm URL COUNT`.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench.places import Place, kind, url_of
from bench.report import Row
from bench.timing import ms, percentile
from jobrunner.models import BaseJob
from jobrunner.settings import configure

HEARTRATE_S = 0.1
_DRIFT_TARGET_S = 0.01  # between the first and the last tenth of the beats


class RhythmicJob(BaseJob, job_type="bench.RhythmicJob"):
    """Notes when each of its beats had been written."""

    def _execute(self) -> None:
        began = time.perf_counter()
        self.__dict__["late_s"] = late_s = []
        for number in range(1, self.__dict__["count"] + 1):
            self.heartbeat()
            late_s.append(time.perf_counter() - began - number * HEARTRATE_S)


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield, for both databases at once, how late beats were and whether that grew."""
    count = 200 if quick else 1000
    with ExitStack() as stack:
        databases = [stack.enter_context(place.postgresql()), stack.enter_context(place.sqlite())]
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        stack.callback(busy.wait)
        stack.callback(busy.kill)
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.rhythm", url_of(database), str(count)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for database in databases
        ]
        for database, process in zip(databases, started, strict=True):
            output, _ = process.communicate(timeout=count * HEARTRATE_S * 3 + 60)
            yield _judged(kind(database), json.loads(output))


def _judged(name: str, late_s: list[float]) -> Row:
    slope = statistics.linear_regression(range(len(late_s)), late_s).slope
    tenth = max(1, len(late_s) // 10)
    drift_s = statistics.median(late_s[-tenth:]) - statistics.median(late_s[:tenth])
    middle, late, worst = percentile(late_s, 50), percentile(late_s, 99), max(late_s)
    return Row(
        f"{name}: {len(late_s)} beats at {HEARTRATE_S:g} s under load",
        f"drift {ms(drift_s)} over all, slope {slope * 1e6:.2g} µs a beat; late by p50 {ms(middle)}, "
        f"p99 {ms(late)}, longest {ms(worst)}",
        "no drift (< 10 ms)",
        abs(drift_s) < _DRIFT_TARGET_S,
        {"slope_s": slope, "drift_s": drift_s, "p50_s": middle, "p99_s": late, "max_s": worst},
    )


def _main(url: str, count: int) -> None:
    configure(database_url=url, heartrate=HEARTRATE_S)
    job = RhythmicJob()
    job.__dict__["count"] = count
    job.run()
    print(json.dumps(job.__dict__["late_s"]))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
