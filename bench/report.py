"""What the benchmarks found: a table on the screen, and JSON with the facts about the machine."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("jobrunner", "sqlalchemy", "psycopg", "alembic", "pydantic")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ok` is None where nothing was promised; `facts` go into the JSON only."""

    what: str
    figure: str
    target: str = ""
    ok: bool | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Return the last column of the table."""
        return "" if self.ok is None else "ok" if self.ok else "MISSED"


class Report:
    """All rows of one run, by subject."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self.rows: list[tuple[str, Row]] = []

    def add(self, subject: str, row: Row) -> None:
        """Take one row."""
        self.rows.append((subject, row))

    @property
    def missed(self) -> Sequence[Row]:
        """The rows whose target was not reached."""
        return [row for _, row in self.rows if row.ok is False]

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(
            "subject", "what", "figure", "target", "", title="jobrunner bench", title_justify="left"
        )
        last = ""
        for subject, row in self.rows:
            style = {None: "", True: "green", False: "bold red"}[row.ok]
            table.add_row(
                "" if subject == last else subject, row.what, row.figure, row.target, row.verdict, style=style
            )
            last = subject
        console.print(table)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"subject": subject, **asdict(row)} for subject, row in self.rows]
        content = {"quick": self.quick, "machine": machine(), "rows": rows}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return the facts without which no figure means anything; none that names the machine."""
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "bytecode_cached": not sys.dont_write_bytecode,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES if _is_installed(name)},
    }


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def default_path() -> Path:
    """Return where the results of this run go; git ignores the directory."""
    return RESULTS / f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}.json"
