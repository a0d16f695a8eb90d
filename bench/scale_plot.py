"""The cost of a job among few and many, drawn: CPU and memory, each in a panel of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 340, 180, 70, 50, 100
_STYLE = (
    "text { font: 13px sans-serif; fill: #444 } .axis { stroke: #888 } "
    ".line { fill: none; stroke-width: 2.5 }"
)

Costs = Mapping[int, tuple[float, float]]
"""Milliseconds of CPU a minute, and kilobytes, of one job, by how many there are."""


def draw(path: Path, costs: Costs) -> None:
    """Write the plot as SVG."""
    jobs = sorted(costs)
    panels = (
        ("CPU of one job: milliseconds a minute", [costs[each][0] for each in jobs], "#1f77b4"),
        ("memory of one job: kB", [costs[each][1] for each in jobs], "#d62728"),
    )
    width = 2 * (_LEFT + _WIDTH) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_TOP + _HEIGHT + 60}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{_TOP + _HEIGHT + 60}" fill="white"/>',
    ]
    for number, (title, values, colour) in enumerate(panels):
        parts += _panel(number * (_LEFT + _WIDTH + _GAP) + _LEFT, title, jobs, values, colour)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(left: int, title: str, jobs: Sequence[int], values: Sequence[float], colour: str) -> list[str]:
    most = 1.25 * max(values)
    step = _WIDTH / (len(jobs) + 1)  # each is ten times the one before: even steps are a logarithmic axis
    points = [
        (left + step * (number + 1), _TOP + _HEIGHT * (1 - value / most))
        for number, value in enumerate(values)
    ]
    bottom = _TOP + _HEIGHT
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [
        f'<text x="{left}" y="{_TOP - 22}">{title}</text>',
        f'<path class="axis" fill="none" d="M{left} {_TOP} V{bottom} H{left + _WIDTH}"/>',
        f'<text x="{left - 8}" y="{bottom + 4}" text-anchor="end">0</text>',
        f'<text x="{left + _WIDTH / 2}" y="{bottom + 44}" text-anchor="middle">jobs of one worker</text>',
        f'<polyline class="line" stroke="{colour}" points="{line}"/>',
    ]
    for (x, y), count, value in zip(points, jobs, values, strict=True):
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
            f'<text x="{x:.1f}" y="{y - 12:.1f}" text-anchor="middle">{value:.3g}</text>',
            f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{count:,}</text>',
        ]
    return parts
