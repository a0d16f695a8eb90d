"""How much a worker takes in one round, so that several of them level out."""

import math
from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

_K = TypeVar("_K", bound=Hashable)

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


def divided(total: int, wanted: Mapping[_K, int]) -> dict[_K, int]:
    """Divide a number among those who want some of it: all alike, as far as each wants that many.

    Returns the parts that are more than 0.
    """
    parts: dict[_K, int] = {}
    left = total
    for number, (key, most) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        part = min(most, math.ceil(left / (len(wanted) - number)))
        if part > 0:
            parts[key] = part
            left -= part
    return parts
