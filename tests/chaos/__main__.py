"""`make chaos`: a long storm on PostgreSQL and one on SQLite, and their figures."""

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.courses import (
    a_directory,
    a_server,
    a_small_disk,
    blow,
    on_postgres,
    on_sqlite,
    upgraded,
)
from tests.chaos.report import report
from tests.chaos.storm import Storm


def main() -> int:
    """Run the storms that were asked for; return 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=minutes_of, default=10.0, help="of storm, all in all (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="of what is done when (default: a new one)")
    parser.add_argument("--jobs-per-second", type=rate_of, default=2.0, help="(default: 2)")
    parser.add_argument("--database", choices=["postgresql", "sqlite", "both"], default="both")
    parser.add_argument("--keep", action="store_true", help="leave the directory with all that was said")
    asked = parser.parse_args()
    seed = random.randrange(1_000_000) if asked.seed is None else asked.seed
    say(f"seed {seed}")
    shares = {"postgresql": 0.75, "sqlite": 0.25} if asked.database == "both" else {asked.database: 1.0}
    wrongs = 0
    for name, share in shares.items():
        run = _on_postgres if name == "postgresql" else _on_sqlite
        with a_directory(keep=asked.keep) as directory:
            if asked.keep:
                say(f"{name}: {directory}")
            wrongs += run(directory, 60 * asked.minutes * share, seed, asked.jobs_per_second)
    return 1 if wrongs else 0


def _on_postgres(directory: Path, seconds: float, seed: int, jobs_per_s: float) -> int:
    with a_server(directory) as (server, url):
        storm = Storm(directory, url, seed=seed, jobs_per_s=jobs_per_s, postgres=server)
        verdict, faults = blow(storm, on_postgres(seconds), say)
    say(report("PostgreSQL", verdict, faults))
    return len(verdict.wrongs)


def _on_sqlite(directory: Path, seconds: float, seed: int, jobs_per_s: float) -> int:
    with a_small_disk(directory) as disk:
        if disk is None:
            say("SQLite: no small disk can be mounted here (that needs root): its disk is never full")
        url = upgraded(f"sqlite:///{(disk or directory) / 'jobs.db'}")
        storm = Storm(directory, url, seed=seed, jobs_per_s=jobs_per_s, small_disk=disk, dask_workers=0)
        phases = on_sqlite(seconds, has_small_disk=disk is not None)
        verdict, faults = blow(storm, phases, say)
    say(report("SQLite", verdict, faults))
    return len(verdict.wrongs)


def say(words: str) -> None:
    """Tell it at once: a storm is long."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def minutes_of(text: str) -> float:
    minutes = float(text)
    if not 0.5 <= minutes <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text} is not between half a minute and a day")
    return minutes


def rate_of(text: str) -> float:
    rate = float(text)
    if not 0.1 <= rate <= 50:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 50")
    return rate


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted: nothing was judged")
        sys.exit(130)
