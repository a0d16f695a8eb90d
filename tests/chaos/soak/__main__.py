"""The process that is soaked: `python -m tests.chaos.soak URL`. It exits with 1 if anything is wrong."""

import argparse
import sys

from jobrunner.settings import configure
from tests.chaos.soak.course import ROUNDS, Soak
from tests.chaos.soak.flatness import growths, memory_growth
from tests.chaos.soak.jobs import CONNECTIONS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("url", help="of a database with the schema, and with no jobs")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, required=True)
    asked = parser.parse_args()
    configure(database_url=asked.url, connections={name: {"kind": "memory"} for name in CONNECTIONS})
    soak = Soak(asked.url, asked.jobs, asked.seed, asked.rounds)
    looks = list(soak.run(_say))
    wrongs = [*soak.wrongs, *map(str, growths(looks)), *soak.words.noise()]
    _say(f"{soak.done.total():,} jobs of {len(soak.done)} kinds; {soak.words.said.total():,} lines logged")
    _say(memory_growth(looks))
    for wrong in wrongs:
        _say(f"WRONG: {wrong}")
    return 1 if wrongs else 0


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
