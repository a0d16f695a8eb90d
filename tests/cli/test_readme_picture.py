"""The README's picture of one machine and of many: its commands do what it shows, and a worker dies."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.cli.conftest import CommandLine
from tests.cli.worker_process import WorkerProcess, until
from tests.stubs.batch_server import BatchStub
from tests.test_docs import PAGES, ROOT, blocks, commands_of

pytestmark = [
    pytest.mark.usefixtures("no_child_left"),
    pytest.mark.skipif(not (ROOT / "docs" / "conf.py").exists(), reason="not in a checkout"),
]

BOXES = ("box1", "box2")


def shown(what: str) -> Iterator[tuple[str, str]]:
    """Yield each command of one of the README's consoles, with what is shown below it."""
    (console,) = [block.text for block in blocks("README.md") if block.what == what]
    return commands_of(console)


def words_of(line: str) -> list[str]:
    program, *words = shlex.split(line)
    assert program == "jobrunner"
    return words


def rows(listed: str) -> set[str]:
    """Return the lines of a list without the ids, and without ages."""
    ageless = re.sub(r"\b(\d+[dhms])+\b", "T", listed)
    return {" ".join(line.split()[1:]) for line in ageless.splitlines()}


class Boxes:
    """Hosts with a worker each, jobs 1 and 2, on one PostgreSQL; `jobrunner` itself is on a third one."""

    def __init__(self, jobrunner: CommandLine) -> None:
        self.jobrunner = jobrunner
        self.workers = {box: WorkerProcess(jobrunner, host=box) for box in BOXES}

    def of(self, job_id: str) -> str:
        """Wait until a job is under way; return the box that has it."""
        self.jobrunner.until(job_id, "external_id", None)
        return str(self.jobrunner("show", job_id, "--json").json["hostname"])

    def list_what_is_shown(self, console: str) -> None:
        """Wait until the list is what the page shows."""
        with suppress(AssertionError):
            until(lambda: rows(self.jobrunner("list").out) == rows(console))
        assert rows(self.jobrunner("list").out) == rows(console)

    def kill(self, box: str) -> None:
        self.workers[box].process.kill()
        self.workers[box].process.wait()

    def restart(self, box: str) -> None:
        self.workers[box] = WorkerProcess(self.jobrunner, host=box)


@pytest.fixture
def boxes(postgres_url: str, jobrunner: CommandLine) -> Iterator[Boxes]:
    jobrunner.environment |= {"JOBRUNNER_DATABASE_URL": postgres_url, "JOBRUNNER_POLL_INTERVAL": "0.3"}
    boxes = Boxes(jobrunner)
    yield boxes
    for box in boxes.workers:
        boxes.kill(box)


def test_on_one_machine_a_worker_takes_what_was_queued(jobrunner: CommandLine) -> None:
    script = jobrunner.directory / "nightly.sh"
    script.write_text("#!/bin/sh\necho done\n")
    script.chmod(0o755)
    (queue, queued), (work, working) = shown("one-machine")
    answer = jobrunner(*words_of(queue))
    assert (answer.code, answer.out + answer.words) == (0, queued)
    assert words_of(work) == ["worker"]
    worker = WorkerProcess(jobrunner)
    until(lambda: worker.out + worker.words == working)
    jobrunner.until("1", "state", "success")
    assert jobrunner("logs", "1").out == "done\n"
    assert jobrunner.database.is_file()


def test_on_many_machines_another_worker_goes_on_with_the_same_job(batch: BatchStub, boxes: Boxes) -> None:
    jobrunner = boxes.jobrunner
    (start, started), (_, before), (kill, nothing), (_, after) = shown("many-machines")
    answer = jobrunner(*words_of(start))
    assert (answer.code, answer.out + answer.words) == (0, started)
    box = boxes.of("3")
    other = next(each for each in BOXES if each != box)
    batch.run(*batch.job_ids())
    # Either worker may have taken it: what the page says of box2 is said of the one that has.
    named = {"box1": other, "box2": box}
    before, after = (re.sub("box[12]", lambda found: named[found[0]], console) for console in (before, after))
    boxes.list_what_is_shown(before)
    external_id = jobrunner("show", "3", "--json").json["external_id"]

    assert (kill.startswith("ssh box2 kill -9 "), nothing) == (True, "")
    boxes.kill(box)
    boxes.list_what_is_shown(after)
    row = jobrunner("show", "3", "--json").json
    assert (row["external_id"], row["claims"], row["hostname"]) == (external_id, 2, other)
    assert batch.calls_per_operation()["SubmitJob"] == 1
    assert jobrunner("kill", "3", "--wait").code == 0
    assert jobrunner("show", "3", "--json").json["state"] == "killed"


def test_a_command_stays_on_its_machine_and_the_next_worker_there_takes_it_up(boxes: Boxes) -> None:
    jobrunner = boxes.jobrunner
    assert jobrunner("start", "process", "--detach", "--", "sleep", "600").out == "job 3\n"
    box = boxes.of("3")
    before = jobrunner("show", "3", "--json").json
    boxes.kill(box)
    until(lambda: "fell silent" in jobrunner("list", "--job-type", "WorkerJob").out)
    assert "silent" in jobrunner("list", "--job-type", "ProcessMonitorJob").out
    boxes.restart(box)
    jobrunner.until("3", "claims", 2)
    after = jobrunner("show", "3", "--json").json
    assert (after["external_id"], after["hostname"]) == (before["external_id"], box)
    assert jobrunner("kill", "3", "--wait").code == 0
    assert jobrunner("show", "3", "--json").json["state"] == "killed"


def test_the_picture_fits_into_a_terminal() -> None:
    section = PAGES["README.md"].partition("## One machine, and many\n")[2].partition("\n## ")[0]
    picture = section.partition("```\n")[2].partition("```")[0]
    assert picture
    assert max(map(len, picture.splitlines())) <= 80
