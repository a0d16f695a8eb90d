"""Each program in `examples/` does what it says, and leaves nothing behind; so with the page of AWS Batch."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import cast, get_args

import pytest
import yaml

from jobrunner import BatchMonitorJob, identity
from jobrunner.backends.batch import BatchBackend, BatchConnection
from jobrunner.errors import BackendError
from tests.stubs.aws_wire import FaultKind
from tests.stubs.batch_server import serving
from tests.stubs.moto_batch import use_aws_environment
from tests.test_docs import PAGES, Shell, blocks, commands_of

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "examples").exists(), reason="not in a checkout")


def run_example(name: str, tmp_path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "JOBRUNNER_"))
    }
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        cwd=tmp_path / "home",
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # a bound for what hangs, far above what a busy machine needs
    )


def test_the_example_of_aws_batch_runs_from_end_to_end(tmp_path: Path) -> None:
    # Whatever AWS and jobrunner of one's own are set up, the example reaches neither.
    done = run_example(
        "aws_batch.py",
        tmp_path,
        AWS_PROFILE="nobodys",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        JOBRUNNER_DATABASE_URL="sqlite:////nowhere/jobs.db",
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    for line in (
        "job 1 is success: SUCCEEDED",
        "JobFailed: Job 2 failed: exit code 1: Essential container in task exited",
        "the work of nightly",
    ):
        assert line in lines
    assert any(line.startswith("job 3 success after") for line in lines)
    killed = [line for line in lines if line.startswith("job 4 killed after")]
    assert len(killed) == 2  # `start` says it, and `kill --wait`
    assert all("wrong input file (terminated: exit code 137 (SIGKILL))" in line for line in killed)
    assert re.findall(r"^(\d) +BatchMonitorJob +(\w+) +(\w+)", done.stdout, re.MULTILINE) == [
        ("4", "endless", "killed"),
        ("3", "report", "success"),
        ("2", "broken", "failed"),
        ("1", "nightly", "success"),
    ]
    assert not [path for folder in ("home", "tmp") for path in (tmp_path / folder).rglob("*")]


def test_without_moto_the_example_says_how_to_install_it(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "moto.py").write_text("raise ImportError('no moto here')\n")
    done = run_example("aws_batch.py", tmp_path, PYTHONPATH=str(shadow))
    assert done.returncode == 1
    assert done.stderr == ("This example needs moto (no moto here): pip install 'moto[batch,logs,server]'\n")


# --- the page about AWS Batch ----------------------------------------------------------------------


def _same(text: str) -> set[str]:
    """Return the lines of a console without what differs from run to run, and without states passed by."""
    text = re.sub(r"\b(\d+[dhms])+\b|\b\d{4}-\d\d-\d\dT\S+", "T", text.replace(identity.hostname(), "laptop"))
    lines = {" ".join(line.split()) for line in text.splitlines() if line.strip()}
    return {line for line in lines if not line.startswith("job 1: running")}


def test_the_consoles_of_the_page_show_what_is_printed(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    consoles = [
        block for block in blocks("docs/aws-batch.md") if block.mark == "file" or block.what == "batch"
    ]
    assert len(consoles) == 3
    with serving(
        known_queues=["etl"], known_definitions=["import"], starts_after_s=0.5, runs_for_s=2.0
    ) as stub:
        keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "eu-west-1"}
        settings = f"""
            [job_types.BatchMonitorJob]
            poll_interval = 0.3
            [connections.batch_default]
            kind = "batch"
            endpoint_url = "{stub.url}"
        """
        (shell.directory / "jobrunner.toml").write_text(settings)
        shell.environment |= keys | {"AWS_CONFIG_FILE": os.devnull, "COLUMNS": "200"}
        for block in consoles:
            if block.mark == "file":
                (shell.directory / block.what).write_text(block.text)
                continue
            for line, shown in commands_of(block.text):
                if line == "jobrunner logs 1":
                    stub.write_log(stub.job_ids()[0], ["reading 2026-03-01", "14 files imported"])
                assert _same(shell.run(*shlex.split(line))) == _same(shown), line


def test_the_json_and_the_yaml_of_the_page_are_whole() -> None:
    for block in blocks("docs/aws-batch.md"):
        if block.language == "json":
            json.loads(block.text)
    (spec,) = [block.text for block in blocks("docs/aws-batch.md") if block.language == "yaml"]
    assert BatchMonitorJob.from_request(yaml.safe_load(spec)).spec


def _sentences_of_trouble() -> list[re.Pattern[str]]:
    """Return what the page's table of trouble says one may see; `…` stands for anything."""
    section = PAGES["docs/aws-batch.md"].partition("## When something is wrong")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    quoted = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    return [re.compile(".*".join(map(re.escape, code.split("…")))) for code in quoted]


@pytest.mark.parametrize(
    "trouble",
    [
        *("throttled", "expired_token", "unknown_token", "access_denied", "clock_skew", "server_error"),
        *("html", "lost_answer", "refused", "no queue", "no credentials", "no region", "no profile"),
    ],
)
def test_the_table_of_trouble_has_the_sentence(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_aws_environment(monkeypatch)
    if trouble == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if trouble == "no region":
        monkeypatch.delenv("AWS_DEFAULT_REGION")
    with serving(known_queues=["etl"]) as stub:
        if trouble in get_args(FaultKind):
            stub.fault("SubmitJob", cast("FaultKind", trouble), status=200 if trouble == "html" else None)
        options = BatchConnection(
            endpoint_url="http://127.0.0.1:9" if trouble == "refused" else stub.url,
            profile="nobody" if trouble == "no profile" else None,
        )
        queue = "etk" if trouble == "no queue" else "etl"
        error = asyncio.run(_error_of_submission(options, queue))
    told = f"not accepted: {error}"
    assert any(pattern.search(told) for pattern in _sentences_of_trouble()), told


async def _error_of_submission(options: BatchConnection, queue: str) -> BackendError:
    backend = BatchBackend(options)
    spec = {"jobName": "nightly", "jobQueue": queue, "jobDefinition": "import:7"}
    try:
        with pytest.raises(BackendError) as raised:
            await backend.submit(spec, "0" * 32)
    finally:
        await backend.close()
    return raised.value


def test_the_unit_for_systemd_is_the_one_that_the_page_shows() -> None:
    unit = (ROOT / "examples" / "jobrunner-worker.service").read_text()
    assert [block.text for block in blocks("docs/workers.md") if block.language == "ini"] == [unit]
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0] != "#")
    assert (settings["Type"], settings["KillMode"], settings["Restart"]) == ("notify", "process", "always")
    command = shlex.split(settings["ExecStart"])
    assert command[1:] == ["worker"]
