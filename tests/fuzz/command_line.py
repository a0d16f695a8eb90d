"""The command line in this process, and what must hold of each of its answers."""

import json
import re
from dataclasses import dataclass
from typing import Any

import click
from click.testing import CliRunner

from jobrunner.cli.exits import ExitCode
from jobrunner.cli.main import main
from jobrunner.visible import visible
from tests.fuzz.messages import ensure_no_secret, ensure_sentence

_CODES = {int(code) for code in ExitCode}
_ERROR = re.compile(r"^jobrunner: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    arguments: tuple[str, ...]
    code: int
    out: str
    words: str


def ask(*arguments: str, stdin: bytes = b"") -> Answer:
    """Run a command, and hold its answer against the rules of the command line."""
    result = CliRunner().invoke(main, list(arguments), input=stdin)
    answer = Answer(arguments, result.exit_code, result.stdout, result.stderr)
    assert result.exception is None or isinstance(result.exception, SystemExit), (answer, result.exception)
    assert answer.code in _CODES, answer
    for text in (answer.out, answer.words):
        assert "Traceback" not in text, answer
        ensure_no_secret(text)
    for line in answer.words.splitlines():
        assert visible(line) == line, (line, answer)
    told = _ERROR.findall(answer.words)
    if answer.code == ExitCode.USAGE and not _shows_help(answer):
        assert len(told) == 1, answer
        assert answer.out == "" or _is_table(answer), answer
    for sentence in told:
        ensure_sentence(sentence, quotes=arguments)
    if "--json" in arguments and answer.out and not _shows_help(answer):
        for line in answer.out.rstrip("\n").split("\n"):
            json.loads(line, parse_constant=_refuse)
    return answer


def _refuse(word: str) -> Any:
    raise AssertionError(f"{word} is not JSON")


def _shows_help(answer: Answer) -> bool:
    return "Usage: jobrunner" in answer.out + answer.words or "--version" in answer.arguments


def _is_table(answer: Answer) -> bool:
    # `config` shows the settings before it says that the URL among them cannot be used.
    return bool(answer.arguments) and answer.arguments[0] in {"config", "db", "check"}


def leaves(group: click.Group = main, *path: str) -> list[tuple[tuple[str, ...], click.Command]]:
    """Return every command that there is, with its path."""
    found: list[tuple[tuple[str, ...], click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += leaves(command, *path, name)
            if command.invoke_without_command:
                found.append(((*path, name), command))
        else:
            found.append(((*path, name), command))
    return found
