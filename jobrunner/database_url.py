"""A database's URL, taken apart as a person means it: any path, several hosts, IPv6, odd passwords.

No part of a URL stands in a message: it could be part of a password that is not percent-encoded.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote, unquote

from jobrunner.known_secrets import MASK, remember
from jobrunner.paths import absolute, is_directory
from jobrunner.redaction import looks_secret

if TYPE_CHECKING:
    from sqlalchemy import URL

Dialect = Literal["sqlite", "postgresql"]

_SCHEMES: dict[str, Dialect] = {
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "postgresql+psycopg": "postgresql",
    "postgresql+psycopg2": "postgresql",
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
}
_DRIVERS: dict[Dialect, str] = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite"}
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[^\]\s]+)?)\]|(?P<name>[^\s:\[\]]*))(?::(?P<port>.*))?")
_LARGEST_PORT = 65535
_LEAST_COLONS_OF_IPV6 = 2


@dataclass(frozen=True, slots=True)
class Host:
    """One server to try: a name, an address or a socket's directory; None: the driver's own default."""

    name: str
    port: int | None = None

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where a database is. `hosts` are tried in order; `database` of SQLite is an absolute path."""

    dialect: Dialect
    database: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    hosts: tuple[Host, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a URL apart, and remember its secrets. Raises ValueError with what is wrong and what to do."""
        scheme, separator, rest = text.strip().partition("://")
        dialect = _SCHEMES.get(scheme.lower())
        if not separator or dialect is None:
            base, plus, driver = scheme.lower().partition("+")
            if separator and plus and base in _SCHEMES and driver.isalnum():
                raise ValueError(
                    f"must begin with {_SCHEMES[base]}://, without +{driver}: jobrunner has its own driver"
                )
            raise ValueError("must begin with sqlite:/// or postgresql://")
        return cls._sqlite(rest) if dialect == "sqlite" else cls._postgresql(rest)

    @classmethod
    def of_file(cls, path: str) -> Self:
        """Return the URL of an SQLite file, whatever characters its path has."""
        return cls("sqlite", path)

    @classmethod
    def _sqlite(cls, rest: str) -> Self:
        place, _, query = rest.partition("?")
        if place and not place.startswith("/"):
            raise ValueError(
                "must begin with sqlite:/// and a path, which is four slashes for an absolute one"
            )
        options = dict(_options(query))
        path = _decoded(place[1:])
        is_memory = path in {"", ":memory:"} or "memory" in options.get("mode", ())
        if is_memory:
            raise ValueError(
                "is an in-memory database, which no second process can reach: name a file, sqlite:////path/to/file.db"
            )
        if options:
            raise ValueError(
                "has options, which jobrunner sets by itself for SQLite: remove them, or write a ? of the "
                "path as %3F"
            )
        return cls("sqlite", str(_existing(path, place[1:])))

    @classmethod
    def _postgresql(cls, rest: str) -> Self:
        found = re.fullmatch(r"([^/?]*)(/[^?]*)?(?:\?(.*))?", rest, re.DOTALL)
        assert found is not None  # each text is of this form
        authority, path, query = found.groups(default="")
        if "@" in path:
            raise ValueError(
                "has an @ after its first /: percent-encode the password (/ is %2F, ? is %3F, @ is %40), "
                "or put it into a variable and write ${env:NAME}"
            )
        userinfo, at, places = authority.rpartition("@")
        user, colon, password = userinfo.partition(":")
        url = cls(
            "postgresql",
            _decoded(path[1:]),
            _decoded(user) if at else None,
            _decoded(password) if colon else None,
            tuple(_hosts(places)),
            dict(_options(query)),
        )
        url._remember_secrets()
        return url._with_hosts_of_options()

    def _remember_secrets(self) -> None:
        hosts = (host.name for host in self.hosts)
        public = frozenset(filter(None, (self.username, self.database, *hosts)))
        secrets = [value for name, values in self.options.items() if looks_secret(name) for value in values]
        for secret in filter(None, (self.password, *secrets)):
            remember(secret, public=public)

    def _with_hosts_of_options(self) -> Self:
        """Move `?host=` and `?port=` where they name several servers, or a server and its port."""
        names = ",".join(self.options.get("host", ())).split(",")
        ports = [port for value in self.options.get("port", ()) for port in value.split(",")]
        if names == [""] and not ports:
            return self
        hosts = [_bare_host(name) for name in names] if names != [""] else list(self.hosts)
        if not ports:
            one_port = self.hosts[0].port if len(self.hosts) == 1 and len(hosts) == 1 else None
            ports = ["" if one_port is None else str(one_port)]
        elif any(host.port is not None for host in hosts) and names != [""]:
            raise ValueError(
                "gives ports in two ways: keep those beside the hosts, and remove the option port"
            )
        if len(ports) not in {1, len(hosts)} and hosts:
            raise ValueError("names another number of ports than of hosts")
        if len(ports) == 1:
            ports *= max(1, len(hosts))
        joined = [
            Host(host.name, _port(port) if port else host.port)
            for host, port in zip(hosts or [Host("")], ports, strict=True)
        ]
        options = {name: values for name, values in self.options.items() if name not in {"host", "port"}}
        return type(self)(self.dialect, self.database, self.username, self.password, tuple(joined), options)

    def to_sqlalchemy(self) -> "URL":
        """Return the URL that SQLAlchemy's engine takes, with the driver that jobrunner uses."""
        from sqlalchemy import URL  # here: reading settings needs no SQLAlchemy

        one = self.hosts[0] if len(self.hosts) == 1 else None
        options: dict[str, str | tuple[str, ...]] = {
            name: values[0] if len(values) == 1 else values for name, values in self.options.items()
        }
        if len(self.hosts) > 1 or (one is not None and one.name.startswith("/")):
            # In this form a name may hold colons, as IPv6 addresses and directories do.
            options["host"] = ",".join(host.name for host in self.hosts)
            ports = ["" if host.port is None else str(host.port) for host in self.hosts]
            if any(ports):
                options["port"] = ",".join(ports)
            one = None
        return URL.create(
            _DRIVERS[self.dialect],
            username=self.username,
            password=self.password,
            host=None if one is None else one.name or None,
            port=None if one is None else one.port,
            database=self.database or None,
            query=options,
        )

    def __str__(self) -> str:
        """Return the URL as SQLAlchemy parses it, with its password: do not show it."""
        return self.to_sqlalchemy().render_as_string(hide_password=False)

    @property
    def shown(self) -> str:
        """The URL as a person writes it, without its secrets."""
        user = "" if self.username is None else _readable(self.username, ":@/")
        if self.password is not None:
            user += f":{MASK}"
        at = "" if self.username is None else "@"
        options = [
            (name, MASK if looks_secret(name) else value)
            for name, values in self.options.items()
            for value in values
        ]
        places = ",".join(map(str, self.hosts))
        if any(host.name.startswith("/") for host in self.hosts):
            options.append(("host", ",".join(host.name for host in self.hosts)))
            options += [("port", str(host.port)) for host in self.hosts if host.port is not None]
            places = ""
        query = "&".join(f"{name}={_readable(value, '&+')}" for name, value in options)
        database = f"/{_readable(self.database, '')}" if self.database else ""
        return f"{self.dialect}://{user}{at}{places}{database}{'?' if query else ''}{query}"


def _existing(decoded: str, written: str) -> Path:
    """Return the decoded path, or the one as written where only that leads to a directory.

    CI servers name workspaces `project%2Fbranch`, and such a path is easily pasted into a URL.
    """
    path = absolute(decoded)
    if decoded != written and not is_directory(path.parent):
        literal = absolute(written)
        if is_directory(literal.parent):
            return literal
    return path


def _options(query: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                "has an option without a value: write name=value after the ?, and a ? of a password or "
                "path as %3F"
            )
        name = _decoded(name.replace("+", " "))
        if not re.fullmatch(r"\w+", name, re.ASCII):  # not quoted here: it may be the rest of a password
            raise ValueError(
                "has an option with an impossible name: percent-encode a password in the URL (? is %3F, # is "
                "%23), and write options as name=value"
            )
        found[name] = (*found.get(name, ()), _decoded(value.replace("+", " ")))
    yield from found.items()


def _hosts(places: str) -> Iterator[Host]:
    if not places:
        return
    for place in places.split(","):
        yield _host(place)


def _host(place: str) -> Host:
    if place.startswith("/"):
        return Host(place)
    if not place.startswith("[") and place.count(":") >= _LEAST_COLONS_OF_IPV6:
        raise ValueError(
            "has an IPv6 address without brackets: write it as in postgresql://user@[::1]:5432/name"
        )
    found = _HOST.fullmatch(place)
    if found is None:
        raise ValueError(
            "names an impossible host: write postgresql://user:password@host:port/name, and percent-encode "
            "the password"
        )
    name = _decoded(found["ipv6"] or found["name"])
    return Host(name, _port(found["port"]) if found["port"] is not None else None)


def _bare_host(name: str) -> Host:
    """Return the host of an option, where libpq takes an IPv6 address without brackets."""
    is_ipv6 = not name.startswith("[") and name.count(":") >= _LEAST_COLONS_OF_IPV6
    return _host(f"[{name}]" if is_ipv6 and not name.startswith("/") else name)


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text[:6]) <= _LARGEST_PORT:
        return int(text)
    raise ValueError(
        f"has a port that is not a number from 1 to {_LARGEST_PORT}: correct it, or percent-encode the "
        "password where it holds / or ?"
    )


def _decoded(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()
    except UnicodeError:
        raise ValueError("holds bytes that are not UTF-8") from None
    if "\0" in decoded:
        raise ValueError("holds a NUL character")
    return decoded


def _readable(text: str, special: str) -> str:
    """Return the text with what would be misread, or would steer a terminal, percent-encoded."""
    return "".join(
        char if char.isprintable() and char not in "%?# " + special else quote(char, safe="") for char in text
    )
