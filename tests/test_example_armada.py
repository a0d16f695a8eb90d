"""`examples/armada.py` and the page about Armada do what they say."""

import asyncio
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.errors import BackendError, NotSent, SubmitRejected, Throttled
from tests import test_examples
from tests.backends.test_armada_conformance import SPEC
from tests.helpers import until
from tests.stubs.armada_server import ArmadaStub, serving
from tests.stubs.http2_proxy import answering
from tests.test_docs import PAGES, Block, Shell, blocks, commands_of

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "examples").exists(), reason="not in a checkout")


def test_the_example_of_armada_runs_from_end_to_end(tmp_path: Path) -> None:
    # Whatever of jobrunner is set up, the example reaches none of it.
    done = test_examples.run_example(
        "armada.py",
        tmp_path,
        JOBRUNNER_DATABASE_URL="sqlite:////nowhere/jobs.db",
        JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__URL="127.0.0.1:9",
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert "job 1 is success: SUCCEEDED" in lines
    assert "JobFailed: Job 2 failed: container main failed with exit code 1" in lines
    assert any(line.startswith("job 3 success after") for line in lines)
    assert 'could not find queue "etk"' in done.stdout
    killed = [line for line in lines if line.startswith("job 5 killed after")]
    assert len(killed) == 2  # `start` says it, and `kill --wait`
    assert all("wrong input file (CANCELLED: wrong input file)" in line for line in killed)
    assert re.findall(r"^(\d) +ArmadaMonitorJob +(\w+) +(\w+)", done.stdout, re.MULTILINE) == [
        ("5", "endless", "killed"),
        ("4", "misspelt", "failed"),
        ("3", "report", "success"),
        ("2", "broken", "failed"),
        ("1", "nightly", "success"),
    ]
    again = "submitted again after preempted (0 more times): preempted by Armada: by a job of queue urgent"
    assert again in done.stdout
    assert "https://lookout.example/?sb=01" in done.stdout
    assert not [path for folder in ("home", "tmp") for path in (tmp_path / folder).rglob("*")]


def test_without_armada_client_the_example_says_how_to_install_it(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "armada_client.py").write_text("raise ImportError('no client here')\n")
    done = test_examples.run_example("armada.py", tmp_path, PYTHONPATH=str(shadow))
    assert done.returncode == 1
    words = "This example needs armada-client (no client here): pip install 'jobrunner[armada]'\n"
    assert done.stderr == words


# --- the page ----------------------------------------------------------------------------------------

PAGE = "docs/armada.md"


def block_of(what: str) -> Block:
    (found,) = [block for block in blocks(PAGE) if block.what == what]
    return found


@contextmanager
def followed(tmp_path: Path) -> Iterator[tuple[Shell, ArmadaStub]]:
    """Give a directory in which the page is followed, and the Armada of its connection."""
    shell = Shell(tmp_path)
    (shell.directory / "pod.yaml").write_text(block_of("pod.yaml").text)
    with serving() as stub:
        place = "JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__URL"
        shell.environment |= {place: stub.address, "COLUMNS": "200", "JOBRUNNER_POLL_INTERVAL": "0.1"}
        yield shell, stub


@contextmanager
def ending_jobs(stub: ArmadaStub) -> Iterator[None]:
    """Let the first job that is submitted run, and succeed."""

    def move() -> None:
        until(lambda: stub.jobs)
        stub.succeed(stub.external_ids()[0])

    thread = threading.Thread(target=move)
    thread.start()
    yield
    thread.join()


def _same(text: str) -> set[str]:
    """Return the lines of a console without times, and without states passed by."""
    lines = {re.sub(r"after \S+:", "after T:", line.strip()) for line in text.splitlines() if line.strip()}
    return {line for line in lines if not line.startswith("job 1: running")}


def test_the_first_job_of_the_page_prints_what_is_shown(tmp_path: Path) -> None:
    with followed(tmp_path) as (shell, stub), ending_jobs(stub):
        ((line, shown),) = commands_of(block_of("armada").text)
        assert _same(shell.run(*shlex.split(line))) == _same(shown)


def test_the_wrong_pod_spec_of_the_page_is_refused_as_shown(tmp_path: Path) -> None:
    with followed(tmp_path) as (shell, _):
        wrong = (
            block_of("pod.yaml").text.replace("limits: {cpu: 500m", "limits: {cpu: 2").replace("500m", "1")
        )
        (shell.directory / "bad.yaml").write_text(wrong)
        ((line, shown),) = commands_of(block_of("armada-refused").text)
        with pytest.raises(AssertionError) as refused:  # it exits with 2
            shell.run(*shlex.split(line))
    assert shown.strip() in str(refused.value)


def test_the_python_of_the_page_runs(tmp_path: Path) -> None:
    with followed(tmp_path) as (shell, stub), ending_jobs(stub):
        shell.run(sys.executable, "-W", "error", "-c", block_of("armada-python").text)
        assert len(stub.jobs) == 1


def _sentences_of_trouble() -> list[re.Pattern[str]]:
    """Return what the page's table of trouble says one may see; `…` stands for anything."""
    section = PAGES[PAGE].partition("## When something is wrong")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    quoted = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    return [re.compile(".*".join(map(re.escape, code.split("…")))) for code in quoted]


CODE = grpc.StatusCode
TROUBLE: dict[str, tuple[grpc.StatusCode | None, str, type[BackendError]]] = {
    "throttled": (CODE.RESOURCE_EXHAUSTED, "too many requests", Throttled),
    "credentials": (CODE.UNAUTHENTICATED, "no user", SubmitRejected),
    "queue": (CODE.PERMISSION_DENIED, 'could not find queue "etk"', SubmitRejected),
    "pod spec": (CODE.INVALID_ARGUMENT, "container main has no resources", SubmitRejected),
    "another server": (CODE.UNIMPLEMENTED, "unknown service", SubmitRejected),
    "unclear": (CODE.INTERNAL, "Failed to send events to Pulsar", BackendError),
    "away": (None, "", NotSent),
    "proxy": (None, "", BackendError),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_the_table_of_trouble_has_the_sentence(trouble: str) -> None:
    code, details, kind = TROUBLE[trouble]

    async def told(url: str) -> str:
        backend = ArmadaBackend(ArmadaConnection(url=url, call_timeout_s=5))
        try:
            with pytest.raises(kind) as raised:
                await backend.submit(SPEC, "0" * 32)
        finally:
            await backend.close()
        return str(raised.value)

    with serving() as stub, answering(502) as proxy:
        if code is not None:
            stub.fault("SubmitJobs", code, details)
        url = {"away": "127.0.0.1:9", "proxy": proxy}.get(trouble, stub.address)
        sentence = asyncio.run(told(url))
    assert any(pattern.search(sentence) for pattern in _sentences_of_trouble()), sentence
