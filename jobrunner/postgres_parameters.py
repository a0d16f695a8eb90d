"""The parameters of libpq that say where PostgreSQL is: with those of a service, and with its addresses."""

import errno
import ipaddress
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobrunner.errors import SettingsError
from jobrunner.paths import read_file
from jobrunner.resolver import resolver


def complete(parameters: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Return the parameters with those of their service, and with the addresses of their hosts.

    `timeout_s`: seconds that resolving names may take. Raises `NotResolved`.
    """
    return _with_addresses(_with_service(parameters), timeout_s)


def own_options(parameters: dict[str, Any]) -> str:
    """Return the options for the server that the user gave: in the parameters, or in PGOPTIONS."""
    return str(parameters.get("options") or os.environ.get("PGOPTIONS", ""))


def _with_service(parameters: dict[str, Any]) -> dict[str, Any]:
    """Put in what the service file says: libpq would not read its options and hosts beside ours."""
    name = parameters.get("service") or os.environ.get("PGSERVICE")
    found = _service(str(name)) if name else None
    if found is None:  # unknown: libpq says so
        return parameters
    return {**found, **{key: value for key, value in parameters.items() if key != "service"}}


def _service(name: str) -> dict[str, str] | None:
    for path in _service_files():
        try:
            lines = read_file(path).decode().splitlines()
        except ValueError:
            continue
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EFBIG}:  # libpq would wait for its end
                raise SettingsError(f"The service file {path} cannot be used ({error.strerror}).") from None
            continue
        found = _section(lines, name)
        if found is not None:
            return found
    return None


def _service_files() -> Iterator[Path]:
    with suppress(RuntimeError):  # neither HOME nor an entry in the password database: there is no such file
        yield Path(os.environ.get("PGSERVICEFILE") or Path("~/.pg_service.conf").expanduser())
    yield Path(os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common"), "pg_service.conf")


def _section(lines: list[str], name: str) -> dict[str, str] | None:
    section: dict[str, str] | None = None
    for line in (line.strip() for line in lines):
        if line.startswith("["):
            if section is not None:
                break
            section = {} if line == f"[{name}]" else None
        elif section is not None and "=" in line and not line.startswith(("#", "ldap:")):
            key, _, value = line.partition("=")
            section[key.strip()] = value.strip()
    return section


def _with_addresses(parameters: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Resolve the hosts, each to all its addresses, so that connecting asks no resolver."""
    hosts = str(parameters.get("host") or os.environ.get("PGHOST", "")).split(",")
    if parameters.get("hostaddr") or os.environ.get("PGHOSTADDR") or not any(map(_is_name, hosts)):
        return parameters
    ports = str(parameters.get("port") or os.environ.get("PGPORT", "")).split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):  # psycopg says so
        return parameters
    reached: list[tuple[str, str, str]] = []
    trouble: OSError | None = None
    for host, port in zip(hosts, ports, strict=True):
        if not _is_name(host):
            reached.append((host, host if _is_address(host) else "", port))
            continue
        try:
            reached += [(host, address, port) for address in resolver.addresses(host, timeout_s)]
        except OSError as error:  # another host of the list may be known
            trouble = error
    if not reached and trouble is not None:
        raise trouble
    hosts_, addresses, ports_ = (",".join(column) for column in zip(*reached, strict=True))
    where = {"host": hosts_, "hostaddr": addresses}
    return {**parameters, **where, "port": ports_} if ports_.strip(",") else {**parameters, **where}


def _is_name(host: str) -> bool:
    return bool(host) and not host.startswith(("/", "@")) and not _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
