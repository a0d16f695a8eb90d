"""Whether what a process holds is flat: it depends on what is under way, and not on what has been done."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.soak.holdings import Holdings

WARM_UP = 0.2
"""The share of the looks that is left out at the beginning: caches and pools fill up."""
ENTRIES_MOST = 10
"""Entries, objects of ours, descriptors and threads that may come to be, however many jobs were done."""
OF_A_MINUTE = frozenset(
    {
        "jobrunner.log_limits.Seldom._said_s",
        "jobrunner.log_limits.Seldom._of_event",
        "jobrunner.worker.serving.Serving._verdicts",
    }
)
OF_A_MINUTE_MOST = 100
"""Entries that these may have: of what was logged, or found out, within the last minute or two."""
OTHERS_MOST = 1_000
"""Other objects that may come to be: the interpreter, and libraries, have their caches."""
BLOCKS = 5_000
BLOCKS_A_JOB = 0.1
"""Blocks of memory that may come to be at all, and for each job."""
RSS_MB = 4.0
RSS_MB_A_10_000 = 2.0
"""Memory that may come to be at all, and for each 10,000 jobs: less than a list of their ids."""
_TIMER = "asyncio.events.TimerHandle"  # asyncio keeps some that were cancelled until their time has come
_STRICT = ("jobrunner.", "_asyncio.", "asyncio.", "_socket.", "socket.", "threading.", "subprocess.")


@dataclass(frozen=True, slots=True)
class Growth:
    """What has grown: from the most that was seen in the first third to the least in the last third."""

    what: str
    before: float
    after: float
    jobs: int
    """How many jobs were done between the two."""

    def __str__(self) -> str:
        return f"{self.what} grew from {self.before:g} to {self.after:g} over {self.jobs:,} jobs"


def growths(looks: Sequence[Holdings]) -> list[Growth]:
    """Return all that has grown by more than it may, the worst first.

    Raises ValueError for too few looks to tell.
    """
    first, last, jobs = _ends(looks)
    found = [
        growth
        for title in ("descriptors", "threads", "objects", "entries")
        for growth in _grown(title, _counters(first, title), _counters(last, title), jobs)
    ]
    found.sort(key=lambda growth: growth.before - growth.after)
    for growth, most in (
        (_of("blocks", first, last, jobs), BLOCKS + BLOCKS_A_JOB * jobs),
        (_of("rss_mb", first, last, jobs), RSS_MB + RSS_MB_A_10_000 * jobs / 10_000),
    ):
        if growth.after - growth.before > most:
            found.insert(0, growth)
    return found


def memory_growth(looks: Sequence[Holdings]) -> str:
    """Return in words by how much the resident memory has grown."""
    rss = _of("rss_mb", *_ends(looks))
    return f"{rss.after - rss.before:+.1f} MB over {rss.jobs:,} jobs after the warm-up"


def _ends(looks: Sequence[Holdings]) -> tuple[Sequence[Holdings], Sequence[Holdings], int]:
    """Return the first third after the warm-up, the last third, and how many jobs are between them."""
    looks = looks[math.ceil(WARM_UP * len(looks)) :]
    third = max(1, len(looks) // 3)
    first, last = looks[:third], looks[-third:]
    jobs = last[0].jobs - first[-1].jobs if looks else 0
    if jobs <= 0:
        raise ValueError("there are too few looks to see anything grow")
    return first, last, jobs


def _of(figure: str, first: Sequence[Holdings], last: Sequence[Holdings], jobs: int) -> Growth:
    before = max(getattr(each, figure) for each in first)
    after = min(getattr(each, figure) for each in last)
    return Growth(figure, before, after, jobs)


def _counters(looks: Sequence[Holdings], title: str) -> list[Counter[str]]:
    return [getattr(look, title) for look in looks]


def _grown(
    title: str, first: Sequence[Mapping[str, int]], last: Sequence[Mapping[str, int]], jobs: int
) -> list[Growth]:
    found = []
    for name in set().union(*first, *last):
        before = max(counts.get(name, 0) for counts in first)
        after = min(counts.get(name, 0) for counts in last)
        is_strict = title != "objects" or (name.startswith(_STRICT) and name != _TIMER)
        if name in OF_A_MINUTE and after <= OF_A_MINUTE_MOST:
            continue
        if after - before > (ENTRIES_MOST if is_strict else OTHERS_MOST):
            found.append(Growth(f"{title}: {name}", before, after, jobs))
    return found
