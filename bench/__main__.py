"""`python -m bench [NAME…] [--json FILE] [--quick]`: measure, and show a table."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.places import Place
from bench.report import Report, default_path

SUBJECTS = {
    "beat": "one beat for one job and for 10,000, beside the bare driver",
    "airflow": "a beat as Airflow's BaseJob sends it, beside ours",
    "hot": "whether beats stay on their page (HOT), and what grows",
    "kill": "from a committed kill flag to on_kill; the cost of waiting for it",
    "rhythm": "drift and deviation of beats under load",
    "queries": "most_recent_job, list and check over a million rows",
    "batch": "a sweep over 1,000 and 10,000 jobs of AWS Batch, beside boto3; how late an end is seen",
    "airbyte": "a sweep over 10,000 jobs of Airbyte, beside the official SDK and httpx",
    "armada": "a sweep over 10,000 jobs of Armada, beside armada-client",
    "scale": "one worker with 1,000 to 100,000 jobs: CPU, memory, and how late its beats are",
    "claim": "four workers claim 10,000 jobs; how soon a killed one's are watched again",
    "idle": "statements a second of a worker with nothing to do",
    "outage": "adoptions while a backend, and the database, are away",
    "start": "whole processes: jobrunner --help and jobrunner check",
}


HAVE_LONG_FORMS = frozenset({"outage"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subjects that are named, or all; 1 where a target was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:8} {what}" for name, what in SUBJECTS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure; everything without one")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the results go; bench/results/ without it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rows and rounds: a look, not a figure to quote"
    )
    parser.add_argument("--long", action="store_true", help="with `outage`: ten minutes, and not three")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(SUBJECTS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}: known are {', '.join(SUBJECTS)}")

    console, said = Console(), Console(stderr=True)
    report = Report(quick=given.quick)
    with Place() as place:
        for name in given.names or SUBJECTS:
            began = time.perf_counter()
            module = importlib.import_module(f"bench.{name}")
            more = {"long": given.long} if name in HAVE_LONG_FORMS else {}
            for row in module.measure(place, quick=given.quick, **more):
                report.add(name, row)
                said.print(f"{name}: {row.what}: {row.figure}", style="dim")
            said.print(f"{name} took {time.perf_counter() - began:.0f} s", style="dim")
    report.show(console)
    path = given.json or default_path()
    report.write(path)
    said.print(f"written to {path}", style="dim")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
