"""Side by side: A B B A A B …, so that whatever else the machine does falls on both alike."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence


def side_by_side(*sides: Callable[[], object], rounds: int, warm_up: int = 6) -> list[list[float]]:
    """Call all sides in turn, `rounds` times, and return the seconds that each call took, by side."""
    for _ in range(warm_up):  # the drivers prepare a statement at its fifth use or later
        for side in sides:
            side()
    took: list[list[float]] = [[] for _ in sides]
    numbered = list(enumerate(sides))
    gc.collect()
    for turn in range(rounds):
        for number, side in numbered if turn % 2 else reversed(numbered):
            began = time.perf_counter()
            side()
            took[number].append(time.perf_counter() - began)
    return took


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def ms(seconds: float) -> str:
    """Return seconds as milliseconds with three significant digits."""
    return f"{seconds * 1000:.3g} ms"
