"""Others asked about the same jobs: all calls from a few threads, and nothing written down."""

import gc
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def resident_bytes() -> int:
    """Return the memory of this process; where the system does not tell, the most that it had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def swept(
    asking: Sequence[Callable[[], Any]], threads: int, rounds: int, *, jobs: int, warm_up: int | None = None
) -> dict[str, Any]:
    """Make all calls, `rounds` times, about so many jobs together; each must return something.

    Before, all are made once, or the first `warm_up`, which connects.
    """
    first: dict[str, float] = {}
    wall_s, cpu_s = [], []
    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds + 1):
            gc.collect()
            began, began_cpu = time.perf_counter(), time.process_time()
            for answer in pool.map(lambda ask: ask(), asking if number else asking[:warm_up]):
                assert answer
            took, used = time.perf_counter() - began, time.process_time() - began_cpu
            if number == 0:
                first = {"first_wall_s": took, "first_cpu_s": used}
            else:
                wall_s.append(took)
                cpu_s.append(used)
    return {"calls": len(asking), "jobs": jobs, "wall_s": wall_s, "cpu_s": cpu_s, **first}
