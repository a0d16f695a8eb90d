"""The example of Airbyte does what it says, and leaves nothing behind."""

import re
from pathlib import Path

import pytest

from tests.test_examples import ROOT, run_example

pytestmark = pytest.mark.skipif(not (ROOT / "examples").exists(), reason="not in a checkout")


def test_the_example_of_airbyte_runs_from_end_to_end(tmp_path: Path) -> None:
    # Whatever jobrunner and Airbyte of one's own are set up, the example reaches neither.
    done = run_example(
        "airbyte.py",
        tmp_path,
        JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__URL="http://127.0.0.1:9/api/public/v1",
        JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__TOKEN="nobodys",
        JOBRUNNER_DATABASE_URL="sqlite:////nowhere/jobs.db",
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    amounts = "succeeded: 12,345 rows, 6.7 MB in 1 s"
    for line in (
        f"job 1 is success: {amounts}",
        "JobFailed: Job 2 failed: failed: relation orders does not exist (source, config_error)",
        "JobFailed: Job 3 failed: succeeded in Airbyte, but there were 0 rows, and min_rows is 1",
        "poke: True",
    ):
        assert line in lines
    assert any(line.startswith("airbyte_default: ok: Airbyte answered GET /jobs") for line in lines)
    assert any(line.startswith("job 4 success after") and line.endswith(amounts) for line in lines)
    assert any(line.startswith("job 5 success after") for line in lines)
    killed = [line for line in lines if line.startswith("job 6 killed after")]
    assert len(killed) == 2  # `start` says it, and `kill --wait`
    assert all(line.endswith("wrong day (cancelled)") for line in killed)
    assert re.findall(r"^(\d) +AirbyteMonitorJob +(\w+) +(\w+)", done.stdout, re.MULTILINE) == [
        ("6", "endless", "killed"),
        ("5", "sensor", "success"),
        ("4", "refresh", "success"),
        ("3", "empty", "failed"),
        ("2", "broken", "failed"),
        ("1", "orders", "success"),
    ]
    assert re.search(r"^ +rows +12345$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +page +http://\S+/timeline\?jobId=101$", done.stdout, re.MULTILINE)
    assert "the-secret" not in done.stdout
    assert not [path for folder in ("home", "tmp") for path in (tmp_path / folder).rglob("*")]


def test_without_httpx_the_example_says_how_to_install_it(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "httpx.py").write_text("raise ImportError('no httpx here')\n")
    done = run_example("airbyte.py", tmp_path, PYTHONPATH=str(shadow))
    assert done.returncode == 1
    assert done.stderr == "This example needs httpx (no httpx here): pip install 'jobrunner[airbyte]'\n"
