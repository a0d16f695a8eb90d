"""Whole processes from start to end: `jobrunner --help` and `jobrunner check`."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from bench.places import Place, fill, url_of
from bench.report import Row
from bench.timing import median, ms

# A process is born with the memory of its parent on its account: so the parent is a small one.
_LAUNCHER = """
import os, sys, time
silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
began = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - began, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""
_MODULE = ("-m", "jobrunner.cli.main")


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield the wall time and the memory of each command; the bare interpreter and library beside them."""
    rounds = 5 if quick else 20
    with place.sqlite() as database:
        fill(database, 100)
        environment = {
            key: value
            for key, value in os.environ.items()
            # As an installed jobrunner runs: its bytecode is cached.
            if not key.startswith("JOBRUNNER_") and key != "PYTHONDONTWRITEBYTECODE"
        } | {"JOBRUNNER_DATABASE_URL": url_of(database)}
        yield _row("python -c pass", ["-c", "pass"], environment, rounds)
        yield _row("python -c 'import sqlalchemy'", ["-c", "import sqlalchemy"], environment, rounds)
        yield _row("jobrunner --help", [*_MODULE, "--help"], environment, rounds, seconds=0.2)
        check = [*_MODULE, "check", "--allow-multiple"]
        yield _row("jobrunner check", check, environment, rounds, seconds=0.5, megabytes=70)


def _row(
    name: str,
    arguments: Sequence[str],
    environment: dict[str, str],
    rounds: int,
    *,
    seconds: float = 0,
    megabytes: float = 0,
) -> Row:
    runs = [_run(arguments, environment) for _ in range(rounds + 1)][1:]  # the first one fills the caches
    took, used = median([each[0] for each in runs]), max(each[1] for each in runs) / 1e6
    code = runs[-1][2]
    target = ", ".join(
        [*([f"< {seconds:g} s"] if seconds else []), *([f"< {megabytes:g} MB"] if megabytes else [])]
    )
    ok = code == 0 and took < (seconds or took + 1) and used < (megabytes or used + 1)
    return Row(
        f"{name}, the whole process",
        f"{ms(took)}, {used:.0f} MB" + (f", exit code {code}" if code else ""),
        target,
        ok if target else None,
        {"seconds": took, "megabytes": used, "exit_code": code},
    )


def _run(arguments: Sequence[str], environment: dict[str, str]) -> tuple[float, float, int]:
    """Return the seconds, the most bytes in memory, and the exit code."""
    command = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, *arguments]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, peak, code = output.split()
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts
    return float(seconds), int(peak) * unit, int(code)
