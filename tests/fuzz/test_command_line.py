"""Any command line: an exit code of the table, one sentence for what is wrong, and nothing half stored."""

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobrunner import settings as module
from jobrunner.cli.exits import ExitCode
from jobrunner.database import Database
from jobrunner.states import JobState
from tests.fuzz.command_line import ask, leaves
from tests.fuzz.examples import TIMEOUT_S, examples
from tests.fuzz.texts import SECRET, argument_text
from tests.helpers import insert_job, plain_connection, row_of

pytestmark = pytest.mark.timeout(TIMEOUT_S)

_LEAVES = leaves()
_PATHS = [path for path, _ in _LEAVES]
_HANGS_S = 20

# Of these, each would wait for somebody, or call somewhere else, unless it is told not to.
_CALM: dict[tuple[str, ...], list[str]] = {
    ("start", "batch"): ["--detach"],
    ("start", "armada"): ["--detach"],
    ("start", "airbyte"): ["--detach"],
    ("wait",): ["--timeout", "0.05s"],
}
_NEVER = {("worker",), ("attach",)}  # they run until they are stopped; only what they refuse is tried
_NEVER_OPTIONS = {"--follow", "-f", "--wait", "--attach", "--import"}

_durations = [
    "1s",
    "0",
    "-1",
    "1e9d",
    "9" * 400 + "d",
    "nan",
    "inf",
    "1 s",
    "٣s",
    "0.0000001s",
    "2h",
    "1.5",
    ".s",
    "12000d",
]
_numbers = ["0", "1", "-1", "2", "9" * 30, "1.5", "nan", "1e400", "٣", "+1", " 1", "0x1"]
_names = ["a", "", "nightly", "a" * 251, "é" * 250, "\x1b[2J", "a\nb", "\u202e", "\udcff", "%s", "--", "-"]
_pairs = [
    "A=b",
    "=",
    "A",
    "A=",
    "=b",
    "A=\udcff",
    "PASSWORD=x",
    "A==",
    "preempted=1",
    "oom=0",
    "oom=1001",
    "x=1",
    "oom=٣",
    "GPU=nan",
]
_words = ["x", "all", "0044", "head", "base", "-1", "0005", "0001", "9999", "zz", "../../etc", "~", "."]
_values = st.one_of(
    st.sampled_from(
        [*_durations, *_numbers, *_names, *_pairs, *_words, "127.0.0.1:0", "[::1", ":99999", "spec.yaml"]
    ),
    argument_text,
)
_commands = st.lists(
    st.sampled_from(["true", "false", "/nonexistent/x", "a\udcffb", "", "\u202e", "sleep"]), max_size=2
)
_ids = st.sampled_from(["1", "2", "3", "4", "99", "0", "-1", "9" * 19, str(2**63 - 1), "x", "", "٣", "1 "])


def _value_for(option: click.Option) -> st.SearchStrategy[str]:
    if isinstance(option.type, click.Choice):
        return st.sampled_from([*map(str, option.type.choices), "x", ""])
    if "--connection" in option.opts:
        return st.sampled_from(["batch_default", "armada_default", "airbyte_default", "other", "", "A" * 300])
    return _values


@st.composite
def _options_of(draw: st.DrawFn, command: click.Command) -> list[str]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    chosen = draw(st.lists(st.sampled_from(options), max_size=4)) if options else []
    words: list[str] = []
    for option in chosen:
        if _NEVER_OPTIONS & {*option.opts}:
            continue
        words.append(draw(st.sampled_from(option.opts)))
        if not (option.is_flag or option.count):
            value = draw(_value_for(option))
            words[-1:] = [f"{words[-1]}={value}"] if draw(st.booleans()) else [words[-1], value]
    return words


@st.composite
def _command_lines(draw: st.DrawFn) -> tuple[tuple[str, ...], list[str]]:
    path, command = draw(st.sampled_from([each for each in _LEAVES if each[0] not in _NEVER]))
    words = draw(_options_of(command))
    if path == ("start", "process"):
        words += draw(st.sampled_from([["--"], []])) + draw(_commands)
        if "sleep" in words:
            words += ["0"]
    for argument in (each for each in command.params if isinstance(each, click.Argument)):
        if argument.name in {"job_id", "job_ids"}:
            words += draw(st.lists(_ids, min_size=1, max_size=2 if argument.nargs != 1 else 1))
        elif path != ("start", "process"):
            words += [draw(_values)]
    if draw(st.integers(0, 9)) == 0:
        words += [draw(_values)]
    return path, [*words, *([] if "--" in words else _CALM.get(path, []))]


@pytest.fixture
def sqlite_template(_sqlite_template: Path) -> Path:
    return _sqlite_template


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an embedded database and connections that lead nowhere."""
    monkeypatch.setenv("JOBRUNNER_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    for name, url in (
        ("BATCH_DEFAULT__ENDPOINT_URL", "http://127.0.0.1:1"),
        ("BATCH_DEFAULT__REGION", "eu-west-1"),
        ("ARMADA_DEFAULT__URL", "127.0.0.1:1"),
        ("AIRBYTE_DEFAULT__URL", "http://127.0.0.1:1/api/public/v1"),
        ("AIRBYTE_DEFAULT__TOKEN", quote(SECRET, safe="")),
    ):
        monkeypatch.setenv(f"JOBRUNNER_CONNECTIONS__{name}", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "empty" / "spec.yaml").write_text("jobName: nightly\njobQueue: q\njobDefinition: d\n")
    return tmp_path


@contextmanager
def _bounded() -> Iterator[None]:
    """End what hangs, and say so."""

    def hung(_number: int, _frame: Any) -> None:
        raise AssertionError("it hangs")

    former = signal.signal(signal.SIGALRM, hung)
    signal.alarm(_HANGS_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


_numbers_of_databases = itertools.count()


class _Jobs:
    """The rows of the database here, of which each example begins with the same."""

    def __init__(self, here: Path, template: Path) -> None:
        path = here / f"data-{next(_numbers_of_databases)}" / "jobrunner.db"
        path.parent.mkdir()
        os.environ["JOBRUNNER_DATA_DIR"] = str(path.parent)
        module.reset()
        path.write_bytes(template.read_bytes())
        self.url = f"sqlite:///{path}"
        self.database = Database(module.Settings())
        insert_job(self.database)
        insert_job(self.database, state=JobState.QUEUED, name="a")

    def rows(self) -> list[tuple[Any, ...]]:
        with closing(plain_connection(self.url)) as connection:
            found = connection.execute("SELECT id, state, external_id FROM job ORDER BY id").fetchall()
        return [tuple(row) for row in found]


@given(_command_lines())
@examples(120)
def test_any_command_line_ends_by_the_table_and_stores_all_or_nothing(
    here: Path, sqlite_template: Path, line: tuple[tuple[str, ...], list[str]]
) -> None:
    path, words = line
    assume(not any("\0" in word for word in words))
    from tests.conftest import _forget

    _forget()
    jobs = _Jobs(here, sqlite_template)
    before = jobs.rows()
    with _bounded():
        answer = ask(*path, *words)
    if path == ("db", "downgrade"):
        jobs.database.dispose()
        return
    after = jobs.rows()
    if answer.code == ExitCode.USAGE:
        assert after == before, (answer, after)
    for job_id, state, _ in after[len(before) :]:
        is_detached = any(word.startswith("--detach") for word in words)
        assert state in {"success", "failed", "killed", "queued" if is_detached else "lost"}, (answer, state)
        assert row_of(jobs.database, job_id)
    jobs.database.dispose()


@given(st.lists(_values | st.sampled_from([word for path in _PATHS for word in path]), max_size=4))
@examples(60)
def test_any_words_at_all_end_by_the_table(here: Path, words: list[str]) -> None:
    assume(not any("\0" in word for word in words))
    assume(not {"worker", "attach", "process", "logs"} & {*words})
    with _bounded():
        ask(*words)


_surroundings = st.dictionaries(
    st.sampled_from(
        [
            "JOBRUNNER_DATABASE_URL",
            "JOBRUNNER_HEARTRATE",
            "JOBRUNNER_CONFIG",
            "JOBRUNNER_DATA_DIR",
            "COLUMNS",
            "HOME",
            "TERM",
        ]
    ),
    argument_text
    | st.sampled_from(
        [
            f"postgresql://u:{SECRET}@127.0.0.1:1/d",
            "sqlite://",
            "sqlite:////etc/x/y.db",
            "/dev/null",
            "/proc/x",
            "nan",
        ]
    ),
    min_size=1,
    max_size=2,
)


@given(
    _surroundings,
    st.sampled_from(
        ["list", "config", "check", "connections", "show 1", "db check", "start process -- true"]
    ),
)
@examples(60)
def test_any_surroundings_end_by_the_table(here: Path, variables: dict[str, str], line: str) -> None:
    from tests.conftest import _forget

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in variables.items():
            if name == "JOBRUNNER_DATABASE_URL" or SECRET not in value:
                monkeypatch.setenv(name, value.replace("\0", ""))
        monkeypatch.setenv("JOBRUNNER_CONNECT_TIMEOUT_S", "1")
        _forget()
        with _bounded():
            ask(*line.split())
        _forget()
