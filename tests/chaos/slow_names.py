"""Names that are not resolved while a switch is on, in the processes that load this as they start."""

import ipaddress
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.switches import NAMES_FAIL, NAMES_HANG, is_on

_RESOLVERS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")


def prepare(directory: Path) -> str:
    """Make a directory which, in PYTHONPATH, lets a process load this as it starts; return its path."""
    directory.mkdir()
    start = "from tests.chaos import slow_names\n\nslow_names.install()\n"
    (directory / "sitecustomize.py").write_text(start)
    return str(directory)


def install() -> None:
    """Stand between this process and the system's resolver."""
    for name in _RESOLVERS:
        setattr(socket, name, _slow(getattr(socket, name)))


def _slow(ask: Callable[..., Any]) -> Callable[..., Any]:
    def asked(host: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_name(host):
            while is_on(NAMES_HANG):
                time.sleep(0.05)  # as a name server that is silent
            if is_on(NAMES_FAIL):
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ask(host, *args, **kwargs)

    return asked


def _is_name(host: Any) -> bool:
    if not host:
        return False
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return True
    return False
