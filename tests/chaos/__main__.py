"""`make chaos`: a long storm on PostgreSQL and one on SQLite, a soak, and their figures."""

import argparse
import random
import signal
import sys

from tests.chaos.courses import blow
from tests.chaos.report import report
from tests.chaos.soak.apart import soak


def main() -> int:
    """Run the storms and the soak that were asked for; return 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=minutes_of, default=10.0, help="of storm, all in all (default: 10)")
    parser.add_argument("--soak", type=int, default=50_000, metavar="JOBS", help="(default: 50000; 0: none)")
    parser.add_argument("--seed", type=int, default=None, help="of what is done when (default: a new one)")
    parser.add_argument("--jobs-per-second", type=rate_of, default=2.0, help="(default: 2)")
    parser.add_argument("--burst", type=count_of, default=500, help="jobs of one burst (default: 500)")
    parser.add_argument("--database", choices=["postgresql", "sqlite", "both"], default="both")
    parser.add_argument("--keep", action="store_true", help="leave the directory with all that was said")
    asked = parser.parse_args()
    seed = random.randrange(1_000_000) if asked.seed is None else asked.seed
    say(f"seed {seed}")
    shares = {"postgresql": 0.75, "sqlite": 0.25} if asked.database == "both" else {asked.database: 1.0}
    is_wrong = False
    for database, share in shares.items() if asked.minutes else ():
        verdict, faults = blow(
            database,
            60 * asked.minutes * share,
            say,
            keep=asked.keep,
            seed=seed,
            jobs_per_s=asked.jobs_per_second,
            burst=asked.burst,
        )
        say(report(database, verdict, faults))
        is_wrong |= bool(verdict.wrongs)
    if asked.soak:
        database = "sqlite" if asked.database == "sqlite" else "postgresql"
        say(f"soak of {asked.soak:,} jobs on {database}")
        is_wrong |= not soak(database, asked.soak, say, seed=seed)
    return 1 if is_wrong else 0


def say(words: str) -> None:
    """Tell it at once: a storm is long."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def minutes_of(text: str) -> float:
    minutes = float(text)
    if minutes != 0 and not 0.5 <= minutes <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text} is not 0, and not between half a minute and a day")
    return minutes


def count_of(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 20_000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 20000")
    return count


def rate_of(text: str) -> float:
    rate = float(text)
    if not 0.1 <= rate <= 50:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 50")
    return rate


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind then, either
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted: nothing was judged")
        sys.exit(130)
