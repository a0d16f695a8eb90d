"""What the command line ends with: one table of exit codes, and the sentence for each error."""

import errno
import os
import signal
import traceback
from enum import IntEnum
from types import TracebackType

import click

from jobrunner.cli.output import one_line, word, words
from jobrunner.errors import (
    DatabaseError,
    JobKilled,
    JobLost,
    JobrunnerError,
    Released,
    UsageError,
    WaitTimeout,
)
from jobrunner.known_secrets import without_secrets
from jobrunner.states import JobState
from jobrunner.text import text_of

DEBUG_VARIABLE = "JOBRUNNER_DEBUG"


class ExitCode(IntEnum):
    """How a command ended, the same for all of them."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    KILLED = 3
    LOST = 4
    TIMED_OUT = 5
    HUNG_UP = 128 + signal.SIGHUP
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


MEANINGS = {
    ExitCode.SUCCESS: "the job ended as `success`; the command did what it was asked; `check`: alive",
    ExitCode.FAILED: "the job ended as `failed`; the command could not do it; `check`: not alive",
    ExitCode.USAGE: "bad input, a wrong setting, or a database that cannot be used",
    ExitCode.KILLED: "the job ended as `killed`",
    ExitCode.LOST: "the job ended as `lost`: nobody knows how its work ended",
    ExitCode.TIMED_OUT: "the time to wait was over before the job was",
    ExitCode.HUNG_UP: "its terminal was closed; a monitor job was released, and its work goes on",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C; a monitor job was released, and its work goes on",
    ExitCode.TERMINATED: "stopped by SIGTERM; a monitor job was released, and its work goes on",
}
"""The table of exit codes; docs/cli.md shows it."""

CODE_OF_STATE = {
    JobState.SUCCESS: ExitCode.SUCCESS,
    JobState.FAILED: ExitCode.FAILED,
    JobState.KILLED: ExitCode.KILLED,
    JobState.LOST: ExitCode.LOST,
}
"""The exit code of `start`, `attach` and `wait` for each state in which a job ends."""

_CODE_OF_ERROR: dict[type[JobrunnerError], ExitCode] = {
    UsageError: ExitCode.USAGE,
    DatabaseError: ExitCode.USAGE,
    JobKilled: ExitCode.KILLED,
    JobLost: ExitCode.LOST,
    WaitTimeout: ExitCode.TIMED_OUT,
}


def code_of(error: BaseException) -> int:
    """Return the exit code for an error; for `Released`, 128 and the number of the signal."""
    if isinstance(error, Released):
        return 128 + int(getattr(error, "signal", signal.SIGTERM))
    for kind, code in _CODE_OF_ERROR.items():
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED


def tell(error: BaseException) -> int:
    """Say in one sentence on standard error what went wrong, and return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return ExitCode.USAGE
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return ExitCode.SUCCESS  # whoever read our output has seen enough
    if os.environ.get(DEBUG_VARIABLE) and not isinstance(error, click.ClickException):
        _print_traceback(error, error.__traceback__)
    sentence, code = _told(error)
    word(f"jobrunner: {as_sentence(without_secrets(sentence))}")
    return code


def _told(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", ExitCode.INTERRUPTED
    if isinstance(error, click.ClickException):
        return _of_click(error), error.exit_code
    if isinstance(error, JobrunnerError):
        return str(error), code_of(error)
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return f"the system refused ({error.strerror or error}{place})", ExitCode.FAILED
    hint = f"run it again with {DEBUG_VARIABLE}=1 to see the traceback"
    return f"unexpected {type(error).__name__}: {text_of(error)} ({hint})", ExitCode.FAILED


def _of_click(error: click.ClickException) -> str:
    message = as_sentence(one_line(error.format_message()).rstrip("."))
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message} See `{context.command_path} --help`."


def as_sentence(sentence: str) -> str:
    """Return what is said to a person with a full stop, unless it ends as a sentence does."""
    return sentence if sentence[-1:] in {".", "?", "!", "`"} else f"{sentence}."


def show_own_traceback(error: BaseException) -> None:
    """Print the traceback of an error of a user's own job, from his first frame on."""
    frames = error.__traceback__
    while frames is not None and str(frames.tb_frame.f_globals.get("__name__", "")).startswith("jobrunner."):
        frames = frames.tb_next
    _print_traceback(error, frames)


def _print_traceback(error: BaseException, frames: TracebackType | None) -> None:
    words(without_secrets("".join(traceback.format_exception(type(error), error, frames))))
