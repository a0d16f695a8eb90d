"""The figures of a storm, as text."""

from collections import Counter

from jobrunner.visible import visible
from tests.chaos.faults import GRACE_S, HEARTRATE_S, Faults
from tests.chaos.verdict import Lag, Verdict

_WIDTH = 32


def report(title: str, verdict: Verdict, faults: Faults) -> str:
    """Return the figures, a line each, and whatever is wrong."""
    done = Counter(each.kind.partition(":")[0] for each in faults.log if not each.is_consequence)
    stalls = sum(each.silences_all for each in faults.log)
    lines = [
        title,
        _line("jobs", sum(verdict.jobs.values()), verdict.jobs),
        _line("ended", sum(verdict.states.values()), verdict.states),
        _line("faults", sum(done.values()), done),
        _line("adoptions", verdict.adoptions),
        _line("false deaths", len(verdict.false_deaths)),
        _line("lost", len(verdict.lost)),
        _line("doubled", len(verdict.doubled)),
        _line("stale writes", len(verdict.stale_writes)),
        _line("wrong outcomes", len(verdict.wrong_outcomes)),
        _line("in doubt (Airbyte)", verdict.in_doubt),
        _line("claims without an answer", verdict.claims_unanswered),
        _line("not judged (by its own class)", verdict.unjudged),
        f"{'worst time to notice a death':{_WIDTH}}{_worst(verdict.deaths_noticed)}",
        f"{'worst time to notice an end':{_WIDTH}}{_worst(verdict.ends_noticed)}",
        f"{'':{_WIDTH}}(heartrate {HEARTRATE_S:g} s, grace {GRACE_S:g} s, poll interval 1 s)",
    ]
    if stalls:
        lines.append(_line("stalls of the machine", stalls))
    return "\n".join([*lines, *(f"WRONG: {visible(wrong)}" for wrong in verdict.wrongs)])


def _line(name: str, figure: int, parts: Counter[str] | None = None) -> str:
    text = ", ".join(f"{part} {count:,}" for part, count in sorted((parts or Counter()).items()))
    return f"{name:{_WIDTH}}{figure:,}{f' ({text})' if text else ''}"


def _worst(lags: list[Lag]) -> str:
    quiet = [lag.seconds for lag in lags if not lag.is_disturbed]
    alone = f"{max(quiet):.1f} s (of {len(quiet):,})" if quiet else "none"
    return f"{alone}; amid other faults {max((lag.seconds for lag in lags), default=0.0):.1f} s"
