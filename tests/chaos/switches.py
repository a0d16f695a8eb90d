"""What the storm switches on and off in the processes that it struck: each switch is a file."""

import os
from pathlib import Path

WRONG_CODE = "wrong-code"
NAMES_HANG, NAMES_FAIL = "names-hang", "names-fail"
_VARIABLE = "CHAOS_SWITCHES"


def is_on(switch: str) -> bool:
    """Whether a switch is on, as seen from one of the processes; elsewhere all are off."""
    directory = os.environ.get(_VARIABLE)
    return directory is not None and os.path.exists(os.path.join(directory, switch))  # noqa: PTH110, PTH118


class Switches:
    """The switches, as the storm has them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()

    def environment(self) -> dict[str, str]:
        """Return the variable by which a process finds them."""
        return {_VARIABLE: str(self._directory)}

    def is_on(self, switch: str) -> bool:
        return (self._directory / switch).exists()

    def on(self, switch: str) -> None:
        (self._directory / switch).touch()

    def off(self, switch: str) -> None:
        (self._directory / switch).unlink(missing_ok=True)
