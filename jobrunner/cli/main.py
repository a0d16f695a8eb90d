"""The command line's entry: every command by name, loaded when used, and every error in one sentence."""

import atexit
import gc
import sys
from typing import Any, NoReturn

import click

from jobrunner.cli import streams
from jobrunner.cli.exits import tell
from jobrunner.cli.groups import Lazy, LazyGroup
from jobrunner.cli.init import OWN_PROCESS, leave_pid_1
from jobrunner.cli.output import flush_output

_COMMANDS = {
    "start": Lazy("jobrunner.cli.start:start", "Start a job and watch it to its end."),
    "attach": Lazy("jobrunner.cli.attach:attach", "Take over or follow a monitor job."),
    "kill": Lazy("jobrunner.cli.kill:kill", "Kill jobs, wherever they run."),
    "list": Lazy("jobrunner.cli.jobs:list_", "List jobs, newest first."),
    "show": Lazy("jobrunner.cli.jobs:show", "Show all that is known of a job."),
    "wait": Lazy("jobrunner.cli.waiting:wait", "Wait until a job has ended."),
    "logs": Lazy("jobrunner.cli.logs:logs", "Print a job's output."),
    "check": Lazy("jobrunner.cli.check:check", "Tell by the exit code whether a job is alive."),
    "worker": Lazy("jobrunner.cli.worker:worker", "Take queued jobs and orphans, and run them to their end."),
    "db": Lazy("jobrunner.cli.db:db", "Upgrade, check and prune the database."),
    "connections": Lazy(
        "jobrunner.cli.connections:connections", "List and test the ways to outside systems."
    ),
    "config": Lazy("jobrunner.cli.config:config", "Show the settings and where each was set."),
}


class _Main(LazyGroup):
    def main(self, args: Any = None, *_args: Any, **extra: Any) -> NoReturn:
        """Run a command and exit with its code; no error leaves it as a traceback."""
        leave_pid_1()
        streams.make_usable()
        extra |= {"prog_name": "jobrunner", "standalone_mode": False}  # however it was called
        if args is None:
            extra["obj"] = OWN_PROCESS
        # The interpreter's last collection looks at every mapped class: a quarter of a short command's time.
        atexit.register(gc.freeze)
        try:
            code = super().main(args, **extra)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001  # it is told, in one sentence
            code = tell(error)
        flush_output()
        sys.exit(code)


@click.group(
    cls=_Main,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command has --json. Exit codes: 0 success, 1 failed or not alive, 2 bad input, 3 killed, "
    "4 lost, 5 waited too long.",
)
@click.version_option(package_name="jobrunner", prog_name="jobrunner", message="%(prog)s %(version)s")
def main() -> None:
    """Run and watch long jobs, each of them a database row with a heartbeat."""


if __name__ == "__main__":
    main()
