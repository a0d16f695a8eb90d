import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from jobrunner.cli.exits import MEANINGS, ExitCode, code_of
from jobrunner.cli.main import main
from jobrunner.errors import DatabaseUnavailable, JobLost, Released, SpecError, WaitTimeout
from tests.cli.conftest import CommandLine

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def _commands(group: click.Group, *path: str) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += _commands(command, *path, name)
    return found


COMMANDS = _commands(main)
LEAVES = [(path, command) for path, command in COMMANDS if not isinstance(command, click.Group)]


def _name(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else ""


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=_name)
def test_every_command_explains_itself(path: tuple[str, ...], command: click.Command) -> None:
    answer = CliRunner().invoke(main, [*path, "--help"])
    assert answer.exit_code == 0
    assert answer.output.startswith(f"Usage: jobrunner {' '.join(path)}")
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} of {path} says nothing"


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=_name)
def test_every_command_has_json(path: tuple[str, ...], command: click.Command) -> None:
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_the_help_of_a_job_of_ones_own_needs_no_class(jobrunner: CommandLine) -> None:
    answer = jobrunner("start", "any:Thing", "--help")
    assert answer.code == 0
    assert "--arg" in answer.out


def test_the_group_s_lines_are_the_commands_own_first_words() -> None:
    """The help shows them without importing the commands, so they are written twice."""
    for name, lazy in main.lazy.items():
        command = lazy.load()
        assert command.help, name
        assert lazy.short_help.endswith(".")


def test_the_version_is_told() -> None:
    answer = CliRunner().invoke(main, ["--version"])
    assert re.fullmatch(r"jobrunner \d+\.\d+\.\d+\n", answer.output)


def test_without_a_command_the_help_is_shown_as_words(jobrunner: CommandLine) -> None:
    answer = jobrunner()
    assert (answer.code, answer.out) == (2, "")
    assert answer.says("Commands:")


@pytest.mark.skipif(not DOCS.exists(), reason="not in a checkout")
def test_the_docs_have_the_table_of_exit_codes_and_every_command() -> None:
    text = DOCS.read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |" in text
    assert set(MEANINGS) == set(ExitCode)
    for path, command in LEAVES:
        assert f"jobrunner {' '.join(path)}" in text, path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}" in text, (path, parameter.opts)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("x"), 2),
        (DatabaseUnavailable("x"), 2),
        (JobLost("x"), 4),
        (WaitTimeout("x"), 5),
        (Released("x", signal=signal.SIGINT), 130),
        (Released("x", signal=signal.SIGTERM), 143),
        (ValueError("x"), 1),
    ],
)
def test_errors_have_the_codes_of_the_table(error: Exception, code: int) -> None:
    assert code_of(error) == code


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            ValueError("boom"),
            1,
            "jobrunner: unexpected ValueError: boom (run it again with JOBRUNNER_DEBUG=1",
        ),
        (
            PermissionError(13, "Permission denied", "/x"),
            1,
            "jobrunner: the system refused (Permission denied",
        ),
        (KeyboardInterrupt(), 130, "jobrunner: interrupted"),
    ],
)
def test_what_nobody_expected_is_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("jobrunner.settings.get_settings", fail)
    answer = CliRunner().invoke(main, ["config"])
    assert answer.exit_code == code
    assert answer.stderr.strip().startswith(words)
    assert "Traceback" not in answer.stderr


def test_the_traceback_is_shown_to_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("boom")

    monkeypatch.setattr("jobrunner.settings.get_settings", fail)
    monkeypatch.setenv("JOBRUNNER_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(main, ["config"]).stderr


@pytest.mark.parametrize("command", ["list", "config", "show 1", "logs 1"])
def test_a_reader_that_leaves_early_is_no_error(jobrunner: CommandLine, command: str) -> None:
    assert jobrunner("start", "process", "--poll-interval", "0.2", "--", "seq", "100000").code == 0
    process = jobrunner.begin(*command.split())
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read().count("rror") == 0
    assert process.wait(timeout=30) == 0


def test_ctrl_c_while_waiting_is_130_and_no_traceback(jobrunner: CommandLine) -> None:
    starter, job_id = jobrunner.begin_job("process", "--", "sleep", "20")
    process = jobrunner.begin("logs", job_id, "--follow")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in words) == (130, False), words
    assert jobrunner("kill", job_id).code == 0
    starter.communicate(timeout=30)


def test_output_that_the_terminal_cannot_spell_is_no_error(jobrunner: CommandLine) -> None:
    assert jobrunner("start", "process", "--poll-interval", "0.2", "--", "echo", "grün…").code == 0
    answer = jobrunner("logs", "1", PYTHONIOENCODING="ascii")
    assert (answer.code, answer.out) == (0, "gr\\xfcn\\u2026\n")


def _completions(jobrunner: CommandLine, words: str) -> str:
    environment = {
        "_JOBRUNNER_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    return jobrunner(**environment).out


def test_the_shell_completes_commands_states_types_and_ids(jobrunner: CommandLine) -> None:
    assert "plain,start" in _completions(jobrunner, "jobrunner st")
    assert "plain,running" in _completions(jobrunner, "jobrunner list --state r")
    assert "plain,ProcessMonitorJob" in _completions(jobrunner, "jobrunner check --job-type P")
    assert jobrunner("start", "process", "--poll-interval", "0.2", "--", "true").code == 0
    assert "plain,1" in _completions(jobrunner, "jobrunner show ")
    assert "plain,batch_default" in _completions(jobrunner, "jobrunner connections test b")
    assert "plain,batch_default" in _completions(jobrunner, "jobrunner start batch --connection b")
    jobrunner.environment["JOBRUNNER_DATABASE_URL"] = "nonsense"
    assert _completions(jobrunner, "jobrunner show ").strip() == ""
    assert _completions(jobrunner, "jobrunner connections test ").strip() == ""


def _modules(jobrunner: CommandLine, *arguments: str) -> set[str]:
    code = (
        "import sys\n"
        "from jobrunner.cli.main import main\n"
        "try:\n"
        f"    main({list(arguments)!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('loaded:', *sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=jobrunner.directory,
        env={name: value for name, value in jobrunner.environment.items() if not name.startswith("COV")},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_help_imports_nothing_that_it_does_not_need(jobrunner: CommandLine) -> None:
    heavy = {
        "sqlalchemy",
        "pydantic",
        "pydantic_settings",
        "rich",
        "structlog",
        "alembic",
        "asyncio",
        "psutil",
        "boto3",
        "botocore",
        "yaml",
    }
    for arguments in (
        ["--help"],
        ["start", "--help"],
        ["start", "process", "--help"],
        ["start", "batch", "--help"],
        ["connections", "--help"],
        ["list", "--help"],
    ):
        loaded = _modules(jobrunner, *arguments)
        assert not heavy & loaded, arguments
        assert "jobrunner.settings" not in loaded


def test_a_job_that_is_no_batch_job_never_imports_boto3(jobrunner: CommandLine) -> None:
    assert jobrunner("start", "process", "--poll-interval", "0.2", "--", "true").code == 0
    for arguments in (["show", "1"], ["list"], ["logs", "1"], ["connections"], ["start", "process", "true"]):
        assert not {"boto3", "botocore", "yaml"} & _modules(jobrunner, *arguments), arguments


def test_check_imports_nothing_that_it_does_not_need(jobrunner: CommandLine) -> None:
    assert jobrunner("list").code == 0
    loaded = _modules(jobrunner, "check")
    assert not {"rich", "structlog", "alembic", "psycopg", "psutil"} & loaded
    ours = {name for name in loaded if name.startswith("jobrunner.")}
    unneeded = ("jobrunner.backends.process", "jobrunner.runner", "jobrunner.poller", "jobrunner.executors")
    assert not [name for name in ours if name.startswith(unneeded)]


def test_no_command_of_the_list_needs_rich_when_it_is_piped(jobrunner: CommandLine) -> None:
    assert jobrunner("list").code == 0
    assert "rich" not in _modules(jobrunner, "list")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")  # noqa: PTH110
def test_a_full_disk_under_the_output_is_one_sentence(jobrunner: CommandLine) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "jobrunner.cli.main", "config"],
            cwd=jobrunner.directory,
            env=jobrunner.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
