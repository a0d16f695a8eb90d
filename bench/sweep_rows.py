"""What sweeps cost, ours and those of others, as rows of the table."""

from collections.abc import Iterable
from typing import Any

from bench.report import Row
from bench.timing import median


def sweep_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the sweeps of one name out of what `bench.sweep` told."""
    sweeps: dict[str, Any] = found["sweeps"][name]
    return sweeps | {key: found[key] for key in ("loading", "bytes_per_job", "bytes_at_last")}


def slower(sweeps: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the sweeps on the slower of the two databases: beside them the others are set."""
    return max(sweeps, key=lambda found: median(found["cpu_s"]))


def sweep_row(
    what: str, found: dict[str, Any], *, most: int | None = None, cpu_target_s: float | None = None
) -> Row:
    """Return the row of our own sweeps. `most`: the calls promised; `cpu_target_s`: for 1,000 jobs."""
    calls = max(found["calls"])
    each = [cpu_s * 1000 / found["jobs"] for cpu_s in found["cpu_s"]]
    kept = {} if most is None else {f"<= {_counted(most)}": calls <= most}
    if cpu_target_s is not None:
        kept[f"< {cpu_target_s:g} s"] = median(each) < cpu_target_s
    return Row(
        what,
        f"{calls_of(found)}, {median(found['wall_s']):.2f} s; CPU for 1,000 jobs with the "
        f"database: median {median(each):.3f} s, least {min(each):.3f} s",
        ", ".join(kept),
        all(kept.values()) if kept else None,
        found | {"cpu_s_per_1000": median(each), "least_cpu_s_per_1000": min(each)},
    )


def memory_row(database: str, found: dict[str, Any]) -> Row:
    """Return the row of what the process grew by from one job to all, the sweep included."""
    used = found["bytes_per_job"]
    what = f"{database}: memory for {found['jobs']:,} jobs"
    return Row(what, f"{used / 1000:.1f} kB a job", facts={"bytes_per_job": used})


def peer_row(what: str, found: dict[str, Any], besides: str) -> Row:
    """Return the row of somebody else's sweep."""
    count = found["jobs"]
    return Row(
        f"{what}, no database: {count:,} jobs",
        f"{_counted(found['calls'])}, {median(found['wall_s']):.2f} s; CPU for 1,000 jobs "
        f"{median(found['cpu_s']) * 1000 / count:.3f} s; {besides}",
        facts=found,
    )


def beside(found: dict[str, Any], mine: dict[str, Any]) -> str:
    """Return how much more somebody else takes for as many jobs."""
    share = mine["jobs"] / found["jobs"]
    calls = found["calls"] * share / max(mine["calls"])
    cpu = median(found["cpu_s"]) * share / median(mine["cpu_s"])
    return f"{_times(calls)} our calls, {_times(cpu)} our CPU"


def calls_of(found: dict[str, Any]) -> str:
    """Return the calls of the sweep that made most, by their kinds where there are several."""
    calls = max(found["calls"])
    kinds = found["operations"][found["calls"].index(calls)]
    told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    return f"{_counted(calls)} ({told})" if len(kinds) > 1 else _counted(calls)


def _counted(calls: int) -> str:
    return "1 call" if calls == 1 else f"{calls:,} calls"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.2g} times"
