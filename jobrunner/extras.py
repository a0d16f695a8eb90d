"""Optional libraries: imported when they are used, and asked for in one sentence where they are missing."""

from importlib import import_module
from types import ModuleType

from jobrunner.errors import UsageError

_DISTRIBUTIONS = {"google": "protobuf", "grpc": "grpcio", "yaml": "PyYAML"}
"""What a module comes with, where the two have different names."""


def require(module: str, extra: str, what: str) -> ModuleType:
    """Return the module, imported. `what` needs it, and the extra `extra` of jobrunner installs it.

    Raises `UsageError` where it is not installed, or cannot be imported.
    """
    install = f"pip install 'jobrunner[{extra}]'"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        name = _DISTRIBUTIONS.get(missing, missing)
        raise UsageError(f"{what} needs {name}, which is not installed: {install}.") from None
    except ImportError as error:
        name = module.partition(".")[0]
        raise UsageError(f"{what} needs {name}, which cannot be imported ({error}): {install}.") from error
