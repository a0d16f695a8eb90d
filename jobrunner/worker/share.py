"""How much a worker takes in one round, so that several of them level out."""

import math
from collections.abc import Collection

MOST = 500
"""Jobs a round: many bounded rounds a heartrate, so that nobody holds what he has not begun to watch."""


def share(mine: int, capacity: int, waiting: int, others: Collection[tuple[int, int]]) -> int:
    """Return how many of the waiting jobs to take now.

    `mine`: how many this worker has. `others`: (jobs, capacity) of each other living worker. Who has
    fewer takes more, up to what each would have if all were equal; who is full does not count.
    """
    free = min(MOST, capacity - mine, waiting)
    if free <= 0:
        return 0
    loads = [jobs for jobs, room in others if jobs < room]
    equal = math.ceil((mine + sum(loads) + waiting) / (1 + len(loads)))
    return max(0, min(free, equal - mine))


def least(mine: int, capacity: int, waiting: int, workers: int) -> int:
    """Return how many to take of jobs that have waited though others should have taken them.

    They may not be able to: then who can serves more than his share.
    """
    return max(0, min(MOST, capacity - mine, math.ceil(waiting / max(1, workers))))
