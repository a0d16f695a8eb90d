"""The pages say what is true: their code runs, their commands exist, their links lead somewhere.

Marks in the pages, each an HTML comment on the line above a code block:

    <!-- file: NAME -->   the block is a file that the blocks after it may use
    <!-- run -->          the block is run, Python or a console
    <!-- run: WHAT -->    it is run by the test that knows what it needs
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from jobrunner.cli.main import main
from jobrunner.database import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "docs" / "conf.py").exists(), reason="not in a checkout")

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.exists()
}
BIN = sysconfig.get_path("scripts")

_BLOCK = re.compile(r"(?:<!-- (file|run)(?:: (\S+))? -->\n)?^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One code block: its mark, what the mark names, its language, its text."""

    mark: str
    what: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*(part or "" for part in found)) for found in _BLOCK.findall(PAGES[page])]


# --- facts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "went from no schema to" in text])
def test_an_upgrade_that_a_page_shows_goes_to_the_newest_revision(page: str) -> None:
    assert set(re.findall(r"went from no schema to (\S+)", PAGES[page])) == {SCHEMA_VERSION}


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_that_announces_what_follows_stands_alone(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^[A-Za-z][^|\n]*:\n(?=[A-Z])", prose, re.MULTILINE)


# --- code that runs --------------------------------------------------------------------------------


class Shell:
    """A directory with a database of its own, in which a page is followed."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "page"
        self.directory.mkdir()
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith("JOBRUNNER_")
        } | {
            "JOBRUNNER_DATA_DIR": str(tmp_path / "data"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.directory),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
        return done.stdout

    def follow(self, block: Block) -> None:
        """Run a console: what each command prints is as it stands there, but for numbers."""
        for line, shown in commands_of(block.text):
            printed = self.run(*shlex.split(line))
            assert _shape(printed) == _shape(shown), f"{line}\nprints\n{printed}\nand the page shows\n{shown}"


def commands_of(console: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console with what is shown below it."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        line, _, shown = part.partition("\n")
        yield line, shown


def _shape(text: str) -> set[str]:
    # Standard output and standard error meet in any order, and a state may pass unseen.
    lines = {re.sub(r"\d+(\.\d+)?", "N", line).strip() for line in text.splitlines() if line.strip()}
    return {line for line in lines if not line.startswith("job N: running")}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.mark == "run" and not block.what for block in blocks(page))]
)
def test_the_marked_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    for block in blocks(page):
        if block.mark == "file":
            (shell.directory / block.what).write_text(block.text)
        elif block.mark == "run" and block.language == "python":
            shell.run(sys.executable, "-W", "error", "-c", block.text)
        elif block.mark == "run" and not block.what:
            shell.follow(block)


@pytest.fixture
def example(tmp_path: Path) -> Shell:
    """The example of docs/writing-backends.md, installed."""
    shell = Shell(tmp_path)
    for block in blocks("docs/writing-backends.md"):
        if block.mark == "file":
            (shell.directory / block.what).write_text(block.text)
    entry_points = [
        re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", block.text).replace('"', "")
        for block in blocks("docs/writing-backends.md")
        if "entry-points" in block.text
    ]
    installed = shell.directory / "folder_jobs-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: folder-jobs\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("\n".join(entry_points))
    return shell


def test_the_example_of_a_backend_does_its_jobs(example: Shell) -> None:
    orders = example.directory / "orders"
    orders.mkdir()
    example.environment["JOBRUNNER_CONNECTIONS__FOLDER_DEFAULT__FOLDER"] = str(orders)
    side = subprocess.Popen([sys.executable, "other_side.py", str(orders), "2"], cwd=example.directory)
    try:
        (console,) = [block for block in blocks("docs/writing-backends.md") if block.what == "folder"]
        console = Block("run", "", "console", console.text.replace("11", "1"))
        example.follow(console)
    finally:
        side.terminate()
        side.wait(10)


def test_the_example_of_a_backend_passes_the_conformance_suite(example: Shell) -> None:
    (console,) = [block for block in blocks("docs/writing-backends.md") if block.what == "pytest"]
    ((command, shown),) = commands_of(console.text)
    words = shlex.split(command)
    printed = example.run(sys.executable, *words[1:], "-p", "no:cacheprovider", "-p", "no:randomly")
    assert printed.splitlines()[-1].split(" in ")[0] == shown.strip().split(" in ")[0]


# --- commands that exist ---------------------------------------------------------------------------


def _shown_commands() -> list[tuple[str, str]]:
    found = []
    for page, text in PAGES.items():
        for block in blocks(page):
            if block.language == "console":
                lines = [line for line, _ in commands_of(block.text) if line.startswith("jobrunner ")]
                found += [(page, line) for line in lines]
        prose = _BLOCK.sub("", text)
        found += [(page, inline) for inline in re.findall(r"`(jobrunner [a-z][^`]*)`", prose)]
    return sorted(set(found))


def _words(line: str) -> list[str]:
    # A place held for a value is filled with one; `…` and what is optional is left out.
    line = re.sub(r"\[.*?\]", "", line.split("|", maxsplit=1)[0] if "'" not in line else line)
    line = line.replace("…", "").replace("OPTIONS", "").replace("MODULE:CLASS", "module:Class")
    line = re.sub(r"\b(TEXT|NAME=VALUE|DIR|CMD|TYPE)\b", "a=b", line)
    return shlex.split(re.sub(r"\b(ID|REVISION)\b", "1", line).replace("DURATION", "1d"))


@pytest.mark.parametrize(("page", "line"), _shown_commands())
def test_a_command_that_a_page_shows_exists(page: str, line: str) -> None:
    words = _words(line)[1:]
    command: click.Command = main
    context = click.Context(main, info_name="jobrunner")
    while isinstance(command, click.Group):
        if not words:
            return  # it speaks of the group
        name, found, words = command.resolve_command(context, words)
        assert found is not None, f"{page}: there is no `{name}` in `{line}`"
        command = found
        context = click.Context(command, info_name=name, parent=context)
    if not words:
        return  # it speaks of the command
    if "--help" in words:
        words.remove("--help")
    given = [word.split("=")[0] for word in words if word.startswith("-")]
    if any(not word.startswith("-") for word in words) or not given:
        command.make_context(context.info_name, list(words), parent=context.parent).close()
    else:  # an option is spoken of by itself
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert set(given) <= known, f"{page}: `{line}` has an option that there is not"


# --- names and links -------------------------------------------------------------------------------

AIRFLOW_NAMES = (
    *("airflow.jobs.base_job", "BaseJob", "executor", "heartrate", "*args", "**kwargs"),
    *("airflow.models.base.Base", "LoggingMixin", "__tablename__", "id", "dag_id", "state", "job_type"),
    *("start_date", "end_date", "latest_heartbeat", "executor_class", "hostname", "unixname"),
    *("__mapper_args__", "__table_args__", "task_instances_enqueued", "dag_runs", "most_recent_job"),
    *("is_alive", "grace_multiplier", "kill", "on_kill", "heartbeat_callback", "heartbeat"),
    *("only_if_necessary", "run", "_execute", "session"),
)
"""Every name of Airflow's module airflow.jobs.base_job, as its own reference lists them."""


def test_each_name_of_airflows_base_job_is_mapped() -> None:
    rows = [
        line.split("|")[1]
        for line in PAGES["docs/coming-from-airflow.md"].splitlines()
        if line.startswith("| `")
    ]
    left = "\n".join(rows)
    missing = [name for name in AIRFLOW_NAMES if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", left)]
    assert not missing


def _anchors(page: str) -> set[str]:
    text = _BLOCK.sub("", PAGES[page])
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    own = re.findall(r"^\((.+)\)=$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
    return slugs | set(own)


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    prose = _BLOCK.sub("", PAGES[page])
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (ROOT / page).parent / path if path else ROOT / page
        assert other.exists(), f"{page}: {target}"
        name = str(other.resolve().relative_to(ROOT))
        assert not anchor or anchor in _anchors(name), f"{page}: {target}"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([a-z-]+)$", PAGES["docs/index.md"], re.MULTILINE))
    assert listed == {Path(page).stem for page in PAGES if page.startswith("docs/")} - {"index"}
    for name in listed:
        assert f"docs/{name}.md" in PAGES["README.md"], name


def test_the_proofs_that_a_page_names_are_there() -> None:
    section = PAGES["docs/how-it-works.md"].partition("## The promises and their proofs")[2]
    for line in section.splitlines():
        cells = line.split("|")[1:-1]
        if len(cells) == 3 and "`" in line:
            for cell, folder in ((cells[1], "jobrunner"), (cells[2], "tests")):
                for name in re.findall(r"`([\w/]+(?:\.py|/))`", cell):
                    assert (ROOT / folder / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_the_toml_and_the_sql_of_a_page_are_whole(page: str) -> None:
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "sql":
            assert block.text.rstrip().endswith(";")
